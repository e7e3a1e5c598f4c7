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
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, JsonValue, model_validator

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.bootstrap import standard_errors
from evaluate.row_statistics import RowStatistics
from store.record import Record

if TYPE_CHECKING:
    from torch import Tensor

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
    """Runs the language model once without any SAE and once with the hook set to zero, for each hook of the SAEs."""
    from evaluate.language_model_loss import keep_losses
    from evaluate.upper_layers import Resumable

    context.held_out_cache.check_hook(context.hooks[0])
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
    spec = context.manifest.spec
    numbers = np.arange(config.num_sparsity_sequences * spec.rows_per_sequence)
    fitting = ROWS_BYTES // (2 * spec.model.d_model * len(context.hooks))
    return CoreSetUp(
        folders,
        {hook: context.held_out_cache.rows(hook, numbers[:fitting], split="held_out") for hook in context.hooks},
    )


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

    Metrics: explained_variance, mse, cosine_similarity, l0, l1, l2_ratio, num_dead_latents, fraction_dead_latents,
    num_constant_latents, num_rows; ce_loss_without_sae, ce_loss_with_sae, ce_loss_with_ablation (the hook set to zero
    everywhere), ce_loss_score = (ablation - with) / (ablation - without), and the three kl_div metrics alike.
    Cross-entropies are nats per token; predictions made from BOS are left out.
    """
    from evaluate.sae_bench import to_sae_bench

    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    losses, loss_errors, num_predictions = _losses(adapted, config, context, shared.folders[sae.card.hook])
    statistics, of_sae_bench = _rows(adapted, config, context, shared.rows[sae.card.hook])
    figures = statistics.figures()
    num_dead = int((figures.firing_counts == 0).sum())
    return Measurement(
        metrics={
            **figures.metrics,
            "l0": of_sae_bench["sparsity"]["l0"],
            "l1": of_sae_bench["sparsity"]["l1"],
            "l2_ratio": of_sae_bench["shrinkage"]["l2_ratio"],
            "num_dead_latents": float(num_dead),
            "fraction_dead_latents": num_dead / len(figures.firing_counts),
            "num_constant_latents": float(figures.num_constant_latents),
            "num_rows": float(figures.num_rows),
            **losses,
        },
        basis={
            "rows": figures.num_rows,
            "sequences": config.num_sparsity_sequences,
            "predictions": num_predictions,
            "sequences_of_predictions": config.num_reconstruction_sequences,
        },
        standard_errors=figures.standard_errors | loss_errors,
        remarks=_remarks(figures.metrics, num_dead, figures.num_constant_latents, len(figures.firing_counts), losses),
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
    if losses["ce_loss_score"] < 0.0:
        remarks.append("The language model loses more with this SAE than with the hook set to zero.")
    return tuple(remarks)


def _losses(
    sae: "StoredSAE", config: CoreConfig, context: BenchmarkContext, folder: Path
) -> tuple[dict[str, float], dict[str, float], int]:
    """Losses under sae-bench's names, their standard errors, and the number of predictions."""
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
    errors = standard_errors(sums, _from_totals)
    return {name: float(value[0]) for name, value in metrics.items()}, errors, int(sums[:, 0].sum())


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


NO_ROW = -1
"""Stands for the token of a position without a row, in tokens of which sae-bench reads only whether to ignore them."""


class HeldOutRows:
    """Held-out tokens and rows in batches, in the places of SAELens's store and of the language model."""

    def __init__(self, config: CoreConfig, context: BenchmarkContext, hook: str, in_memory: NDArray[np.uint16]) -> None:
        self.context_size = context.manifest.spec.context_length
        self.store_batch_size_prompts = config.batch_sequences
        self._tokens = context.held_out[: config.num_sparsity_sequences]
        self._context, self._hook, self._in_memory = context, hook, in_memory
        self._next = 0
        self.sequences: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """Numbers of the sequences of the present batch."""

    def get_batch_tokens(self, batch_size: int) -> "Tensor":
        """The next batch, (sequences, context), with `NO_ROW` where the cache has no row.

        The text is never started over: a second reading would count twice.
        """
        if self._next + batch_size > len(self._tokens):
            raise ValueError("expected enough held-out sequences for the benchmark, got fewer")
        self.sequences = np.arange(self._next, self._next + batch_size)
        self._next += batch_size
        tokens = self._tokens[self.sequences].astype(np.int64)
        tokens[:, : self._context.manifest.spec.num_excluded_positions] = NO_ROW
        return torch.from_numpy(tokens).to(self._context.device)

    def run_with_cache(self, tokens: "Tensor", **_: Any) -> tuple[None, dict[str, "Tensor"]]:  # noqa: ANN401
        """The rows of the present batch, (sequences, context, d) float32; zero where the cache has none, as at BOS."""
        spec = self._context.manifest.spec
        per_sequence = spec.rows_per_sequence
        numbers = (self.sequences[:, None] * per_sequence + np.arange(per_sequence)).reshape(-1)
        if numbers[-1] < len(self._in_memory):
            bits = self._in_memory[numbers[0] : numbers[-1] + 1]
        else:
            bits = self._context.held_out_cache.rows(self._hook, numbers, split="held_out")
        rows = torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))
        activations = torch.zeros(*tokens.shape, spec.model.d_model)
        activations[:, spec.context_length - per_sequence :] = rows.reshape(len(tokens), per_sequence, -1)
        return None, {self._hook: activations.to(self._context.device)}


class CountedSAE:
    """An SAE whose encode and decode also feed the statistics, so that each row is encoded once."""

    def __init__(
        self, sae: "StoredSAE", rows: HeldOutRows, statistics: RowStatistics, context: BenchmarkContext
    ) -> None:
        self._sae, self._rows, self._statistics, self._context = sae, rows, statistics, context
        self._ignored = np.array(sorted(context.language_model.ignored_token_ids))
        self.cfg, self.device = sae.cfg, sae.device

    def encode(self, x: "Tensor") -> "Tensor":
        """Latents (sequences, context, F) of activations (sequences, context, d)."""
        self._x, self._latents = x, self._sae.encode(x)
        return self._latents

    def decode(self, latents: "Tensor") -> "Tensor":
        """Reconstructions (sequences, context, d) of the latents that were encoded last."""
        output = self._sae.decode(latents)
        sequences = self._rows.sequences
        counted = ~np.isin(self._context.held_out[sequences], self._ignored)
        counted[:, : self._context.manifest.spec.num_excluded_positions] = False
        counts = torch.from_numpy(counted).to(output.device)
        of_row = torch.from_numpy(np.repeat(sequences[:, None], counts.shape[1], axis=1)).to(output.device)
        self._statistics.add(self._x[counts], self._latents[counts], output[counts], of_row[counts])
        self._context.progress(1)
        return output


@torch.no_grad()
def _rows(
    sae: "StoredSAE", config: CoreConfig, context: BenchmarkContext, in_memory: NDArray[np.uint16]
) -> tuple[RowStatistics, dict[str, dict[str, float]]]:
    """The statistics of the held-out rows, and sae-bench's own figures over the same rows."""
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import run_evals

    d_model, d_sae = sae.W_enc.shape
    statistics = RowStatistics(
        num_sequences=config.num_sparsity_sequences,
        most_rows=config.num_sparsity_sequences * context.manifest.spec.context_length,
        d_model=d_model,
        d_sae=d_sae,
        device=context.device,
    )
    rows = HeldOutRows(config, context, sae.cfg.hook_name, in_memory)
    num_batches = config.num_sparsity_sequences // config.batch_sequences
    settings = CoreEvalConfig(
        model_name=sae.cfg.model_name,
        batch_size_prompts=config.batch_sequences,
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=num_batches,
        context_size=rows.context_size,
        compute_kl=False,
        compute_ce_loss=False,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
    )
    ignored = {*context.language_model.ignored_token_ids, NO_ROW}
    scalars, _ = run_evals(CountedSAE(sae, rows, statistics, context), rows, rows, settings, ignore_tokens=ignored)
    del scalars["token_stats"]  # of the reconstruction that is not run
    return statistics, {
        group: {name: float(value) for name, value in values.items()} for group, values in scalars.items()
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
        number=3,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/core.py",
            "evaluate/bootstrap.py",
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
            "store/cache/outlier_rows.py",
            "store/sae/weights.py",
        ),
        code_sha256="3537cb95754a0e3e1020aabf8e91f676a78f3337d7fd9c4deee0957082e18876",
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
        "ce_loss_without_sae": "neither",
        "ce_loss_with_sae": "lower",
        "ce_loss_with_ablation": "neither",
        "ce_loss_score": "higher",
        "kl_div_with_sae": "lower",
        "kl_div_with_ablation": "neither",
        "kl_div_score": "higher",
    },
    headlines=("explained_variance", "ce_loss_score"),
    measures="How well the SAE reconstructs held-out activations, how sparse it is, and what the language model loses "
    "when it runs on the reconstruction (sae-bench core).",
    prepare=prepare,
    measure=measure,
    num_held_out_sequences=num_held_out_sequences,
    num_steps=num_steps,
)
