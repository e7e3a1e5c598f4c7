"""The `core` benchmark: sae-bench `core` on held-out text, the language model running with and without the SAE.

`run_evals` is called directly, because sae-bench's own loop over SAEs (`multiple_evals`) logs exceptions and goes on.
It is called twice, once for the language model's loss and once for sparsity, so that both begin at the first held-out
sequence: its reset between the two parts does not rewind the text.

Three metrics of sae-bench 0.6.0 are replaced by a plain float64 pass over the same rows, and kept in `details`:

* explained_variance there is measured about zero and not about the mean (SAELens issue 659, fixed there since): an SAE
  that outputs the mean activation would score near 1. Here it is 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2.
* mse there is divided by the number of rows in a batch (SAELens pull request 711). Here it is the mean of
  ||x - x_hat||^2 over rows, in the units of the raw activations.
* cossim is NaN where a reconstruction is zero. Here such a row counts 0.

Losses and divergences are computed from logits in float32 whatever the language model runs in: in bfloat16 their mean
would come in steps of about 0.4 %.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor

from evaluate.benchmarks.context import BenchmarkContext, EvaluatedSAE, Measurement
from evaluate.config import CoreConfig
from evaluate.sae_bench import StoredSAE, to_sae_bench
from store.cache.outlier_rows import OutlierRows, outlier_rows

TOP_SHARE = 0.01
"""Of the rows: those of largest norm, whose share of the variance is told and among which outliers are sought."""


def num_batches(config: CoreConfig) -> int:
    """Batches that one SAE takes, for the progress bar: loss, sparsity, and the plain pass over the sparsity text."""
    return (config.num_reconstruction_sequences + 2 * config.num_sparsity_sequences) // config.batch_sequences


def measure(sae: EvaluatedSAE, config: CoreConfig, context: BenchmarkContext | None) -> Measurement:
    """Runs the SAE in the language model. Positions of BOS, EOS and padding keep their activations and never count.

    Metrics: explained_variance, mse, cosine_similarity, l0, l1, l2_ratio, num_dead_latents, fraction_dead_latents,
    num_constant_latents, num_rows; ce_loss_without_sae, ce_loss_with_sae, ce_loss_with_ablation (the hook set to zero
    everywhere), ce_loss_score = (ablation - with) / (ablation - without), and the three kl_div metrics alike.
    Cross-entropies are nats per token.
    """
    assert context is not None
    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    loss = _sae_bench(adapted, context, config, part="loss")
    rows = _sae_bench(adapted, context, config, part="rows")
    plain = plain_statistics(adapted, context, config)
    behaviour, performance = loss["model_behavior_preservation"], loss["model_performance_preservation"]
    num_dead = int((plain.firing_counts == 0).sum())
    return Measurement(
        metrics={
            "explained_variance": plain.explained_variance,
            "mse": plain.mse,
            "cosine_similarity": plain.cosine_similarity,
            "l0": rows["sparsity"]["l0"],
            "l1": rows["sparsity"]["l1"],
            "l2_ratio": rows["shrinkage"]["l2_ratio"],
            "num_dead_latents": float(num_dead),
            "fraction_dead_latents": num_dead / len(plain.firing_counts),
            "num_constant_latents": float(plain.num_constant_latents),
            "num_rows": float(plain.num_rows),
            **performance,
            **behaviour,
        },
        details={
            "firing_counts": plain.firing_counts.tolist(),
            "top_rows_variance_share": plain.top_rows_variance_share,
            "outlier_rows": plain.outlier_rows.model_dump(),
            "sae_bench": _json({"reconstruction": loss, "sparsity": rows}),
        },
    )


class HeldOutStore(ActivationsStore):
    """SAELens's store over our tokens. It never starts the text over: a second reading would count rows twice."""

    on_batch: Any = None

    def get_batch_tokens(
        self, batch_size: int | None = None, raise_at_epoch_end: bool = True, move_to_model_device: bool = True
    ) -> Tensor:
        """The next batch of windows, (sequences, context), exactly as they are in the cache."""
        try:
            tokens: Tensor = super().get_batch_tokens(batch_size, True, move_to_model_device)
        except StopIteration as error:
            raise ValueError("expected enough held-out sequences for the benchmark, got fewer") from error
        self.on_batch()
        return tokens


class Float32Losses:
    """The language model as `run_evals` calls it, with logits and losses per token in float32."""

    def __init__(self, bridge: Any) -> None:  # noqa: ANN401 - a TransformerBridge
        self._bridge = bridge

    def __call__(self, tokens: Tensor, *, return_type: str, loss_per_token: bool) -> tuple[Tensor, Tensor]:
        """Logits (sequences, context, vocabulary) and losses (sequences, context - 1), nats."""
        return self.run_with_hooks(tokens, return_type=return_type, fwd_hooks=[], loss_per_token=loss_per_token)

    def run_with_hooks(
        self, tokens: Tensor, *, return_type: str, fwd_hooks: list[tuple[str, Any]], loss_per_token: bool
    ) -> tuple[Tensor, Tensor]:
        """The same with activations replaced by hooks."""
        assert return_type == "both"
        assert loss_per_token
        logits: Tensor = self._bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=fwd_hooks).float()
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        return logits, losses

    def run_with_cache(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - passed on as they are
        """Activations, in the language model's own dtype."""
        return self._bridge.run_with_cache(*arguments, **keywords)


def _sae_bench(
    sae: StoredSAE, context: BenchmarkContext, config: CoreConfig, *, part: Literal["loss", "rows"]
) -> dict[str, dict[str, float]]:
    """One call of sae-bench's `run_evals`: the language model's loss, or sparsity and norms of rows."""
    loss = part == "loss"
    num_sequences = config.num_reconstruction_sequences if loss else config.num_sparsity_sequences
    context_length = context.tokens.shape[1]
    # A tokens column is taken as it is: BOS is neither added nor removed. The iterable form hands over plain lists.
    windows = datasets.Dataset.from_dict({"tokens": context.tokens[:num_sequences].astype(np.int64)})
    store = HeldOutStore.from_sae(
        context.bridge,
        sae,
        windows.to_iterable_dataset(),
        context_size=context_length,
        store_batch_size_prompts=config.batch_sequences,
        total_tokens=num_sequences * context_length,
        device=str(context.device),
    )
    store.on_batch = context.on_batch
    num_batches = num_sequences // config.batch_sequences
    settings = CoreEvalConfig(
        model_name=sae.cfg.model_name,
        batch_size_prompts=config.batch_sequences,
        n_eval_reconstruction_batches=num_batches,
        n_eval_sparsity_variance_batches=num_batches,
        context_size=context_length,
        compute_kl=loss,
        compute_ce_loss=loss,
        compute_l2_norms=not loss,
        compute_sparsity_metrics=not loss,
        compute_variance_metrics=not loss,
        exclude_special_tokens_from_reconstruction=True,
    )
    model = Float32Losses(context.bridge)
    scalars, _ = run_evals(sae, store, model, settings, ignore_tokens=set(context.ignored_token_ids))
    return {group: {name: float(value) for name, value in values.items()} for group, values in scalars.items()}


@dataclass(frozen=True)
class PlainStatistics:
    """Sums over the held-out rows, in float64."""

    num_rows: int
    explained_variance: float
    mse: float
    cosine_similarity: float
    firing_counts: Tensor
    """Rows on which each latent is above zero, (F,) int64."""
    num_constant_latents: int
    """Latents with one and the same activation on every row; the dead ones are among them."""
    top_rows_variance_share: float
    """What the `TOP_SHARE` of rows with the largest norms hold of the summed squared deviation from the mean."""
    outlier_rows: OutlierRows
    """Among those rows."""


@torch.no_grad()
def plain_statistics(sae: StoredSAE, context: BenchmarkContext, config: CoreConfig) -> PlainStatistics:
    """Explained variance about the mean, mean squared error, cosine similarity and firing counts; see the top."""
    d_model, d_sae = sae.W_enc.shape
    device = context.device
    row_sum = torch.zeros(d_model, dtype=torch.float64, device=device)
    counts = torch.zeros(d_sae, dtype=torch.int64, device=device)
    least = torch.full((d_sae,), math.inf, device=device)
    most = torch.full((d_sae,), -math.inf, device=device)
    num_rows, square_sum, residual_sum, cosine_sum = 0, 0.0, 0.0, 0.0
    most_top_rows = num_top_rows(config.num_sparsity_sequences * context.tokens.shape[1])
    norms, top = [], torch.empty(0, d_model, device=device)
    for x in _held_out_rows(sae, context, config):
        latents = sae.encode(x)
        wide, reconstruction = x.double(), sae.decode(latents).double()
        num_rows += len(x)
        row_sum += wide.sum(dim=0)
        square_sum += float(wide.square().sum())
        residual_sum += float((wide - reconstruction).square().sum())
        cosine_sum += float(torch.cosine_similarity(wide, reconstruction, dim=-1).sum())
        counts += (latents > 0).sum(dim=0)
        least = torch.minimum(least, latents.amin(dim=0))
        most = torch.maximum(most, latents.amax(dim=0))
        norms.append(wide.norm(dim=1))
        top = largest(torch.cat([top.to(x.dtype), x]), most_top_rows)
    if num_rows == 0:
        raise ValueError("expected held-out text with tokens other than BOS, EOS and padding, got none")
    variance_sum = square_sum - float(row_sum.square().sum()) / num_rows
    if variance_sum <= 0.0:
        raise ValueError(f"expected held-out activations that vary, got {num_rows} rows that are all the same")
    mean, top = row_sum / num_rows, largest(top, num_top_rows(num_rows)).double()
    return PlainStatistics(
        num_rows=num_rows,
        explained_variance=1.0 - residual_sum / variance_sum,
        mse=residual_sum / num_rows,
        cosine_similarity=cosine_sum / num_rows,
        firing_counts=counts.cpu(),
        num_constant_latents=int((least == most).sum()),
        top_rows_variance_share=float((top - mean).square().sum()) / variance_sum,
        outlier_rows=outlier_rows(torch.cat(norms), top, mean=mean, squared_deviation=variance_sum),
    )


def num_top_rows(num_rows: int) -> int:
    """`TOP_SHARE` of them, at least one."""
    return math.ceil(TOP_SHARE * num_rows)


def largest(rows: Tensor, count: int) -> Tensor:
    """Up to `count` rows (n, d) of largest norm."""
    return rows[rows.double().norm(dim=1).topk(min(count, len(rows))).indices]


def _held_out_rows(sae: StoredSAE, context: BenchmarkContext, config: CoreConfig) -> Iterator[Tensor]:
    """Activations at the hook without the ignored positions, (rows, d) per batch."""
    hook = sae.cfg.hook_name
    ignored = torch.tensor(sorted(context.ignored_token_ids), device=context.device)
    for batch in _batches(context.tokens[: config.num_sparsity_sequences], config.batch_sequences):
        tokens = torch.from_numpy(batch).to(context.device)
        _, cache = context.bridge.run_with_cache(
            tokens, prepend_bos=False, names_filter=[hook], stop_at_layer=sae.cfg.hook_layer + 1
        )
        context.on_batch()
        yield cache[hook][~torch.isin(tokens, ignored)]


def _batches(tokens: NDArray[np.uint32], batch_sequences: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(tokens), batch_sequences):
        yield tokens[start : start + batch_sequences].astype(np.int64)


def _json(groups: dict[str, dict[str, dict[str, float]]]) -> JsonValue:
    """sae-bench's metrics as JSON: one that is not a number (a ratio of zeros) becomes null."""
    return {
        part: {
            group: {name: value if math.isfinite(value) else None for name, value in values.items()}
            for group, values in scalars.items()
        }
        for part, scalars in groups.items()
    }
