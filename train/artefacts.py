"""From a trained group to SAE artefacts that work on raw activations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from store.cache.manifest import Manifest
from store.cache.norm_limit import NormLimit
from store.sae.artefact import save_sae
from store.sae.geometry import gram_penalty_and_gradient, gram_penalty_bound
from store.sae.stationary_lambda import judge_lambda, lambda_residual
from store.sae.weights import SAEWeights, fold_scale
from train.config import VariantSettings, target_of
from train.lambdas import FOLLOWS_TRAINING, LearnedLambda
from train.loop import GroupRun
from train.metrics import averaged_tail, log_lambda_range, mean_max_cosine
from train.penalties import GramPenalty
from train.penalty_term import penalty_divisor
from train.variants import ResolvedVariant
from train.version import TRAIN_VERSION


def save_group(
    run: GroupRun,
    *,
    variants: Sequence[ResolvedVariant],
    manifest: Manifest,
    hook: str,
    scale: float,
    limit: NormLimit | None,
    num_steps: int,
    batch_rows: int,
    folder: Path,
) -> None:
    """Writes the trained SAEs, the activation scale folded back, into `folder`/<start of its key>.

    One that diverged is written too, so that it is known and not trained again: its card says at which step, and its
    weights are 0.
    """
    group = run.group
    final_lambdas = group.lambdas_at(num_steps - 1).tolist()
    lambda_means = (group.lambdas.total / num_steps).tolist()
    num_dead = group.num_dead().tolist()
    for index, (variant, trained) in enumerate(zip(variants, group.trained_weights(), strict=True)):
        lines, diverged_at = run.log_of(index), run.diverged_at.get(index)
        final = (
            {"diverged_at_step": diverged_at}
            if diverged_at is not None
            else final_metrics(
                trained,
                lines,
                settings=variant.settings,
                lam=final_lambdas[index],
                mean_lam=lambda_means[index],
                num_dead=num_dead[index],
                num_steps=num_steps,
            )
        )
        steps = num_steps if diverged_at is None else diverged_at + 1
        card = {
            "name": variant.name,
            "architecture": variant.settings.architecture.kind,
            "key": variant.key,
            "hook": hook,
            "model": manifest.spec.model,
            "cache_digest": manifest.digest,
            "context_length": manifest.spec.context_length,
            "first_token": manifest.spec.first_token,
            "excluded_positions": manifest.spec.excluded_positions,
            "scale": scale,
            "norm_limit": limit,
            "seed": variant.settings.seed,
            "num_steps": steps,
            "num_training_rows": steps * batch_rows,
            "train_version": TRAIN_VERSION.number,
            "variant": variant.own,
            "train": variant.shared,
            "final": final,
        }
        save_sae(folder / variant.key[:32], fold_scale(trained, scale), card, lines)


def final_metrics(
    weights: SAEWeights,
    lines: Sequence[dict[str, Any]],
    *,
    settings: VariantSettings,
    lam: float,
    mean_lam: float,
    num_dead: int,
    num_steps: int,
) -> dict[str, float | int | str]:
    """The card's summary of a run.

    What varies with the batch is a mean over the last log records (metrics.averaged_tail); the rest belongs to the
    final weights and the final lambda; `mean_lam` is the mean of lambda over all steps, of interest where it follows
    training.
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
    if isinstance(settings.schedule, FOLLOWS_TRAINING):
        final["lambda_mean"] = mean_lam
    if target_of(settings) is not None:
        final["sparsity_coefficient"] = float(lines[-1]["sparsity_coefficient"])
    if isinstance(settings.schedule, LearnedLambda):
        regularizer = settings.lambda_regularizer
        # What lambda stands before; of a penalty that is drawn anew in each step, its last value in the log.
        exact = isinstance(settings.penalty, GramPenalty)
        scaled = float(penalty) / penalty_divisor(settings) if exact else float(lines[-1]["scaled_penalty"])
        final["scaled_penalty"] = scaled
        moved = log_lambda_range(lines, final_lambda=lam, num_steps=num_steps)
        final["lambda_residual"] = lambda_residual(lam, scaled, regularizer=regularizer)
        final["lambda_state"] = judge_lambda(lam=lam, penalty=scaled, regularizer=regularizer, moved=moved)
    return final
