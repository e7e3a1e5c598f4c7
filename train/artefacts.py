"""From a trained group to SAE artefacts that work on raw activations."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from store.geometry import gram_penalty_and_gradient, gram_penalty_bound
from store.manifest import Manifest
from store.sae import SAEWeights, fold_scale, save_sae
from train.config import LearnedLambda
from train.group import VariantGroup
from train.lambdas import judge_lambda, lambda_residual
from train.metrics import averaged_tail, log_lambda_range, log_lines, mean_max_cosine
from train.reuse import TRAIN_VERSION, ResolvedVariant


def save_group(
    group: VariantGroup,
    records: Tensor,
    *,
    variants: Sequence[ResolvedVariant],
    manifest: Manifest,
    hook: str,
    scale: float,
    num_steps: int,
    batch_rows: int,
    penalty_divisor: float,
    regularizer: float,
    folder: Path,
) -> None:
    """Writes the trained SAEs, the activation scale folded back, into `folder`/<name>."""
    final_lambdas = group.lambdas.at(num_steps - 1).tolist()
    num_dead = group.num_dead().tolist()
    for index, (variant, trained) in enumerate(zip(variants, trained_weights(group), strict=True)):
        lines = log_lines(records, index)
        final = final_metrics(
            trained,
            lines,
            lam=final_lambdas[index],
            num_dead=num_dead[index],
            learned=isinstance(variant.schedule, LearnedLambda),
            penalty_divisor=penalty_divisor,
            regularizer=regularizer,
            num_steps=num_steps,
        )
        card = {
            "name": variant.name,
            "key": variant.key,
            "hook": hook,
            "model": manifest.spec.model,
            "cache_digest": manifest.digest,
            "context_length": manifest.spec.context_length,
            "scale": scale,
            "seed": variant.seed,
            "num_steps": num_steps,
            "num_training_rows": num_steps * batch_rows,
            "train_version": TRAIN_VERSION,
            "variant": variant.settings,
            "train": variant.shared,
            "final": final,
        }
        save_sae(folder / variant.name, fold_scale(trained, scale), card, lines)


def trained_weights(group: VariantGroup) -> Iterator[SAEWeights]:
    """The weights of each variant on the host, for rows times the scale."""
    stacked = group.weights
    for index in range(len(stacked.W_dec)):
        yield SAEWeights(
            W_enc=stacked.W_enc[index].t().cpu().contiguous(),
            b_enc=stacked.b_enc[index].cpu().clone(),
            W_dec=stacked.W_dec[index].cpu().clone(),
            b_dec=stacked.b_dec[index].cpu().clone(),
        )


def final_metrics(
    weights: SAEWeights,
    lines: Sequence[dict[str, Any]],
    *,
    lam: float,
    num_dead: int,
    learned: bool,
    penalty_divisor: float,
    regularizer: float,
    num_steps: int,
) -> dict[str, float | int | str]:
    """The card's summary of a run.

    What varies with the batch is a mean over the last log records (metrics.averaged_tail); the rest belongs to the
    final weights and the final lambda.
    """
    penalty, excess, _ = gram_penalty_and_gradient(weights.W_dec)
    final: dict[str, float | int | str] = {
        **averaged_tail(lines),
        "lambda": lam,
        "penalty": float(penalty),
        "penalty_lower_bound": gram_penalty_bound(*weights.W_dec.shape),
        "penalty_excess": float(excess),
        "dead_latents": num_dead,
        "mean_max_cosine": float(mean_max_cosine(weights.W_dec)),
    }
    if learned:
        scaled = float(penalty) / penalty_divisor
        moved = log_lambda_range(lines, final_lambda=lam, num_steps=num_steps)
        final["lambda_residual"] = lambda_residual(lam, scaled, regularizer=regularizer)
        final["lambda_state"] = judge_lambda(lam=lam, penalty=scaled, regularizer=regularizer, moved=moved)
    return final
