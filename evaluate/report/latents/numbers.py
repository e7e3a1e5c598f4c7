"""The numbers of all latents: a row each in latents.csv, with texts in latents.json, and matches in matches.csv.

The CSV files have numbers and names of variants alone: a token may well be `=`, with which spreadsheets begin formulas.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from evaluate.benchmarks.latents import peak_token_shares
from evaluate.report.latents.view import VariantLatents

FIELDS = (
    "variant",
    "seed",
    "latent",
    "num_firing_rows",
    "density",
    "mean_activation",
    "largest_activation",
    "nearest_latent",
    "nearest_cosine",
    "peak_token_share",
    "score",
)
MATCH_FIELDS = ("variant", "latent", "other_variant", "other_latent", "cosine")


def rows(latents: VariantLatents) -> list[dict[str, Any]]:
    """A record per latent; None where there is no such number."""
    data = latents.data
    shares = peak_token_shares(data.tokens[:, : latents.num_top, latents.before])
    found = []
    for number in range(latents.num_latents):
        nearest = latents.nearest(number)
        said = latents.explanations.get(number)
        peaks = latents.peaks(number)
        found.append(
            {
                "variant": latents.name,
                "seed": latents.card.seed,
                "latent": number,
                "num_firing_rows": int(data.num_firing[number]),
                "density": float(latents.density[number]),
                "mean_activation": float(latents.mean_activation[number]) if data.num_firing[number] else None,
                "largest_activation": float(data.largest[number]),
                "nearest_latent": nearest[0][0] if nearest else None,
                "nearest_cosine": nearest[0][1] if nearest else None,
                "peak_token_share": float(shares[number]) if peaks else None,
                "score": None if said is None else said.score,
                "peak_token": peaks[0][0] if peaks else None,
                "explanation": None if said is None else said.text,
            }
        )
    return found


def match_rows(latents: VariantLatents) -> Iterable[tuple[str, int, str, int, float]]:
    """A row per latent and other variant, in the order of MATCH_FIELDS."""
    for other, (numbers, cosines) in latents.matches.items():
        for latent, (number, cosine) in enumerate(zip(numbers.tolist(), cosines.tolist(), strict=True)):
            yield latents.name, latent, other, number, cosine


def latents_csv(records: Iterable[Mapping[str, Any]]) -> str:
    """The records as CSV, floats in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=FIELDS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in record.items()} for record in records)
    return text.getvalue()


def matches_csv(variants: Iterable[VariantLatents]) -> str:
    """All matches as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(MATCH_FIELDS)
    for latents in variants:
        writer.writerows(match_rows(latents))
    return text.getvalue()
