"""The parts of a drawing as inline SVG: scales, axes, lines, points, text. Colours come from the page's style sheet.

Coordinates are SVG user units in a view box `WIDTH` wide, chosen so that text stays readable when a phone shows the
drawing at about its natural size. Numbers are rounded to a tenth of a unit: equal data give equal bytes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 400
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 36
NUM_COLOURS = 8
LEAST_RANGE = 0.02
"""Of a linear axis, as a share of its largest value."""
_MAX_POINTS = 400

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Scale:
    """Maps values to coordinates, linearly or by logarithm."""

    low: float
    high: float
    start: float
    """Coordinate of `low`."""
    stop: float
    """Coordinate of `high`."""
    log: bool = False

    def at(self, value: float) -> float:
        """Coordinate of `value`, kept within the axis."""
        low, high = self._inner(self.low), self._inner(self.high)
        share = (self._inner(max(value, self.low)) - low) / (high - low)
        return self.start + (self.stop - self.start) * min(max(share, 0.0), 1.0)

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[float]:
        """About five round values; on a wide logarithmic axis powers of ten."""
        if self.log and self.high / self.low > 30.0:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            stride = max(1, math.ceil((last - first) / 6))
            return [10.0**power for power in range(first, last + 1, stride)]
        if self.log and self.high / self.low > 10.0:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            return [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
        step = nice_step((self.high - self.low) / 6.0)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(rough: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1.0, 2.0, 2.5, 5.0, 10.0) if digit * power >= rough * (1 - 1e-9))


def fitted(
    values: Iterable[float], start: float, stop: float, *, log: bool = False, zero: bool = False, margin: float = 0.06
) -> Scale:
    """A scale that holds all values with a `margin` of their range; `zero` keeps 0 as the end of a linear axis."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(found), max(found)) if found else (0.1, 1.0)
    if log:
        factor = max((high / low) ** margin, 1.05)
        return Scale(low / factor, high * factor, start, stop, log=True)
    # A range that is a sliver of its values would turn their last digits into mountains.
    least = LEAST_RANGE * max(abs(low), abs(high))
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    room = margin * (high - low) or 1.0
    return Scale(0.0 if zero and low >= 0 else low - room, high + room, start, stop)


def drawing(body: str, *, height: float, description: str) -> str:
    """A whole SVG element. `description` is read out by screen readers."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-label="{escape(description)}" '
        f'preserveAspectRatio="xMidYMid meet">{body}</svg>'
    )


def axes(x: Scale, y: Scale, *, x_label: str, y_label: str) -> str:
    """Grid lines, tick labels and axis labels. The y label stands above the axis, where it needs no turning."""
    parts = []
    for value in y.ticks():
        at = _n(y.at(value))
        parts.append(f'<line class="grid" x1="{_n(x.start)}" x2="{_n(x.stop)}" y1="{at}" y2="{at}"/>')
        parts.append(text(x.start - 6, y.at(value) + 4, tick_label(value), "tick end"))
    parts.append(x_axis(x, y.start, x_label))
    parts.append(text(4, 13, y_label, "label"))
    return "".join(parts)


def x_axis(x: Scale, bottom: float, label: str) -> str:
    """The horizontal axis alone."""
    parts = [f'<line class="axis" x1="{_n(x.start)}" x2="{_n(x.stop)}" y1="{_n(bottom)}" y2="{_n(bottom)}"/>']
    for value in x.ticks():
        at = x.at(value)
        parts.append(f'<line class="axis" x1="{_n(at)}" x2="{_n(at)}" y1="{_n(bottom)}" y2="{_n(bottom + 4)}"/>')
        parts.append(text(at, bottom + 16, tick_label(value), "tick middle"))
    parts.append(text((x.start + x.stop) / 2, bottom + 32, label, "label middle"))
    return "".join(parts)


def line(x: Scale, y: Scale, xs: Sequence[float], ys: Sequence[float], *, colour: int, dashed: bool = False) -> str:
    """A polyline through the points; on a logarithmic axis values that are not positive are left out."""
    points = [(a, b) for a, b in zip(xs, ys, strict=True) if b > 0 or not y.log]
    path = " ".join(f"{_n(x.at(a))},{_n(y.at(b))}" for a, b in thinned(points))
    classes = f"{series_class(colour)} line{' dashed' if dashed else ''}"
    return f'<polyline class="{classes}" points="{path}"/>' if path else ""


def steps(x: Scale, y: Scale, edges: Sequence[float], heights: Sequence[float], *, colour: int) -> str:
    """The outline of a histogram: `heights` has one entry less than `edges`."""
    points = []
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        at = y.at(height) if height > 0 else y.start
        points += [f"{_n(x.at(left))},{_n(at)}", f"{_n(x.at(right))},{_n(at)}"]
    return f'<polyline class="{series_class(colour)} line" points="{" ".join(points)}"/>'


def area(x: Scale, y: Scale, edges: Sequence[float], heights: Sequence[float], *, colour: int) -> str:
    """A filled histogram."""
    points = [f"{_n(x.at(edges[0]))},{_n(y.start)}"]
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        points += [f"{_n(x.at(left))},{_n(y.at(height))}", f"{_n(x.at(right))},{_n(y.at(height))}"]
    points.append(f"{_n(x.at(edges[-1]))},{_n(y.start)}")
    return f'<polygon class="{series_class(colour)} area" points="{" ".join(points)}"/>'


def rule(x: Scale, at: float, label: str) -> str:
    """A dashed horizontal line across the drawing at coordinate `at`, labelled at its right end."""
    return f'<line class="rule" x1="{_n(x.start)}" x2="{_n(x.stop)}" y1="{_n(at)}" y2="{_n(at)}"/>' + text(
        x.stop - 2, at - 5, label, "note end"
    )


def mark(x: float, top: float, bottom: float) -> str:
    """A short vertical line, for a median."""
    return f'<line class="median" x1="{_n(x)}" x2="{_n(x)}" y1="{_n(top)}" y2="{_n(bottom)}"/>'


def point(x: float, y: float, *, colour: int, tip: str) -> str:
    """A dot that shows `tip` under the mouse."""
    return (
        f'<circle class="{series_class(colour)} point" cx="{_n(x)}" cy="{_n(y)}" r="6">'
        f"<title>{escape(tip)}</title></circle>"
    )


def place_label(x: float, y: float, width: float, taken: Sequence[Box]) -> tuple[float, float, str, Box]:
    """Where the label of a dot at (x, y) meets the least of what is `taken`: its x, y, text anchor and box.

    Tried in this order: right of the dot, left, above, below, then further up and down on either side.
    """
    candidates = []
    for shift in (0.0, -14.0, 14.0, -28.0, 28.0):
        candidates.append((x + 11, y + 4 + shift, "", (x + 9, x + 11 + width)))
        candidates.append((x - 11, y + 4 + shift, " end", (x - 11 - width, x - 9)))
        if shift == 0.0:
            candidates.append((x, y - 11, " middle", (x - width / 2, x + width / 2)))
            candidates.append((x, y + 19, " middle", (x - width / 2, x + width / 2)))
    best = None
    for at_x, at_y, anchor, (left, right) in candidates:
        box = (left, at_y - 10.0, right, at_y + 3.0)
        outside = max(0.0, LEFT - left) + max(0.0, right - WIDTH + 2)
        cost = sum(_overlap(box, other) for other in taken) + 100.0 * outside
        if best is None or cost < best[0]:
            best = (cost, (at_x, at_y, anchor, box))
    assert best is not None
    return best[1]


def _overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def text(x: float, y: float, content: str, classes: str) -> str:
    """Text anchored as its classes say: `middle`, `end`, or at its beginning."""
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{classes}">{escape(content)}</text>'


def series_class(colour: int) -> str:
    """The style-sheet class of a variant's colour; from the ninth variant on, colours come again."""
    return f"s{colour % NUM_COLOURS}"


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` of the points, evenly chosen, the last one included."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(index * last / (_MAX_POINTS - 1))] for index in range(_MAX_POINTS)]


def tick_label(value: float) -> str:
    """A short label: 10k, 2M, 0.001."""
    if abs(value) < 1e-12:
        return "0"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size * (1 - 1e-9):
            return f"{value / (1e3 if suffix == 'k' else size):.4g}{suffix}"
    return f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.0e}".replace("e-0", "e-")


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
