"""Scales, ticks and marks, by numbers that can be checked by hand."""

import pytest

from evaluate.report import svg
from evaluate.report.plots import Curve, over_training, scatter, strips
from evaluate.report.svg import Scale, fitted
from tests.evaluate.report.html_page import Page


def test_a_linear_scale_maps_its_ends_and_its_middle() -> None:
    scale = Scale(0.0, 10.0, 100.0, 200.0)
    assert [scale.at(value) for value in (0.0, 5.0, 10.0)] == [100.0, 150.0, 200.0]


def test_a_logarithmic_scale_gives_every_decade_the_same_room() -> None:
    scale = Scale(0.01, 100.0, 0.0, 400.0, log=True)
    assert [scale.at(value) for value in (0.01, 0.1, 1.0, 100.0)] == pytest.approx([0.0, 100.0, 200.0, 400.0])


def test_values_outside_the_axis_are_drawn_at_its_ends() -> None:
    assert Scale(1.0, 10.0, 0.0, 90.0, log=True).at(0.0) == 0.0
    assert Scale(0.0, 1.0, 0.0, 90.0).at(7.0) == 90.0


def test_ticks_are_round_numbers() -> None:
    assert Scale(0.0, 780.0, 0.0, 1.0).ticks() == [0.0, 200.0, 400.0, 600.0]
    assert Scale(0.71, 0.79, 0.0, 1.0).ticks() == pytest.approx([0.72, 0.74, 0.76, 0.78])
    assert Scale(0.0015, 20.0, 0.0, 1.0, log=True).ticks() == pytest.approx([0.01, 0.1, 1.0, 10.0])
    assert Scale(0.9, 21.0, 0.0, 1.0, log=True).ticks() == pytest.approx([1.0, 2.0, 5.0, 10.0, 20.0])
    assert Scale(190.0, 350.0, 0.0, 1.0, log=True).ticks() == [200.0, 250.0, 300.0, 350.0]


def test_tick_labels_are_short() -> None:
    values = (0.0, 0.001, 0.25, 1500.0, 10000.0, 2.5e6, 1e-5)
    assert [svg.tick_label(value) for value in values] == ["0", "0.001", "0.25", "1500", "10k", "2.5M", "1e-5"]


def test_an_axis_for_equal_values_still_has_room_around_them() -> None:
    scale = fitted([3.0, 3.0], 0.0, 100.0)
    assert scale.low < 3.0 < scale.high
    assert scale.at(3.0) == pytest.approx(50.0)


def test_a_long_curve_is_thinned_evenly_and_keeps_its_last_point() -> None:
    points = [(float(step), 1.0) for step in range(10_000)]
    kept = svg.thinned(points)
    assert len(kept) == 400
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert svg.thinned(points[:5]) == points[:5]


def test_a_label_avoids_dots_and_labels_that_are_already_there() -> None:
    _, _, anchor, box = svg.place_label(100.0, 100.0, 40.0, [])
    assert anchor == ""  # to the right
    _, _, anchor, _ = svg.place_label(100.0, 100.0, 40.0, [box])
    assert anchor == " end"  # to the left
    _, _, anchor, _ = svg.place_label(svg.WIDTH - 15.0, 100.0, 40.0, [])
    assert anchor == " end"


def test_zero_is_left_out_of_a_logarithmic_curve() -> None:
    x, y = Scale(0.0, 2.0, 0.0, 20.0), Scale(1.0, 10.0, 100.0, 0.0, log=True)
    drawn = svg.line(x, y, [0.0, 1.0, 2.0], [0.0, 1.0, 10.0], colour=0)
    assert drawn == '<polyline class="s0 line" points="10,100 20,0"/>'


def test_a_figure_without_anything_to_draw_says_so() -> None:
    zeros = Curve([0.0, 1.0], [0.0, 0.0], 0)
    assert "nothing to draw: every value is 0" in over_training([zeros], y_label="x", description="d", log=True)
    assert "nothing to draw" in strips({"dead": []}, x_label="x", description="d", log=True)


def test_names_and_descriptions_are_escaped_in_figures() -> None:
    name = '<b>&"'
    drawn = scatter({name: (1.0, 2.0), "b": (2.0, 3.0)}, x_label="x", y_label="y", description=name)
    assert "<b>" not in drawn
    assert "&lt;b&gt;&amp;" in drawn
    assert Page.checked(drawn).labels == [name]


def test_a_dot_is_where_its_numbers_say() -> None:
    drawn = scatter({"a": (0.0, 0.0), "b": (10.0, 1.0)}, x_label="x", y_label="y", description="d")
    # x: from -0.6 to 10.6 on 46 to 388, so 0 is at 46 + 342 * 0.6 / 11.2 and 10 at 46 + 342 * 10.6 / 11.2
    # y: from -0.2 to 1.2 on 214 to 26, so 0 is at 214 - 188 * 0.2 / 1.4 and 1 at 214 - 188 * 1.2 / 1.4
    assert '<circle class="s0 point" cx="64.3" cy="187.1" r="6"><title>a: x 0, y 0</title></circle>' in drawn
    assert '<circle class="s1 point" cx="369.7" cy="52.9" r="6"><title>b: x 10, y 1</title></circle>' in drawn
