"""What is known of one variant's latents: arrays of its result, matches, and explanations where there are some."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.latents.data import LatentData
from evaluate.latents.neighbours import all_matches
from evaluate.report.inputs import ReportInputs
from evaluate.results import BenchmarkResult, read_arrays
from store.sae.artefact import SAECard

Match = tuple[NDArray[np.int64], NDArray[np.float64]]
BENCHMARK = "latents"
JUDGED = "autointerp"


@dataclass(frozen=True)
class Explanation:
    """What a judge made of a latent."""

    text: str
    score: float | None


@dataclass(frozen=True)
class VariantLatents:
    """All latents of one variant."""

    name: str
    card: SAECard
    data: LatentData
    num_rows: int
    num_held_out: int
    """Sequences that are held out: those with smaller numbers. The others were trained on."""
    num_training: int
    context_length: int
    num_top: int
    before: int
    """Place of a context's own token in its window."""
    spelling: Mapping[int, str]
    matches: Mapping[str, Match]
    explanations: Mapping[int, Explanation]
    judge: str
    """Who explained them; nothing where nobody did."""

    @property
    def num_latents(self) -> int:
        """F."""
        return len(self.data.num_firing)

    @property
    def folder(self) -> str:
        """Name of its folder: its own where any file system and any address can have that, else a digest of it."""
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,99}", self.name):
            return self.name
        return f"_{hashlib.sha256(self.name.encode()).hexdigest()[:16]}"

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """(F,) share of rows on which a latent is above zero."""
        return self.data.num_firing / self.num_rows

    @cached_property
    def mean_activation(self) -> NDArray[np.float64]:
        """(F,) mean over the rows on which it is above zero; 0 for a dead one."""
        mean: NDArray[np.float64] = self.data.sum / np.maximum(self.data.num_firing, 1)
        return mean

    def nearest(self, latent: int) -> list[tuple[int, float]]:
        """The nearest other latents."""
        pairs = zip(self.data.nearest[latent].tolist(), self.data.nearest_cosine[latent].tolist(), strict=True)
        return list(pairs)

    def peaks(self, latent: int) -> list[tuple[str, int]]:
        """The tokens on which its top contexts peak, the commonest first."""
        tokens = self.data.tokens[latent, : self.num_top, self.before]
        return Counter(self.spelling[id_] for id_ in tokens.tolist() if id_ >= 0).most_common()


def views(inputs: ReportInputs, results_folder: Path) -> dict[str, VariantLatents]:
    """By variant; empty where the benchmark was not run. Raises DamagedFile where arrays are missing or others."""
    results = inputs.results.get(BENCHMARK, {})
    matches = all_matches({name: inputs.decoders[name] for name in results})
    judged = inputs.results.get(JUDGED, {})
    return {
        name: _view(
            result,
            inputs.cards[name],
            LatentData.of(read_arrays(results_folder / BENCHMARK, result)),
            matches[name],
            judged.get(name),
        )
        for name, result in results.items()
    }


def _view(
    result: BenchmarkResult,
    card: SAECard,
    data: LatentData,
    matches: Mapping[str, Match],
    judged: BenchmarkResult | None,
) -> VariantLatents:
    details: Any = result.details
    settings: Any = result.inputs["settings"]
    return VariantLatents(
        name=result.variant,
        card=card,
        data=data,
        num_rows=details["num_rows"],
        num_held_out=details["sequences"]["held_out"],
        num_training=details["sequences"]["training"],
        context_length=details["context_length"],
        num_top=settings["num_top_contexts"],
        before=settings["tokens_before"],
        spelling={int(id_): text for id_, text in details["tokens"].items()},
        matches=matches,
        explanations=explanations(judged),
        judge=_judge(judged),
    )


def _judge(result: BenchmarkResult | None) -> str:
    judge = result.details.get("judge") if result is not None else None
    return str(judge.get("name", "")) if isinstance(judge, dict) else ""


def explanations(result: BenchmarkResult | None) -> dict[int, Explanation]:
    """What a judge said of single latents: `details.latents`, {explanation, score} by number; else nothing."""
    latents = result.details.get("latents") if result is not None else None
    if not isinstance(latents, dict):
        return {}
    found = {}
    for number, said in latents.items():
        if number.isdecimal() and isinstance(said, dict) and isinstance(said.get("explanation"), str):
            score = said.get("score")
            is_number = isinstance(score, int | float) and not isinstance(score, bool)
            found[int(number)] = Explanation(str(said["explanation"]), float(score) if is_number else None)  # type: ignore[arg-type]
    return found
