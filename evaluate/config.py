"""Settings of the evaluation: one record per benchmark, named as the benchmark is."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from store.record import Record

PositiveCount = Annotated[int, Field(gt=0)]


class CoreConfig(Record):
    """How much held-out text the `core` benchmark reads."""

    num_reconstruction_sequences: PositiveCount
    """Held-out sequences on which the language model runs without the SAE, with it, and with the hook set to zero."""
    num_sparsity_sequences: PositiveCount
    """Held-out sequences for explained variance, L0, L1, norms and firing counts."""
    batch_sequences: PositiveCount
    """Sequences per forward pass; both numbers above must be multiples of it. Logits take this many times context
    length times vocabulary size numbers, three times over."""

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


class GeometryConfig(Record):
    """How finely the `geometry` benchmark bins cosines."""

    num_bins: Annotated[int, Field(ge=10, le=1000)]
    """Bins of the histogram of pairwise cosines, from -1 to 1."""


class EvaluateConfig(Record):
    """One record per benchmark; every benchmark named here is run on every variant."""

    core: CoreConfig
    """Reconstruction, sparsity and the language model's loss with the SAE in place (sae-bench `core`)."""
    geometry: GeometryConfig
    """Angles between decoder directions (ours; needs no language model)."""
