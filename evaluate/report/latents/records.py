"""Latents as JSON for the page's script, which sets every text as text. Token texts are numbers of a list."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.latents.collect import NUM_QUANTILES
from evaluate.report.latents.view import VariantLatents

CHUNK = 64
"""Latents in a file of reports/latents/."""
_DIGITS = 3


class Vocabulary:
    """Texts by number, in the order in which they were first asked for."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text."""
        return self._numbers.setdefault(text, len(self._numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    def texts(self, start: int = 0) -> list[str]:
        """All of them, or those from a number on."""
        return list(self._numbers)[start:]

    def forget(self, start: int) -> None:
        """Takes back the texts from a number on."""
        for text in self.texts(start):
            del self._numbers[text]


def inline_json(value: object) -> str:
    """JSON that can stand in a script element or a script file: no markup, no line separator can end it early."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def rounded(values: NDArray[Any] | float) -> Any:  # noqa: ANN401 - nested lists of numbers
    """Numbers with three significant digits, whole ones without a point, as nested lists."""
    wide = np.asarray(values, dtype=np.float64)
    exponent = np.floor(np.log10(np.abs(wide), where=wide != 0, out=np.zeros_like(wide)))
    shift = (_DIGITS - 1 - exponent).astype(int)
    up, down = 10.0 ** np.maximum(shift, 0), 10.0 ** np.maximum(-shift, 0)
    return _shortest((np.round(wide * up / down) / up * down).tolist())


def _shortest(value: Any) -> Any:  # noqa: ANN401 - nested lists of numbers
    if isinstance(value, list):
        return [_shortest(item) for item in value]
    return int(value) if value == int(value) else value


def index(latents: VariantLatents, vocabulary: Vocabulary) -> dict[str, Any]:
    """What search and sorting need of every latent, column by column."""
    numbers = range(latents.num_latents)
    said = [latents.explanations.get(number) for number in numbers]
    nearest = latents.data.nearest_cosine
    columns: dict[str, Any] = {
        "density": rounded(latents.density),
        "largest": rounded(latents.data.largest),
        "cosine": rounded(nearest[:, 0]) if nearest.shape[1] else [0] * latents.num_latents,
        "peaks": [[vocabulary.number(text) for text, _ in latents.peaks(number)] for number in numbers],
        "raised": [[vocabulary.number(latents.spelling[id_]) for id_ in ids] for ids in latents.data.raised.tolist()],
    }
    if any(said):
        columns["score"] = [None if one is None or one.score is None else rounded(one.score) for one in said]
        columns["said"] = ["" if one is None else one.text for one in said]
    return columns


def detail(latents: VariantLatents, number: int, vocabulary: Vocabulary, variants: Sequence[str]) -> dict[str, Any]:
    """All that the page shows of one latent. Variants are numbers of the list `variants`."""
    data = latents.data
    first_quantile = latents.num_top
    per_quantile = (data.places.shape[1] - first_quantile) // NUM_QUANTILES
    quantiles = [
        {
            "range": rounded(data.quantile_ranges[number, quantile]),
            "contexts": [
                found
                for slot in range(per_quantile)
                if (found := context(latents, number, first_quantile + quantile * per_quantile + slot, vocabulary))
            ],
        }
        for quantile in reversed(range(NUM_QUANTILES))
    ]
    tops = (context(latents, number, slot, vocabulary) for slot in range(latents.num_top))
    return {
        "firing": int(data.num_firing[number]),
        "density": rounded(latents.density[number]),
        "mean": rounded(latents.mean_activation[number]),
        "largest": rounded(data.largest[number]),
        "nearest": [[other, round(cosine, 3)] for other, cosine in latents.nearest(number)],
        "matches": [
            [variants.index(name), int(numbers[number]), round(float(cosines[number]), 3)]
            for name, (numbers, cosines) in latents.matches.items()
        ],
        "raised": _effects(latents, data.raised[number], data.raised_by[number], vocabulary),
        "lowered": _effects(latents, data.lowered[number], data.lowered_by[number], vocabulary),
        "bins": [rounded(data.bin_width[number]), _without_trailing_zeros(data.bin_counts[number].tolist())],
        "top": [found for found in tops if found],
        "quantiles": quantiles if any(quantile["contexts"] for quantile in quantiles) else [],
    }


def context(latents: VariantLatents, number: int, slot: int, vocabulary: Vocabulary) -> list[Any] | None:
    """[sequence, position, place of the own token, tokens, activations] of one context; None where there is none."""
    data = latents.data
    place = int(data.places[number, slot])
    if place < 0:
        return None
    tokens = data.tokens[number, slot]
    inside = np.flatnonzero(tokens >= 0)
    sequence, position = divmod(place, latents.context_length)
    return [
        sequence,
        position,
        int(latents.before - inside[0]),
        [vocabulary.number(latents.spelling[id_]) for id_ in tokens[inside].tolist()],
        rounded(data.windows[number, slot, inside]),
    ]


def _effects(
    latents: VariantLatents, ids: NDArray[np.int32], values: NDArray[np.float32], vocabulary: Vocabulary
) -> list[list[Any]]:
    numbers = [vocabulary.number(latents.spelling[id_]) for id_ in ids.tolist()]
    return [list(pair) for pair in zip(numbers, rounded(values), strict=True)]


def _without_trailing_zeros(counts: list[int]) -> list[int]:
    last = max((place for place, count in enumerate(counts) if count), default=-1)
    return counts[: last + 1]
