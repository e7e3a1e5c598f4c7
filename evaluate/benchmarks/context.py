"""What a benchmark is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from store.sae.artefact import SAECard
from store.sae.weights import SAEWeights


@dataclass(frozen=True)
class EvaluatedSAE:
    """The SAE that a benchmark measures."""

    variant: str
    weights: SAEWeights
    card: SAECard


@dataclass(frozen=True)
class BenchmarkContext:
    """What benchmarks need besides the SAE: the language model and text that training never saw. Set up once."""

    bridge: Any
    """The language model as a transformer_lens TransformerBridge."""
    tokens: NDArray[np.uint32]
    """Held-out sequences, (sequences, context), each beginning with BOS."""
    ignored_token_ids: frozenset[int]
    """BOS, EOS and padding: positions that SAEs were not trained on and that no metric counts."""
    device: torch.device
    on_batch: Callable[[], object]
    """Called after every batch, for the progress bar."""


@dataclass(frozen=True)
class Measurement:
    """What a benchmark measured on one SAE."""

    metrics: dict[str, float]
    """The numbers that are compared between variants; all finite."""
    details: dict[str, JsonValue] = field(default_factory=dict)
    """Distributions, the benchmark library's own output, and how the metrics were computed."""
