"""The picture and the table in README.md, made from the committed results of benchmarks/study.py.

    python benchmarks/study_figure.py            # docs/study.json -> docs/study.svg (`make figure`)
    python benchmarks/study_figure.py --table    # prints the table

Nothing is trained or measured here: equal results give equal bytes.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.report import svg as chart

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS, PICTURE = DOCS / "study.json", DOCS / "study.svg"
L1 = 1.5
"""The l1 of the figures beside the names, the default of params.yaml."""
NO_PENALTY = "no penalty"

_WIDTH, _HEIGHT = 940, 452
_TOP, _BOTTOM = 66, 366
_VARIANCES, _DIFFERENCES = (48, 310), (376, 606)  # where the two charts begin and end
_NAMES, _GAINS, _COSINES = 656, 836, 922  # of the labels: where names begin, and where numbers end
_LABEL_HEIGHT = 20.0
# Of a kind's treatments in order; when they are used up, lines are dashed. Colour 0 is no penalty.
_COLOURS = {"fixed": (1, 2, 3, 4), "linear": (5,), "learned": (6,), "dual": (7,)}
_STYLE = """
.paper { fill: #ffffff; stroke: #d0d7de; }
text { font: 13px ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #59636e; }
text { font-variant-numeric: tabular-nums; }
.label { font-weight: 600; fill: #1f2328; }
.name { fill: #1f2328; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.grid { stroke: #e6e9ed; }
.axis { stroke: #8b949e; }
.line { fill: none; stroke: var(--series); stroke-width: 2; stroke-linejoin: round; }
.dashed { stroke-dasharray: 6 4; }
.seed { fill: var(--series); stroke: #ffffff; stroke-width: 0.8; }
.leader { fill: none; stroke: var(--series); stroke-width: 1; opacity: 0.55; }
.s0 { --series: #1f2328; }
.s1 { --series: #6cb6ff; } .s2 { --series: #218bff; } .s3 { --series: #0550ae; } .s4 { --series: #0a3069; }
.s5 { --series: #bf8700; } .s6 { --series: #cf222e; } .s7 { --series: #1a7f37; }
"""


_FIELDS = ("l1", "seed", "penalty", "mean_max_cosine", "lambda_at_end")


@dataclass(frozen=True)
class SAE:
    """The held-out figures of one SAE."""

    l1: float
    seed: int
    l0: float
    explained_variance: float
    penalty: float
    mean_max_cosine: float
    lambda_at_end: float


@dataclass(frozen=True)
class Treatment:
    """One way to set lambda, and its SAEs."""

    name: str
    colour: int
    dashed: bool
    saes: Sequence[SAE]

    def at(self, l1: float) -> list[SAE]:
        """The SAEs of one l1, a seed each."""
        return [sae for sae in self.saes if sae.l1 == l1]


Line = tuple[Treatment, list[list[tuple[float, float]]]]
"""A treatment and its dots (L0, value), a group per l1."""


def main() -> None:
    """Parses the command line; prints the table or writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print README.md's table instead")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text())
    if options.table:
        print(table(results), end="")
    else:
        PICTURE.write_text(picture(results))


def treatments(results: Mapping[str, Any]) -> list[Treatment]:
    """The treatments: no penalty, then fixed ones by value, then the others by kind and beginning."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for sae in sorted(results["saes"], key=lambda sae: (_order(sae["lambda"]), sae["l1"], sae["seed"])):
        if sae["diverged_at_step"] is None:
            grouped.setdefault(_name(sae["lambda"]), []).append(sae)
    found: list[Treatment] = []
    num_of_kind: dict[str, int] = {}
    for name, group in grouped.items():
        kind, colour, dashed = group[0]["lambda"]["kind"], 0, False
        if name != NO_PENALTY:
            number = num_of_kind.setdefault(kind, 0)
            num_of_kind[kind] += 1
            colour, dashed = _COLOURS[kind][number % len(_COLOURS[kind])], number >= len(_COLOURS[kind])
        saes = [SAE(**{field: sae[field] for field in _FIELDS}, **sae["held_out"]) for sae in group]
        found.append(Treatment(name, colour, dashed, saes))
    return found


def _name(setting: Mapping[str, Any]) -> str:
    """The treatment in words."""
    kind = setting["kind"]
    if kind == "fixed":
        return f"fixed {setting['value']:g}" if setting["value"] else NO_PENALTY
    if kind == "linear":
        return f"linear {setting['start']:g} to {setting['end']:g}"
    return f"{kind} from {setting['start']:g}"


def _order(setting: Mapping[str, Any]) -> tuple[int, float]:
    kinds = ("fixed", "linear", "learned", "dual")
    return kinds.index(setting["kind"]), setting.get("value", setting.get("start"))


def gains(treatment: Treatment, reference: Treatment, l1: float) -> list[float]:
    """Explained variance of a treatment minus that of the reference at the reference's L0, one number per seed.

    The treatment's value there lies on the parabola in log L0 through its l1 values. Empty where that L0 lies outside
    of them: nothing is extrapolated.
    """
    found = []
    for other in reference.at(l1):
        points = [(math.log(sae.l0), sae.explained_variance) for sae in treatment.saes if sae.seed == other.seed]
        at = math.log(other.l0)
        if not min(points)[0] <= at <= max(points)[0]:
            return []
        found.append(through(points, at) - other.explained_variance)
    return found


def through(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at `at` of the polynomial of least degree through the points (Lagrange)."""
    total = 0.0
    for index, (x, y) in enumerate(points):
        others = [other for number, (other, _) in enumerate(points) if number != index]
        total += y * math.prod((at - other) / (x - other) for other in others)
    return total


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row per treatment at l1 `L1`, mean over seeds; of explained variance the sample deviation too."""
    found = treatments(results)
    l1_values = _l1_values(found[0])
    titles = ["lambda", "explained variance", "L0", *(f"at L0 {_l0(found[0], l1):.0f}" for l1 in l1_values)]
    titles += ["P", "mean max cosine", "lambda at the end"]
    lines = [f"| {' | '.join(titles)} |", "|---|" + "---:|" * (len(titles) - 1)]
    for treatment in found:
        saes = treatment.at(L1)
        cells = [
            treatment.name,
            _spread([sae.explained_variance for sae in saes], ".4f"),
            f"{_l0(treatment, L1):.1f}",
        ]
        for l1 in l1_values:
            gain = gains(treatment, found[0], l1)
            cells.append("0" if treatment is found[0] else _spread(gain, "+.4f") if gain else "")
        cells += [
            f"{statistics.fmean(sae.penalty for sae in saes):.0f}",
            f"{statistics.fmean(sae.mean_max_cosine for sae in saes):.3f}",
            f"{statistics.fmean(sae.lambda_at_end for sae in saes):.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("-0.", "\N{MINUS SIGN}0.") + "\n"


def _l1_values(treatment: Treatment) -> list[float]:
    """The l1 of a treatment's SAEs, the sparsest first."""
    return sorted({sae.l1 for sae in treatment.saes}, reverse=True)


def _l0(treatment: Treatment, l1: float) -> float:
    """Mean L0 over seeds."""
    return statistics.fmean(sae.l0 for sae in treatment.at(l1))


def _spread(values: Sequence[float], form: str) -> str:
    """Mean and sample deviation."""
    return f"{statistics.fmean(values):{form}} ± {statistics.stdev(values):.4f}"


def picture(results: Mapping[str, Any]) -> str:
    """Two charts over L0: explained variance, and its difference from no penalty; treatments labelled at the right."""
    found = treatments(results)
    l1_values = _l1_values(found[0])
    num_saes = sum(len(treatment.saes) for treatment in found)
    body = chart.text(
        16, 26, f"Explained variance of {num_saes} SAEs on {results['num_held_out_rows']:,} held-out rows", "label"
    )
    lines = [
        (treatment, [[(sae.l0, sae.explained_variance) for sae in treatment.at(l1)] for l1 in l1_values])
        for treatment in found
    ]
    body += _chart(lines, lines, *_VARIANCES, title="explained variance")[0]
    differences = []
    for treatment in found:
        groups = [
            list(zip((sae.l0 for sae in found[0].at(l1)), gains(treatment, found[0], l1), strict=False))
            for l1 in l1_values
        ]
        differences.append((treatment, [group for group in groups if group]))
    drawn, ends = _chart(differences, lines, *_DIFFERENCES, title="difference from no penalty at equal L0")
    body += drawn + _labels(ends, found[0])
    notes = (
        "Every dot is one SAE; lines join the means over seeds. Differences are interpolated between the three l1.",
        f"* at L0 {_l0(found[0], L1):.0f}, the L0 without a penalty at l1 {L1:g}. "
        f"** cosine of a latent's direction and the nearest other one, mean over latents; l1 {L1:g}.",
    )
    for number, note in enumerate(notes):
        body += chart.text(16, _HEIGHT - 31 + 18 * number, note, "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img" aria-label="Explained variance against L0 for {len(found)} ways to set lambda">'
        f"<style>{_STYLE}</style>"
        f'<rect class="paper" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="8"/>{body}</svg>\n'
    )


def _chart(
    lines: Sequence[Line], all_lines: Sequence[Line], left: float, right: float, *, title: str
) -> tuple[str, list[tuple[float, float, Treatment]]]:
    """One chart, and where each line ends at the right. `all_lines` decide the range of L0."""
    x = chart.fitted((l0 for _, groups in all_lines for group in groups for l0, _ in group), left, right, log=True)
    y = chart.fitted((value for _, groups in lines for group in groups for _, value in group), _BOTTOM, _TOP)
    body = chart.axes(x, y, x_label="L0 (logarithmic scale)", y_label="")
    body += chart.text(left - 32, _TOP - 16, title, "label")
    ends = []
    for treatment, groups in reversed(lines):  # no penalty last, on top
        xs = [statistics.fmean(l0 for l0, _ in group) for group in groups]
        ys = [statistics.fmean(value for _, value in group) for group in groups]
        body += chart.line(x, y, xs, ys, colour=treatment.colour, dashed=treatment.dashed)
        for l0, value in (dot for group in groups for dot in group):
            dot = f'cx="{x.at(l0):.1f}" cy="{y.at(value):.1f}" r="3"'
            body += f'<circle class="{chart.series_class(treatment.colour)} seed" {dot}/>'
        ends.append((x.at(xs[-1]), y.at(ys[-1]), treatment))
    return body, ends


def _labels(ends: Sequence[tuple[float, float, Treatment]], reference: Treatment) -> str:
    """Names and figures of the treatments beside the ends of their lines."""
    body = ""
    for right, upper, lower in (
        (_GAINS, "difference", f"at L0 {_l0(reference, L1):.0f} *"),
        (_COSINES, "mean max", "cosine **"),
    ):
        body += chart.text(right, _TOP - 34, upper, "label end") + chart.text(right, _TOP - 16, lower, "label end")
    body += chart.text(_NAMES, _TOP - 16, "lambda", "label")
    left, right = _DIFFERENCES[1] + 10, _NAMES - 8
    swatch, level = chart.Scale(0.0, 1.0, left, right), chart.Scale(0.0, _HEIGHT, 0.0, _HEIGHT)
    ordered = sorted(ends, key=lambda end: end[1])
    for (end_x, end_y, treatment), at in zip(ordered, spread_out([end[1] for end in ordered], _TOP), strict=True):
        colour = treatment.colour
        points = f"{end_x + 5:.1f},{end_y:.1f} {left},{at:.1f}"
        body += f'<polyline class="{chart.series_class(colour)} leader" points="{points}"/>'
        body += chart.line(swatch, level, (0.0, 1.0), (at, at), colour=colour, dashed=treatment.dashed)
        gain = f"{statistics.fmean(gains(treatment, reference, L1)):+.4f}".replace("-", "\N{MINUS SIGN}")
        cosine = statistics.fmean(sae.mean_max_cosine for sae in treatment.at(L1))
        body += chart.text(_NAMES, at + 4.5, treatment.name, "name")
        body += chart.text(_GAINS, at + 4.5, "0" if treatment is reference else gain, "name end")
        body += chart.text(_COSINES, at + 4.5, f"{cosine:.2f}", "name end")
    return body


def spread_out(heights: Sequence[float], top: float) -> list[float]:
    """Where labels go that want `heights` (rising): near them, a label's height apart, and none above `top`."""
    runs: list[list[float]] = []  # of neighbouring labels without a gap, by the heights that they want

    def first(run: Sequence[float]) -> float:
        return max(top, statistics.fmean(run) - (len(run) - 1) * _LABEL_HEIGHT / 2)

    for height in heights:
        runs.append([height])
        while len(runs) > 1 and first(runs[-1]) < first(runs[-2]) + len(runs[-2]) * _LABEL_HEIGHT:
            last = runs.pop()
            runs[-1] += last
    return [first(run) + index * _LABEL_HEIGHT for run in runs for index in range(len(run))]


if __name__ == "__main__":
    main()
