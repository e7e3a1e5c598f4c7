"""The sentences that open the report: the answer, how sure it is, and what would change it. Pure functions.

They are made from differences with their intervals. No adjective says what a number does not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluate.compare.comparisons import HEADLINES, Comparison, Comparisons
from evaluate.compare.kinds import Kind, kind_of
from evaluate.compare.matched_l0 import MATCHED_L0_WITHIN, differing_sparsity
from evaluate.compare.paired import LEVEL, critical_t
from evaluate.compare.treatments import BASELINE, digest_without_treatment
from evaluate.report.findings import listed, number
from store.sae.artefact import SAECard

MOST_TREATMENTS = 8
"""Up to so many are named one by one in a sentence."""
FIRST = "core/explained_variance"
IN_WORDS = {FIRST: "explained variance", "core/ce_loss_score": "CE recovered"}


@dataclass(frozen=True)
class Statement:
    """One part of the verdict."""

    label: str
    text: str


def statements(
    comparisons: Comparisons,
    kinds: Sequence[Comparison],
    cards: Mapping[str, SAECard],
    means: Mapping[str, Mapping[str, float]],
) -> list[Statement]:
    """The verdict. `means` are over seeds, by treatment and metric."""
    if BASELINE not in cards:
        return []
    family = comparisons.family(HEADLINES)
    if not family:
        return [Statement("The answer", "No treatment was compared with another SAE of its seed: there is none yet.")]
    found = [Statement("Does it help?", help_sentences(family))]
    found += [Statement("Fixed, scheduled or learned?", kinds_sentences(kinds, cards, means))]
    found += [Statement("At matched sparsity?", sparsity_sentences(comparisons, means))]
    found += [Statement("How sure?", sure_sentences(family))]
    return [*found, Statement("What would change it?", change_sentences(family))]


def help_sentences(family: Sequence[Comparison]) -> str:
    """What was called a difference from the baseline, on which figures, and what was not."""
    treatments = list(dict.fromkeys(item.treatment for item in family))
    by_metric: dict[str, list[Comparison]] = {}
    for item in family:
        by_metric.setdefault(item.metric, []).append(item)
    count = {verdict: sum(item.verdict == verdict for item in family) for verdict in ("better", "worse")}
    unclear = len(_not_called(family))
    rest = len(family) - sum(count.values()) - unclear
    text = (
        f"{_many(len(treatments), 'treatment')} on {_many(len(by_metric), 'headline figure')}, each against the "
        f"baseline of its seed: {count['better']} better, {count['worse']} worse, {rest} with no difference found"
        + (f", {unclear} that the correction leaves open." if unclear else ".")
    )
    for metric in [*IN_WORDS, *(name for name in by_metric if name not in IN_WORDS)]:
        items = by_metric.get(metric, [])
        called = [item for item in items if item.verdict in ("better", "worse")]
        if metric not in IN_WORDS and not called:
            continue
        if items:
            text += f" {_of_metric(metric, items)}"
    without = [name_of(name) for name, items in by_metric.items() if name not in IN_WORDS and not _called(items)]
    if without:
        text += f" None called on {listed(without)}; the intervals are in the table."
    return text


def _of_metric(metric: str, items: Sequence[Comparison]) -> str:
    name = name_of(metric)
    text = f"{name[0].upper()}{name[1:]}: " if metric in IN_WORDS else f"{name}: "
    called, level = _called(items), [item for item in items if item.verdict not in ("better", "worse")]
    parts = []
    for verdict in ("better", "worse"):
        some = [item for item in called if item.verdict == verdict]
        if some:
            shown = [f"{item.treatment} {spelled(item)}" for item in _extremes(some)]
            parts.append(f"{verdict} in {listed(shown)}{_more(some)}")
    for words, some in (
        ("left open by the correction, though the interval leaves out 0, in", _not_called(level)),
        ("no difference found in", [item for item in level if item not in _not_called(level)]),
    ):
        if some:
            shown = [f"{item.treatment} {spelled(item)}" for item in _extremes(some)]
            parts.append(f"{words} {listed(shown)}{_more(some)}")
    return text + "; ".join(parts) + "."


def kinds_sentences(
    kinds: Sequence[Comparison], cards: Mapping[str, SAECard], means: Mapping[str, Mapping[str, float]]
) -> str:
    """Which kind of lambda, from the treatments of each compared at the same seeds."""
    present = {kind_of(cards[name]) for name in means} - {"none"}
    text = ""
    alike = digest_without_treatment(cards[BASELINE])  # no other hook, sparsity or architecture
    names = [name for name in means if digest_without_treatment(cards[name]) == alike and FIRST in means[name]]
    ranked = sorted(names, key=lambda name: -means[name][FIRST])
    if ranked:
        best: dict[Kind, str] = {}
        for name in ranked:
            best.setdefault(kind_of(cards[name]), name)
        parts = [
            f"{'no penalty' if kind == 'none' else kind} {means[name][FIRST]:.4f} ({name})"
            for kind, name in best.items()
        ]
        text = f"Highest mean explained variance of each kind: {listed(parts)}."
    if len(present) < 2:
        return f"{text} Only one kind of lambda was trained, so the kinds are not compared.".strip()
    items = [item for item in kinds if item.metric == FIRST]
    if not items:
        return f"{text} No treatments of two kinds share a seed and all other settings, so they are not compared."
    called = _called(items)
    text += (
        f" Of {_many(len(items), 'pair')} of treatments of different kinds, {len(called)} differ on it after correction"
    )
    if called:
        shown = [f"{item.treatment} minus {item.baseline} {spelled(item)}" for item in _extremes(called)]
        text += f": {listed(shown)}{_more(called)}"
    text += "."
    level = [item for item in items if item not in called]
    for words, some in (
        ("Left open by the correction", _not_called(level)),
        ("No difference found", [item for item in level if item not in _not_called(level)]),
    ):
        if some:
            shown = [f"{item.treatment} minus {item.baseline} {spelled(item)}" for item in _extremes(some)]
            text += f" {words}: {listed(shown)}{_more(some)}."
    return text


def sparsity_sentences(comparisons: Comparisons, means: Mapping[str, Mapping[str, float]]) -> str:
    """Whether the treatments were compared at matched sparsity."""
    l0 = {name: values["core/l0"] for name, values in means.items() if "core/l0" in values}
    if not l0:
        return "L0 was not measured (core did not run), so this is not known."
    differing = differing_sparsity(l0, {name: comparisons.baseline[name] for name in l0})
    span = f"mean L0 is {number(min(l0.values()))} to {number(max(l0.values()))}"
    if not differing:
        return f"Yes: {span}, each within {MATCHED_L0_WITHIN:.0%} of its baseline's."
    parts = [f"{name} {relative:+.0%}" for name, relative in differing.items()]
    return (
        f"No: {span}. More than {MATCHED_L0_WITHIN:.0%} from the baseline's: {listed(parts)}. What differs there may "
        "come from sparsity and not from the penalty; l1: {target_l0: N} gives every variant the same L0."
    )


def sure_sentences(family: Sequence[Comparison]) -> str:
    """Method, and what the number of seeds allows."""
    seeds = sorted({item.difference.num_seeds for item in family})
    num_seeds = seeds[0]
    text = (
        "Brackets are 95 % intervals of the mean difference over seeds. A difference is called where its p-value, "
        f"corrected by Holm's method for all {len(family)} of these comparisons, is below {LEVEL:.0%}: in a study of "
        f"treatments that make no difference, one is called in at most {LEVEL:.0%} of cases."
    )
    if num_seeds == 1:
        return (
            "One seed: intervals are of the text alone, and hold for these pairs of SAEs. They say nothing about what "
            f"another seed would give, so nothing here is known of the treatments themselves. {text}"
        )
    freedom = num_seeds - 1
    text += (
        f" With {num_seeds if len(seeds) == 1 else f'{seeds[0]} to {seeds[-1]}'} seeds a t interval has {freedom} "
        f"degree{'' if freedom == 1 else 's'} of freedom and reaches {critical_t(freedom):.1f} standard errors. To be "
        f"called first of {len(family)}, a difference must be {critical_t(freedom, LEVEL / len(family)):.0f} standard "
        "errors. Smaller ones may be there unseen."
    )
    unpaired = {name_of(item.metric) for item in family if not item.difference.knows_text}
    if unpaired:
        text += f" The error of the text or tasks is not in the intervals of {listed(sorted(unpaired))}."
    return text


def change_sentences(family: Sequence[Comparison]) -> str:
    """What would make the answer surer or another one."""
    num_seeds = min(item.difference.num_seeds for item in family)
    if num_seeds == 1:
        text = "More seeds (grid: {seeds: {of: all, values: {seed: [1, 2]}}}): without them there is no answer."
    else:
        more = 2 * num_seeds
        ratio = critical_t(num_seeds - 1) / critical_t(more - 1) * math.sqrt(more / num_seeds)
        text = (
            f"More seeds: with {more} of the same spread the seeds' part of the intervals would be {ratio:.1f} times "
            f"narrower, and {critical_t(more - 1, LEVEL / len(family)):.0f} standard errors enough."
        )
    return f"{text} Another language model, hook, width, sparsity or number of steps was not tried here."


def name_of(metric: str) -> str:
    """A metric in words: those of core by their usual names, others with their benchmark."""
    benchmark, _, short = metric.partition("/")
    return IN_WORDS.get(metric) or f"{benchmark} ({short.replace('_', ' ')})"


def spelled(item: Comparison) -> str:
    """A difference with its interval, to two digits of its half-width."""
    interval, half = item.difference.interval(), item.difference.half_width()
    if interval is None or half is None:
        return f"{item.difference.value:+.4g} (no interval)"
    digits = 4 if half == 0 else min(8, max(0, 1 - math.floor(math.log10(half))))
    low, high = interval
    return f"{item.difference.value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _called(items: Sequence[Comparison]) -> list[Comparison]:
    """Those that are called a difference."""
    return [item for item in items if item.verdict in ("better", "worse")]


def _not_called(items: Sequence[Comparison]) -> list[Comparison]:
    """Those whose own interval leaves out 0, and that are not called after correction."""
    return [
        item
        for item in items
        if item.verdict not in ("better", "worse")
        and (interval := item.difference.interval()) is not None
        and (interval[0] > 0.0 or interval[1] < 0.0)
    ]


def _extremes(items: Sequence[Comparison]) -> list[Comparison]:
    """All of a few; of many the two at the ends."""
    if len(items) <= MOST_TREATMENTS:
        return list(items)
    ordered = sorted(items, key=lambda item: item.difference.value)
    return [ordered[0], ordered[-1]]


def _more(items: Sequence[Comparison]) -> str:
    return "" if len(items) <= MOST_TREATMENTS else f", and {len(items) - 2} between"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
