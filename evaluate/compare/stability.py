"""Whether an SAE of another seed has the same latents: how stable the latents of a treatment are.

Two measures of two decoders, both of decoder directions' cosines. Best match: for each latent of the first, the largest
cosine with a latent of the second, averaged; several latents may have the same match. One to one: every latent is
matched with one other, so that the sum of cosines is largest (mean correlation coefficient of decoders). Decoders of
random directions give what is called chance; it is computed by matching random decoders of the same shape.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from evaluate.compare.comparisons import Comparisons
from evaluate.compare.treatments import BASELINE
from store.sae.geometry import best_match_cosines, cosine_blocks, unit_rows

EXACT_LATENTS = 4096
"""Up to so many the one-to-one matching is the best there is; of more it is greedy, which finds a little less."""
NUM_CANDIDATES = 32
"""Partners of each latent that the greedy matching knows: memory is latents times these, and a block of cosines."""
FEW_PAIRS_FROM = 2**32
"""Multiplications of two decoders (F x F x d) from which one pair of seeds stands for all."""
MOST_PAIRS = 3


@dataclass(frozen=True)
class Match:
    """How alike two decoders are, from 0 (chance is above it) to 1."""

    best: float
    one_to_one: float


@dataclass(frozen=True)
class Stability:
    """The latents of one treatment over seeds; each number a mean over pairs of SAEs."""

    seeds: Match | None
    """Between its own seeds; None of a single one."""
    with_baseline: Match | None
    """With the baseline of the same seed, which began from the same weights; None for the baseline itself."""
    with_other_seeds: Match | None
    """With the baseline of other seeds, which began from other weights."""


def match(first: Tensor, second: Tensor) -> Match:
    """Compares decoders (F, d) and (F2, d); the latents of the first are matched, at most F2 of them one to one."""
    best = float(best_match_cosines(first, second).mean())
    if max(len(first), len(second)) <= EXACT_LATENTS:
        cosines = unit_rows(first.double()) @ unit_rows(second.double()).T
        rows, partners = linear_sum_assignment(cosines.numpy(), maximize=True)
        return Match(best, float(cosines[rows, partners].mean()))
    return Match(best, greedy_one_to_one(first, second))


def greedy_one_to_one(first: Tensor, second: Tensor) -> float:
    """Mean cosine of a matching that takes the largest cosine of unmatched latents again and again.

    Among the `NUM_CANDIDATES` nearest of each latent; one whose candidates are all taken counts 0.
    """
    values, partners = [], []
    count = min(NUM_CANDIDATES, len(second))
    for _, cosines in cosine_blocks(unit_rows(first.float()), unit_rows(second.float())):
        top = cosines.topk(count, dim=1)
        values.append(top.values)
        partners.append(top.indices)
    of_pair, of_partner = torch.cat(values).flatten(), torch.cat(partners).flatten()
    order = of_pair.argsort(descending=True)
    row_taken, partner_taken = bytearray(len(first)), bytearray(len(second))
    total = 0.0
    for row, partner, value in zip(
        (order // count).tolist(), of_partner[order].tolist(), of_pair[order].tolist(), strict=True
    ):
        if not row_taken[row] and not partner_taken[partner]:
            row_taken[row] = partner_taken[partner] = 1
            total += value
    return total / min(len(first), len(second))


def chance(d_sae: int, d_model: int) -> Match:
    """What two decoders of random directions give."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, d_sae, d_model, generator=generator)
    return match(first, second)


def stability(
    comparisons: Comparisons, seeds: Mapping[str, int], decoders: Mapping[str, Tensor], shown: Sequence[str]
) -> dict[str, Stability]:
    """The stability of the treatments `shown`; nothing where no treatment has two seeds.

    Args:
        comparisons: of the study.
        seeds, decoders: by variant; W_dec (F, d).
        shown: names of treatments.
    """
    groups = {name: _one_a_seed(comparisons.groups[name].variants, seeds) for name in shown}
    if all(len(variants) < 2 for variants in groups.values()):
        return {}
    base = _one_a_seed(comparisons.groups[BASELINE].variants, seeds) if BASELINE in comparisons.groups else []

    def mean(pairs: Sequence[tuple[str, str]]) -> Match | None:
        if not pairs:
            return None
        size = decoders[pairs[0][0]].shape
        most = MOST_PAIRS if size[0] ** 2 * size[1] < FEW_PAIRS_FROM else 1
        found = [match(decoders[one], decoders[other]) for one, other in pairs[:most]]
        return Match(statistics.fmean(item.best for item in found), statistics.fmean(item.one_to_one for item in found))

    def crossed(name: str, wanted: Callable[[int, int], bool]) -> list[tuple[str, str]]:
        alike = [other for other in base if decoders[other].shape[1] == decoders[groups[name][0]].shape[1]]
        return [pair for pair in product(groups[name], alike) if wanted(seeds[pair[0]], seeds[pair[1]])]

    return {
        name: Stability(
            seeds=mean(list(combinations(variants, 2))),
            with_baseline=None if name == BASELINE else mean(crossed(name, lambda one, other: one == other)),
            with_other_seeds=None if name == BASELINE else mean(crossed(name, lambda one, other: one != other)),
        )
        for name, variants in groups.items()
    }


def _one_a_seed(variants: Sequence[str], seeds: Mapping[str, int]) -> list[str]:
    return list({seeds[name]: name for name in reversed(variants)}.values())[::-1]
