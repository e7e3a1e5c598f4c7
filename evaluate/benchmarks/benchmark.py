"""What a benchmark is: what it declares, what it is given, what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from compute.code_version import CodeVersion
from store.record import Record
from store.sae.artefact import SAECard
from store.sae.weights import SAEWeights

if TYPE_CHECKING:
    from evaluate.benchmarks.context import BenchmarkContext

Better = Literal["higher", "lower", "neither"]
"""Which direction of a metric is the good one, as whoever published it means it."""

Need = Literal[
    "decoder", "language_model", "held_out_tokens", "held_out_rows", "labelled_text", "judge", "hub", "truth"
]
NEEDS: dict[Need, str] = {
    "decoder": "the SAE alone",
    "language_model": "the language model",
    "held_out_tokens": "held-out text of the activation cache",
    "held_out_rows": "held-out activations of the cache",
    "labelled_text": "texts with labels",
    "judge": "a judge that explains latents",
    "hub": "data that only a hub has",
    "truth": "the features that activations were made from",
}


@dataclass(frozen=True)
class EvaluatedSAE:
    """The SAE that a benchmark measures."""

    variant: str
    weights: SAEWeights
    card: SAECard


@dataclass(frozen=True)
class Measurement:
    """What a benchmark measured on one SAE."""

    metrics: dict[str, float]
    """The numbers that are compared between variants; all finite, under the names that the benchmark declares."""
    basis: dict[str, int] = field(default_factory=dict)
    """On how much the metrics rest: numbers of rows, sequences, texts, tasks, latents, seeds."""
    standard_errors: dict[str, float] = field(default_factory=dict)
    """Sampling error of some metrics, in their own units: one standard deviation."""
    remarks: tuple[str, ...] = ()
    """Whole sentences about results that are no scores: dead latents, chance level, a judge that always says yes."""
    details: dict[str, JsonValue] = field(default_factory=dict)
    """Distributions, the benchmark library's own output, and how the metrics were computed."""
    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """What is too much for JSON: kept beside the result as safetensors."""


@dataclass(frozen=True)
class NotRun:
    """Why a benchmark cannot run here, and what to do about it."""

    reason: str
    """A whole sentence."""
    advice: str
    """A whole sentence."""


class NotMeasurable(Exception):
    """Raised by `prepare` where the language model or the data rule the benchmark out for every SAE, which is then
    listed with the reason; by `measure` where this SAE cannot be measured (too few latents), and others can: it has no
    metrics, and the report says why. What only makes metrics doubtful is a remark beside them.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason} {advice}")
        self.why = NotRun(reason, advice)


def _always_runs(config: Any, context: "BenchmarkContext") -> NotRun | None:  # noqa: ANN401 - the benchmark's own record
    del config, context
    return None


def _nothing_shared(config: Any, context: "BenchmarkContext") -> None:  # noqa: ANN401 - the benchmark's own record
    del config, context


def _nothing_else(config: Any) -> dict[str, JsonValue]:  # noqa: ANN401 - the benchmark's own record
    del config
    return {}


def _one(config: Any) -> int:  # noqa: ANN401 - the benchmark's own record
    del config
    return 1


def _none(config: Any) -> int:  # noqa: ANN401 - the benchmark's own record
    del config
    return 0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: one file with its settings, its functions, and this.

    Importing the file is quick: whatever takes seconds to import (sae-bench, transformers) its functions import
    themselves, because the report reads what is declared here and runs none of it.
    """

    name: str
    config: type[Record]
    """Its settings, `evaluate.<name>` in params.yaml."""
    needs: frozenset[Need]
    version: CodeVersion
    """Raised by hand when the same inputs give other metrics: results of other versions are not reused."""
    metrics: Mapping[str, Better]
    """Their names in its results. Where results of several benchmarks meet they are `<benchmark>/<metric>`."""
    rows_alone: bool = False
    """Whether it measures what it can where activations were made from known features, without a language model."""
    optional: frozenset[str] = frozenset()
    """Metrics that some SAEs do not have, because they are too small or something cannot be measured on them."""
    headlines: tuple[str, ...]
    """Those that stand for it where many benchmarks are shown side by side, the first for all."""
    measures: str
    """What it measures, a sentence or two."""
    units: str = ""
    """What its metrics are means over and all SAEs share, such as sequences or tasks: its results keep the metrics
    without each of them (evaluate/jackknife.py), so that a difference of two SAEs has the error of its own. Empty where
    SAEs are measured on nothing that they share."""
    floors: Mapping[str, str] = field(default_factory=dict)
    """By metric, the one that says what it is without any skill: shown beside it wherever it is."""
    measure: Callable[[EvaluatedSAE, Any, "BenchmarkContext", Any], Measurement]
    """(SAE, settings, context, what `prepare` gave) -> what was measured. A ValueError says what cannot be used."""
    prepare: Callable[[Any, "BenchmarkContext"], Any] = _nothing_shared
    """(settings, context) -> what all SAEs share: data, probes, activations of the language model. Computed once per
    sweep and kept in `context.kept`; called again (here, or on a worker) it finds what is there. Raises
    NotMeasurable where the benchmark cannot be measured on any SAE, which only the set-up can tell (a data set that no
    hub gives, a language model that knows too little)."""
    not_run: Callable[[Any, "BenchmarkContext"], NotRun | None] = _always_runs
    """(settings, context) -> why it cannot run here. Quick: no model is loaded."""
    depends_on: Callable[[Any], dict[str, JsonValue]] = _nothing_else
    """(settings) -> what else its metrics depend on: digests of data sets, name and version of a judge. Quick."""
    num_held_out_sequences: Callable[[Any], int] = _none
    """(settings) -> how many held-out sequences it reads."""
    num_steps: Callable[[Any], int] = _one
    """(settings) -> steps of one SAE, for the progress bar; `context.progress` counts them."""
