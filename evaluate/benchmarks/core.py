"""The `core` benchmark: sae-bench `core` on held-out text, the language model running with and without the SAE.

Rows are the held-out ones of the activation cache, stored as bfloat16, as training saw its own. sae-bench's `run_evals`
is given them in place of a language model; its loop over SAEs (`multiple_evals`) logs exceptions and goes on: it is not
used. Losses are computed by evaluate/language_model_loss.py with sae-bench's definitions.

Three metrics of sae-bench 0.6.0 are replaced by float64 sums over the same rows, and kept in `details`:

* explained_variance there is measured about zero and not about the mean (SAELens issue 659, fixed there since): an SAE
  that outputs the mean activation would score near 1. Here it is 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2.
* mse there is divided by the number of rows in a batch (SAELens pull request 711). Here it is the mean of
  ||x - x_hat||^2 over rows, in the units of the raw activations.
* cossim is NaN where a reconstruction is zero. Here such a row counts 0.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, JsonValue, model_validator

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.held_out_rows import measure_rows
from evaluate.jackknife import Array, as_arrays, standard_errors, without_one
from store.record import Record

if TYPE_CHECKING:
    from evaluate.sae_bench import StoredSAE

ROWS_BYTES = 2**30
"""Memory for held-out rows of all hooks, which are then read once for all SAEs."""
PositiveCount = Annotated[int, Field(gt=0)]


class CoreConfig(Record):
    """How much held-out text the `core` benchmark reads."""

    num_reconstruction_sequences: PositiveCount
    """Held-out sequences on which the language model runs without the SAE, with it, and with the hook set to zero."""
    num_sparsity_sequences: PositiveCount
    """Held-out sequences for explained variance, L0, L1, norms and firing counts."""
    batch_sequences: PositiveCount
    """Sequences per forward pass; both numbers above must be multiples of it."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        for field in ("num_reconstruction_sequences", "num_sparsity_sequences"):
            sequences = getattr(self, field)
            if sequences % self.batch_sequences:
                nearest = max(1, round(sequences / self.batch_sequences)) * self.batch_sequences
                raise ValueError(
                    f"expected {field} to be a multiple of batch_sequences = {self.batch_sequences}, "
                    f"got {sequences}. Set it to {nearest}, or change batch_sequences"
                )
        return self


@dataclass(frozen=True)
class CoreSetUp:
    """What all SAEs share."""

    folders: dict[str, Path]
    """By hook: activations and losses of the language model without any SAE."""
    rows: dict[str, NDArray[np.uint16]]
    """By hook: the held-out rows, bit patterns of bfloat16, as far as `ROWS_BYTES` hold them. Others are read again."""


def num_held_out_sequences(config: CoreConfig) -> int:
    """Sequences that are read."""
    return max(config.num_reconstruction_sequences, config.num_sparsity_sequences)


def num_steps(config: CoreConfig) -> int:
    """Batches that one SAE takes: losses and rows."""
    return (config.num_reconstruction_sequences + config.num_sparsity_sequences) // config.batch_sequences


def prepare(config: CoreConfig, context: BenchmarkContext) -> CoreSetUp:
    """Runs the language model once without any SAE and once with the hook set to zero, for each hook of the SAEs.

    Where there is none, as activations were made from known features, rows alone are read.
    """
    context.held_out_cache.check_hook(context.hooks[0])
    folders = {} if context.manifest.spec.is_synthetic else _prepare_losses(config, context)
    spec = context.manifest.spec
    numbers = np.arange(config.num_sparsity_sequences * spec.rows_per_sequence)
    fitting = ROWS_BYTES // (2 * spec.model.d_model * len(context.hooks))
    return CoreSetUp(
        folders,
        {hook: context.held_out_cache.rows(hook, numbers[:fitting], split="held_out") for hook in context.hooks},
    )


def _prepare_losses(config: CoreConfig, context: BenchmarkContext) -> dict[str, Path]:
    """By hook, the folder of the language model's activations and losses without any SAE."""
    from evaluate.language_model_loss import keep_losses
    from evaluate.upper_layers import Resumable

    check_memory(config, context)
    tokens = context.held_out[: config.num_reconstruction_sequences]
    folders = {}
    for hook in context.hooks:
        inputs: dict[str, JsonValue] = {
            **BENCHMARK.version.identity("version"),
            "language_model": context.manifest.spec.model.identifying(),
            "compute_dtype": context.manifest.spec.compute_dtype,
            "device": context.device.type,
            "hook": hook,
            "tokens_sha256": digest_of(tokens),
            "batch_sequences": config.batch_sequences,
            "num_excluded_positions": context.manifest.spec.num_excluded_positions,
        }
        with context.kept.open("core", inputs) as kept:
            if not kept.is_complete:
                keep_losses(
                    kept.path,
                    Resumable(context.language_model.plain, hook),
                    tokens,
                    ignored=context.language_model.ignored_token_ids,
                    num_excluded=context.manifest.spec.num_excluded_positions,
                    batch_sequences=config.batch_sequences,
                    device=context.device,
                    progress=context.progress,
                )
                kept.finish()
            folders[hook] = kept.path
    return folders


def memory_needed(config: CoreConfig, context: BenchmarkContext) -> int:
    """About how many bytes the language model needs, with the logits of a few positions at a time.

    Weights in the model's number format; `LOGIT_COPIES` of logits; and for a batch what a decoder layer of usual
    proportions holds at once: 16 numbers per channel (residual stream, attention, and an MLP four times as wide, gated)
    and attention scores in float32, twice.
    """
    from evaluate.language_model_loss import LOGIT_BYTES, LOGIT_COPIES
    from language_model.checkpoint import tensor_headers

    spec = context.manifest.spec
    itemsize = getattr(torch, spec.compute_dtype).itemsize
    weights = sum(math.prod(header.shape) for header in tensor_headers(context.model_folder).values()) * itemsize
    tokens = config.batch_sequences * spec.context_length
    heads = max(1, spec.model.d_model // 128)
    layer = tokens * (16 * spec.model.d_model * itemsize + 2 * 4 * heads * spec.context_length)
    return weights + LOGIT_COPIES * LOGIT_BYTES + layer


def check_memory(config: CoreConfig, context: BenchmarkContext) -> None:
    """A ValueError where less is free than the language model needs."""
    from compute.memory import available

    needed, free = memory_needed(config, context), available(context.device)
    if free is not None and needed > free:
        raise ValueError(
            f"expected {needed / 1e9:,.1f} GB of free memory on {context.device} for the language model and logits, "
            f"got {free / 1e9:,.1f} GB. Close other programs, lower evaluate.core.batch_sequences, or use a larger "
            "device (--device)"
        )


def digest_of(tokens: NDArray[np.uint32]) -> str:
    """SHA-256 (hex) of token windows."""
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<u4").tobytes()).hexdigest()


def measure(sae: EvaluatedSAE, config: CoreConfig, context: BenchmarkContext, shared: CoreSetUp) -> Measurement:
    """Runs the SAE on held-out rows and in the language model. Positions of BOS, EOS and padding never count.

    Metrics: explained_variance, mse, cosine_similarity, l0, l1 and num_rows, of rows within the limit of the norm that
    the SAE was trained with, and the same over all rows as `..._all_rows` (equal where there is no limit); of all rows
    l2_ratio, num_dead_latents, fraction_dead_latents, num_constant_latents; of all positions ce_loss_without_sae,
    ce_loss_with_sae, ce_loss_with_ablation (the hook set to zero everywhere), ce_loss_score = (ablation - with) /
    (ablation - without), and the three kl_div metrics alike; none of them without a language model.
    Cross-entropies are nats per token; predictions made from BOS are left out.
    """
    from evaluate.sae_bench import to_sae_bench

    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    losses: dict[str, float] = {}
    losses_without_one: dict[str, Array] = {}
    basis = {}
    if (folder := shared.folders.get(sae.card.hook)) is not None:
        losses, losses_without_one, num_predictions = _losses(adapted, config, context, folder)
        basis = {
            "predictions": num_predictions,
            "sequences_of_predictions": config.num_reconstruction_sequences,
        }
    found, of_sae_bench = measure_rows(
        adapted,
        context,
        shared.rows[sae.card.hook],
        num_sequences=config.num_sparsity_sequences,
        batch_sequences=config.batch_sequences,
        limit=sae.card.norm_limit,
    )
    figures = found.all_rows.figures()
    within = figures if found.within is None else found.within.figures()
    num_dead = int((figures.firing_counts == 0).sum())
    left_out = (
        within.without_one
        | {f"{name}_all_rows": values for name, values in figures.without_one.items()}
        | losses_without_one
    )
    return Measurement(
        metrics={
            **within.metrics,
            **{f"{name}_all_rows": value for name, value in figures.metrics.items()},
            "l2_ratio": of_sae_bench["shrinkage"]["l2_ratio"],
            "num_dead_latents": float(num_dead),
            "fraction_dead_latents": num_dead / len(figures.firing_counts),
            "num_constant_latents": float(figures.num_constant_latents),
            "num_rows": float(within.num_rows),
            "num_rows_all_rows": float(figures.num_rows),
            **losses,
        },
        basis={
            "rows": within.num_rows,
            "sequences": config.num_sparsity_sequences,
            **basis,
        },
        standard_errors=standard_errors(left_out),
        arrays=as_arrays(left_out),
        remarks=_remarks(within.metrics, num_dead, figures.num_constant_latents, len(figures.firing_counts), losses),
        details={
            "firing_counts": figures.firing_counts.tolist(),
            "top_rows_variance_share": figures.top_rows_variance_share,
            "outlier_rows": figures.outlier_rows.model_dump(),
            "sae_bench": _json(of_sae_bench),
        },
    )


def _remarks(
    rows: dict[str, float], num_dead: int, num_constant: int, d_sae: int, losses: dict[str, float]
) -> tuple[str, ...]:
    """What makes figures of this SAE no scores."""
    remarks = []
    if num_constant == d_sae:
        what = "never fire" if num_dead == d_sae else "have one and the same activation on every row"
        remarks.append(f"All {d_sae:,} latents {what}: this SAE says nothing about its input.")
    elif num_dead * 2 > d_sae:
        remarks.append(f"{num_dead:,} of {d_sae:,} latents never fire on the held-out rows.")
    if rows["explained_variance"] < 0.0:
        remarks.append(
            f"Explained variance is {rows['explained_variance']:.3g}: the mean activation would reconstruct better."
        )
    if losses.get("ce_loss_score", 0.0) < 0.0:
        remarks.append("The language model loses more with this SAE than with the hook set to zero.")
    return tuple(remarks)


def _losses(
    sae: "StoredSAE", config: CoreConfig, context: BenchmarkContext, folder: Path
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]], int]:
    """Losses under sae-bench's names, the same without each sequence, and the number of predictions."""
    from evaluate.language_model_loss import counted_positions, kept_sums, losses_with_sae
    from evaluate.upper_layers import Resumable

    tokens = context.held_out[: config.num_reconstruction_sequences]
    ignored = context.language_model.ignored_token_ids
    with_sae = losses_with_sae(
        folder,
        Resumable(context.language_model.plain, sae.cfg.hook_name),
        tokens,
        lambda rows: sae.decode(sae.encode(rows)),
        ignored=ignored,
        num_excluded=context.manifest.spec.num_excluded_positions,
        batch_sequences=config.batch_sequences,
        device=context.device,
        progress=context.progress,
    )
    counted = counted_positions(tokens, ignored, num_excluded=context.manifest.spec.num_excluded_positions)
    counts = np.stack([counted.loss.sum(axis=1), counted.divergence.sum(axis=1)], axis=1).astype(np.float64)
    sums = np.concatenate([counts, kept_sums(folder), with_sae], axis=1)
    if not sums[:, 0].any():
        raise ValueError("expected held-out text with tokens other than BOS, EOS and padding, got none")
    metrics = _from_totals(sums.sum(axis=0, keepdims=True))
    left_out = without_one(sums[sums[:, 1] > 0], _from_totals)
    return {name: float(value[0]) for name, value in metrics.items()}, left_out, int(sums[:, 0].sum())


def _from_totals(totals: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Metrics of totals (n, 7): positions of both kinds, losses without the SAE and ablated, and those with it."""
    predictions, positions, without, ablated, ablated_divergence, with_sae, divergence = totals.T
    return {
        "ce_loss_without_sae": without / predictions,
        "ce_loss_with_sae": with_sae / predictions,
        "ce_loss_with_ablation": ablated / predictions,
        "ce_loss_score": (ablated - with_sae) / (ablated - without),
        "kl_div_with_sae": divergence / positions,
        "kl_div_with_ablation": ablated_divergence / positions,
        "kl_div_score": (ablated_divergence - divergence) / ablated_divergence,
    }


def _json(scalars: dict[str, dict[str, float]]) -> JsonValue:
    """sae-bench's metrics as JSON: one that is not a number (a ratio of zeros) becomes null."""
    return {
        group: {name: value if math.isfinite(value) else None for name, value in values.items()}
        for group, values in scalars.items()
    }


BENCHMARK = Benchmark(
    name="core",
    config=CoreConfig,
    needs=frozenset({"language_model", "held_out_tokens", "held_out_rows"}),
    version=CodeVersion(
        number=6,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/core.py",
            "evaluate/held_out_rows.py",
            "evaluate/jackknife.py",
            "evaluate/language_model_loss.py",
            "evaluate/loaded_model.py",
            "evaluate/row_statistics.py",
            "evaluate/sae_bench.py",
            "evaluate/upper_layers.py",
            "language_model/checkpoint.py",
            "language_model/families.py",
            "language_model/hooks.py",
            "language_model/load.py",
            "language_model/sites.py",
            "language_model/special_tokens.py",
            "language_model/structure.py",
            "language_model/tokenizer.py",
            "store/cache/norm_limit.py",
            "store/cache/outlier_rows.py",
            "store/sae/weights.py",
        ),
        code_sha256="995a5ec1e854b1d4e39b2de22a7148662e4e56e2905b7ec424b9e85ce7463649",
    ),
    metrics={
        "explained_variance": "higher",
        "mse": "lower",
        "cosine_similarity": "higher",
        "l0": "neither",
        "l1": "neither",
        "l2_ratio": "neither",
        "num_dead_latents": "lower",
        "fraction_dead_latents": "lower",
        "num_constant_latents": "lower",
        "num_rows": "neither",
        "explained_variance_all_rows": "higher",
        "mse_all_rows": "lower",
        "cosine_similarity_all_rows": "higher",
        "l0_all_rows": "neither",
        "l1_all_rows": "neither",
        "num_rows_all_rows": "neither",
        "ce_loss_without_sae": "neither",
        "ce_loss_with_sae": "lower",
        "ce_loss_with_ablation": "neither",
        "ce_loss_score": "higher",
        "kl_div_with_sae": "lower",
        "kl_div_with_ablation": "neither",
        "kl_div_score": "higher",
    },
    units="sequences",
    rows_alone=True,
    optional=frozenset(
        {
            "ce_loss_without_sae",
            "ce_loss_with_sae",
            "ce_loss_with_ablation",
            "ce_loss_score",
            "kl_div_with_sae",
            "kl_div_with_ablation",
            "kl_div_score",
        }
    ),
    headlines=("explained_variance", "ce_loss_score"),
    measures="How well the SAE reconstructs held-out activations, how sparse it is, and what the language model loses "
    "when it runs on the reconstruction (sae-bench core).",
    prepare=prepare,
    measure=measure,
    num_held_out_sequences=num_held_out_sequences,
    num_steps=num_steps,
)
