"""Draws one figure as inline SVG, from numbers by variant. A variant keeps its colour in every figure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluate.report import svg
from evaluate.report.svg import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Scale, fitted

_PLOT_HEIGHT = 250.0
_STRIP_HEIGHT = 46.0
_NUM_STRIP_BINS = 50
_LETTER_WIDTH = 6.6  # of a name, on average


@dataclass(frozen=True)
class Curve:
    """One line over training steps."""

    steps: Sequence[float]
    values: Sequence[float]
    colour: int
    dashed: bool = False


def over_training(
    curves: Sequence[Curve],
    *,
    y_label: str,
    description: str,
    log: bool,
    bounds: Sequence[tuple[float, str]] = (),
) -> str:
    """Lines over training steps, with labelled horizontal bounds. Without anything to draw it says so."""
    values = [value for curve in curves for value in curve.values if value > 0 or not log]
    if not values:
        message = svg.text(WIDTH / 2, 40, "nothing to draw: every value is 0", "label middle")
        return svg.drawing(message, height=70, description=description)
    x = fitted((step for curve in curves for step in curve.steps), LEFT, WIDTH - RIGHT, zero=True)
    y = fitted([*values, *(bound for bound, _ in bounds)], _PLOT_HEIGHT - BOTTOM, TOP, log=log)
    body = svg.axes(x, y, x_label="training step", y_label=y_label)
    for curve in curves:
        body += svg.line(x, y, curve.steps, curve.values, colour=curve.colour, dashed=curve.dashed)
    for bound, label in bounds:  # last, so that no curve crosses a label
        if bound > 0 or not log:
            body += svg.rule(x, y.at(bound), label)
    return svg.drawing(body, height=_PLOT_HEIGHT, description=description)


def cosine_histograms(histograms: Mapping[str, tuple[Sequence[float], Sequence[int]]], *, description: str) -> str:
    """Share of pairs of latents per bin of cosine (edges, counts), on a logarithmic axis."""
    shares = {name: [count / max(1, sum(counts)) for count in counts] for name, (_, counts) in histograms.items()}
    occupied = [
        edge
        for edges, counts in histograms.values()
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
        for edge in (left, right)
    ]
    x = Scale(min(occupied), max(occupied), LEFT, WIDTH - RIGHT)
    y = fitted((share for values in shares.values() for share in values), _PLOT_HEIGHT - BOTTOM, TOP, log=True)
    body = svg.axes(x, y, x_label="cosine of two latents' directions", y_label="share of pairs per bin")
    for colour, (name, (edges, _)) in enumerate(histograms.items()):
        kept = [
            (left, right, share)
            for left, right, share in zip(edges[:-1], edges[1:], shares[name], strict=True)
            if right > x.low and left < x.high
        ]
        outline = [kept[0][0], *(right for _, right, _ in kept)]
        body += svg.steps(x, y, outline, [share for _, _, share in kept], colour=colour)
    return svg.drawing(body, height=_PLOT_HEIGHT, description=description)


def strips(
    samples: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    description: str,
    log: bool = False,
    notes: Mapping[str, str] | None = None,
) -> str:
    """One small histogram per variant above a common axis, its median marked; `notes` are written at the right."""
    all_values = [value for values in samples.values() for value in values]
    height = TOP - 18 + _STRIP_HEIGHT * len(samples) + BOTTOM
    if not all_values:
        message = svg.text(WIDTH / 2, 40, "nothing to draw", "label middle")
        return svg.drawing(message, height=70, description=description)
    x = fitted(all_values, 10, WIDTH - RIGHT, log=log)
    edges = _edges(x)
    body = ""
    for colour, (name, values) in enumerate(samples.items()):
        bottom = TOP - 18 + _STRIP_HEIGHT * (colour + 1)
        counts = _histogram(values, edges, log=log)
        y = Scale(0.0, max(1.0, *counts), bottom, bottom - _STRIP_HEIGHT + 17)
        body += svg.area(x, y, edges, counts, colour=colour)
        body += f'<line class="grid" x1="{x.start}" x2="{x.stop}" y1="{bottom}" y2="{bottom}"/>'
        label = name
        if values:
            middle = statistics.median(values)
            body += svg.mark(x.at(middle), bottom - _STRIP_HEIGHT + 17, bottom)
            label = f"{name}: median {middle:.3g}"
        body += svg.text(12, bottom - _STRIP_HEIGHT + 13, label, "strip")
        if notes and notes.get(name):
            body += svg.text(WIDTH - RIGHT, bottom - _STRIP_HEIGHT + 13, notes[name], "note end")
    body += svg.x_axis(x, height - BOTTOM, x_label)
    return svg.drawing(body, height=height, description=description)


def _edges(x: Scale) -> list[float]:
    shares = [index / _NUM_STRIP_BINS for index in range(_NUM_STRIP_BINS + 1)]
    if x.log:
        return [x.low * (x.high / x.low) ** share for share in shares]
    return [x.low + (x.high - x.low) * share for share in shares]


def _histogram(values: Sequence[float], edges: Sequence[float], *, log: bool) -> list[float]:
    inner = math.log if log else float
    low, high = inner(edges[0]), inner(edges[-1])
    counts = [0.0] * (len(edges) - 1)
    for value in values:
        index = int((inner(value) - low) / (high - low) * len(counts))
        counts[min(max(index, 0), len(counts) - 1)] += 1.0
    return counts


def scatter(points: Mapping[str, tuple[float, float]], *, x_label: str, y_label: str, description: str) -> str:
    """One labelled dot per variant; labels keep clear of dots and of each other."""
    x = fitted((value for value, _ in points.values()), LEFT, WIDTH - RIGHT)
    y = fitted((value for _, value in points.values()), _PLOT_HEIGHT - BOTTOM, TOP, margin=0.2)
    body = svg.axes(x, y, x_label=x_label, y_label=y_label)
    bottom = _PLOT_HEIGHT - BOTTOM
    taken: list[svg.Box] = [(0.0, bottom - 3.0, WIDTH, _PLOT_HEIGHT), (0.0, 0.0, WIDTH, 16.0)]  # the axes' own text
    for a, b in points.values():
        taken.append((x.at(a) - 7, y.at(b) - 7, x.at(a) + 7, y.at(b) + 7))
    dots = ""
    for colour, (name, (a, b)) in enumerate(points.items()):
        dots += svg.point(x.at(a), y.at(b), colour=colour, tip=f"{name}: {x_label} {a:.4g}, {y_label} {b:.4g}")
        at_x, at_y, anchor, box = svg.place_label(x.at(a), y.at(b), _LETTER_WIDTH * len(name), taken)
        taken.append(box)
        body += svg.text(at_x, at_y, name, f"name{anchor}")
    return svg.drawing(body + dots, height=_PLOT_HEIGHT, description=description)


@dataclass(frozen=True)
class Track:
    """One family of variants, such as one lambda at several sparsities."""

    points: Sequence[tuple[float, float, str]]
    """x, y and name of a point."""
    colour: int
    dashed: bool = False


def tracks(families: Sequence[Track], *, x_label: str, y_label: str, description: str) -> str:
    """A dot per point, those of a family joined in the order of x on a logarithmic axis; names show under the mouse."""
    x = fitted((a for track in families for a, _, _ in track.points), LEFT, WIDTH - RIGHT, log=True)
    y = fitted((b for track in families for _, b, _ in track.points), _PLOT_HEIGHT - BOTTOM, TOP)
    body, dots = svg.axes(x, y, x_label=f"{x_label} (logarithmic)", y_label=y_label), ""
    for track in families:
        points = sorted(track.points)
        xs, ys = [a for a, _, _ in points], [b for _, b, _ in points]
        body += svg.line(x, y, xs, ys, colour=track.colour, dashed=track.dashed)
        for a, b, name in points:
            tip = f"{name}: {x_label} {a:.4g}, {y_label} {b:.4g}"
            dots += svg.point(x.at(a), y.at(b), colour=track.colour, tip=tip)
    return svg.drawing(body + dots, height=_PLOT_HEIGHT, description=description)


def log_series(log: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one field of a training log, without the lines that do not have it."""
    points = [(float(line["step"]), float(line[key])) for line in log if line.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]
