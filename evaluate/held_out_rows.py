"""The cache's held-out rows in the places of SAELens's store and of the language model, as sae-bench `core` reads them.

sae-bench's own figures over all rows come from its `run_evals`; the SAE that it is given also feeds our statistics, so
that each row is encoded once.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluate.benchmarks.context import BenchmarkContext
from evaluate.row_statistics import RowStatistics
from store.cache.norm_limit import NormLimit

if TYPE_CHECKING:
    from torch import Tensor

    from evaluate.sae_bench import StoredSAE

NO_ROW = -1
"""Stands for the token of a position without a row, in tokens of which sae-bench reads only whether to ignore them."""


class HeldOutRows:
    """Held-out tokens and rows in batches, in the places of SAELens's store and of the language model."""

    def __init__(
        self, context: BenchmarkContext, hook: str, in_memory: NDArray[np.uint16], *, num_sequences: int
    ) -> None:
        self.context_size = context.manifest.spec.context_length
        self._tokens = context.held_out[:num_sequences]
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


@dataclass(frozen=True)
class MeasuredRows:
    """Statistics of all rows, and of those within the limit of the norm, where the SAE was trained within one."""

    all_rows: RowStatistics
    within: RowStatistics | None
    limit: NormLimit | None

    def add(self, x: "Tensor", latents: "Tensor", reconstruction: "Tensor", sequence: "Tensor") -> None:
        """One batch, as `RowStatistics.add` takes it."""
        self.all_rows.add(x, latents, reconstruction, sequence)
        if self.within is not None and self.limit is not None:
            kept = x.double().square().sum(dim=1) < self.limit.squared_norm
            self.within.add(x[kept], latents[kept], reconstruction[kept], sequence[kept])


class CountedSAE:
    """An SAE whose encode and decode also feed the statistics, so that each row is encoded once."""

    def __init__(self, sae: "StoredSAE", rows: HeldOutRows, found: "MeasuredRows", context: BenchmarkContext) -> None:
        self._sae, self._rows, self._found, self._context = sae, rows, found, context
        self._ignored = np.array(sorted(context.ignored_token_ids))
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
        self._found.add(self._x[counts], self._latents[counts], output[counts], of_row[counts])
        self._context.progress(1)
        return output


@torch.no_grad()
def measure_rows(
    sae: "StoredSAE",
    context: BenchmarkContext,
    in_memory: NDArray[np.uint16],
    *,
    num_sequences: int,
    batch_sequences: int,
    limit: NormLimit | None,
) -> tuple["MeasuredRows", dict[str, dict[str, float]]]:
    """The statistics of the held-out rows, and sae-bench's own figures over all of them.

    Args:
        in_memory: the first rows of the hook, bit patterns of bfloat16; the others are read.
        num_sequences, batch_sequences: how many, and how many at once.
        limit: of the norm, within which the SAE was trained.
    """
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import run_evals

    d_model, d_sae = sae.W_enc.shape

    def statistics() -> RowStatistics:
        return RowStatistics(
            num_sequences=num_sequences,
            most_rows=num_sequences * context.manifest.spec.context_length,
            d_model=d_model,
            d_sae=d_sae,
            device=context.device,
        )

    found = MeasuredRows(statistics(), None if limit is None else statistics(), limit)
    rows = HeldOutRows(context, sae.cfg.hook_name, in_memory, num_sequences=num_sequences)
    settings = CoreEvalConfig(
        model_name=sae.cfg.model_name,
        batch_size_prompts=batch_sequences,
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=num_sequences // batch_sequences,
        context_size=rows.context_size,
        compute_kl=False,
        compute_ce_loss=False,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
    )
    ignored = {*context.ignored_token_ids, NO_ROW}
    scalars, _ = run_evals(CountedSAE(sae, rows, found, context), rows, rows, settings, ignore_tokens=ignored)
    del scalars["token_stats"]  # of the reconstruction that is not run
    return found, {group: {name: float(value) for name, value in values.items()} for group, values in scalars.items()}
