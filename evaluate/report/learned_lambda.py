"""Lambdas that follow training: where they ended, and what controls took of them. Pure functions.

Of learned ones there is more to say: their equation has a stationary value.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluate.report.findings import Finding, listed, number
from store.sae.artefact import SAECard
from store.sae.stationary_lambda import stationary_lambda

SAME_END_WITHIN = 0.2
FEW_NAMES = 6
_IN_WORDS = {"on its curve": "settled", "on the floor": "ended at the lower limit", "still moving": "were still moving"}
"""The states that cards hold, in the words of the report."""


def lambda_finding(
    card: SAECard, log: Sequence[Mapping[str, Any]], *, penalty: float, regularization: float
) -> Finding:
    """Where a learned lambda went and where it ended: on its curve, on the floor, or still moving.

    `penalty` is the final P as lambda multiplies it, `log` the training log with `step` and `lambda`.
    """
    last = float(card.final["lambda"])
    values = [*(float(line["lambda"]) for line in log), last]
    lowest, highest = min(values), max(values)
    target = stationary_lambda(penalty, regularization)
    state = card.final.get("lambda_state")
    path = f"{card.name}: the learned lambda started at {number(values[0])}, "
    path += f"ranged from {number(lowest)} to {number(highest)}, and ended at {number(last)}"
    if state == "on its curve":
        return Finding(
            "result",
            f"{path}. It has settled: at the final P of {number(penalty)} its stationary value is {number(target)}. "
            "This value follows from P and the regularizer, and not from what helps the SAE.",
        )
    if state == "on the floor":
        return Finding(
            "warning",
            f"{path}. It ended at its lower limit of {number(last)}: at the final P of {number(penalty)} its "
            f"stationary value is {number(target)}, which is below that. From there on lambda is fixed at the limit.",
        )
    if state == "still moving":
        return Finding(
            "warning",
            f"{path}. It is still moving: at the final P of {number(penalty)} its stationary value is "
            f"{number(target)}, so its last value depends on when training stopped. Train longer, or raise lambda_lr.",
        )
    raise ValueError(
        f"expected final.lambda_state of {card.name} to be 'on its curve', 'on the floor' or 'still moving', "
        f"got {state!r}. Train it again"
    )


def starts_finding(ends: Mapping[str, tuple[float, float]]) -> Finding | None:
    """Whether learned lambdas that started apart ended together; `ends` holds (start, end) per variant of one seed."""
    if len({start for start, _ in ends.values()}) < 2:
        return None
    lasts = [last for _, last in ends.values()]
    parts = listed([f"{name} from {number(start)} to {number(last)}" for name, (start, last) in ends.items()])
    if max(lasts) <= min(lasts) * (1.0 + SAME_END_WITHIN):
        return Finding("result", f"Learned lambdas that started apart ended together: {parts}.")
    return Finding(
        "result", f"Learned lambdas that started apart ended apart, by more than {SAME_END_WITHIN:.0%}: {parts}."
    )


def states_finding(cards: Sequence[SAECard]) -> Finding:
    """How many learned lambdas ended in which state."""
    by_state: dict[str, list[SAECard]] = {}
    for card in cards:
        by_state.setdefault(str(card.final.get("lambda_state")), []).append(card)
    parts = []
    for state, group in by_state.items():
        ends = [float(card.final["lambda"]) for card in group]
        names = f" ({listed([card.name for card in group])})" if len(group) <= FEW_NAMES else ""
        where = _IN_WORDS[state]
        parts.append(f"{len(group)} {where}, from {number(min(ends))} to {number(max(ends))}{names}")
    moving = "still moving" in by_state
    text = f"Of {len(cards)} learned lambdas {listed(parts)}."
    if moving:
        text += " The last value of one that was still moving depends on when training stopped."
    return Finding("warning" if moving else "result", text)


def ends_finding(ends: Sequence[Mapping[str, tuple[float, float]]]) -> Finding | None:
    """In how many settings learned lambdas that started apart ended together."""
    apart = [pairs for pairs in ends if len({start for start, _ in pairs.values()}) > 1]
    if not apart:
        return None
    lasts = [[last for _, last in pairs.values()] for pairs in apart]
    together = sum(max(values) <= min(values) * (1.0 + SAME_END_WITHIN) for values in lasts)
    return Finding(
        "result",
        f"Learned lambdas that started apart, all else equal, ended within {SAME_END_WITHIN:.0%} of each other in "
        f"{together} of {len(apart)} cases.",
    )


OTHERS = ("dual", "hypergradient", "gradnorm", "uncertainty")
"""The kinds of lambda that follow training and have no stationary value that is known."""


def others_finding(cards: Mapping[str, SAECard]) -> Finding | None:
    """Mean and end of the lambdas that follow training, learned ones aside: a range over seeds and sparsities."""
    found: dict[str, list[SAECard]] = {}
    for card in cards.values():
        settings = card.variant["lambda"]
        if isinstance(settings, Mapping) and settings["kind"] in OTHERS:
            found.setdefault(f"{settings['kind']} from {settings['start']:g}", []).append(card)
    if not found:
        return None
    parts = []
    for kind, group in found.items():
        known = all("lambda_mean" in card.final for card in group)  # cards of earlier versions do not say
        mean = f" (mean over training {_range(group, 'lambda_mean')})" if known else ""
        parts.append(f"{kind} at {_range(group, 'lambda')}{mean}")
    return Finding("result", f"Lambdas that follow training ended: {listed(parts)}.")


def controls_finding(cards: Mapping[str, SAECard]) -> Finding | None:
    """Which constant lambda the controls took of the variants that they match."""
    found: dict[str, list[SAECard]] = {}
    for card in cards.values():
        settings = card.variant["lambda"]
        if isinstance(settings, Mapping) and settings["kind"] == "matched":
            found.setdefault(f"the {settings['take']} lambda of {settings['of']}", []).append(card)
    if not found:
        return None
    parts = [
        f"{_range(group, 'lambda')}, {what} ({listed([card.name for card in group])})" for what, group in found.items()
    ]
    return Finding("note", f"Controls had a constant lambda throughout: {listed(parts)}.")


def _range(cards: Sequence[SAECard], name: str) -> str:
    values = [float(card.final[name]) for card in cards]
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"
