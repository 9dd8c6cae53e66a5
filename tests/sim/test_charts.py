"""Colours that can be read, and lines that stand where their numbers are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sim.charts import DIFFERENCES, SCORES, Scale, bars, difference_scale, heat_maps, line_charts, score_scale
from sim.scores import Column, Pair, Section
from sim.traces import Trace


def _luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@given(st.floats(-2, 2), st.sampled_from([Scale(0, 1, SCORES), Scale(-0.5, 0.5, DIFFERENCES)]))
@example(0.34375, Scale(-0.5, 0.5, DIFFERENCES))
def test_text_can_be_read_on_every_shade(value: float, scale: Scale) -> None:
    dark, light = sorted(map(_luminance, scale.shade(value)))
    # WCAG's AA for text is a contrast of 4.5, less a little since colours are rounded.
    assert (light + 0.05) / (dark + 0.05) > 4.4


def _section() -> Section:
    """Two contexts over a grid of two by two: 10 to 40 times nominal, and 20 more but in the last world."""
    cells = []
    for context, returns in (("nominal", [10, 20, 30, 40]), ("inferred", [30, 40, 50, 20])):
        for index, value in enumerate(returns):
            change = {"name": f"w{index}", "body_mass": {"*": 1.0 + index // 2}, "dof_damping": {"*": 1.0 + index % 2}}
            cells.append(
                {
                    "suite": "grid",
                    "name": f"w{index}",
                    "perturbation": change,
                    "context": context,
                    "returns": [float(value)] * 2,
                    "falls": index,
                }
            )
    a, b = (Column(context, [{"cells": cells}], context) for context in ("nominal", "inferred"))
    return Section("s", "", [a, b], 10.0, [Pair("?", b, a)])


def test_heat_maps_by_hand() -> None:
    section = _section()
    scores = score_scale([section])
    differences = difference_scale(section, scores)
    # Scores are 1 to 5; the differences are +2, +2, +2 and -2.
    assert (scores.low, scores.high, differences.low, differences.high) == (0.0, 5.0, -2.0, 2.0)
    (shown,) = heat_maps(section, scores, differences)
    assert [map_["title"] for map_ in shown["maps"] + shown["differences"]] == [
        "nominal",
        "inferred",
        "inferred \N{MINUS SIGN} nominal",
    ]
    rows = [(label, [cell["text"] for cell in cells]) for label, cells in shown["maps"][0]["rows"]]
    # The heavier robots are on top.
    assert rows == [("2", ["3.00", "4.00"]), ("1", ["1.00", "2.00"])]
    change = shown["differences"][0]["rows"]
    assert [[cell["text"] for cell in cells] for _, cells in change] == [["+2.00", "-2.00"], ["+2.00", "+2.00"]]
    assert [[cell["original"] for cell in cells] for _, cells in change] == [[False, False], [True, False]]
    ends = [Scale(-1, 1, DIFFERENCES).shade(end) for end in (1, -1)]
    assert [cell["shade"] for cell in change[0][1]] == ends


def test_a_difference_of_nothing_is_the_middle_of_the_scale() -> None:
    section = _section()
    nothing = Section("s", "", section.columns, 10.0, [Pair("?", section.columns[0], section.columns[0])])
    scale = difference_scale(nothing, score_scale([nothing]))
    # 5 % of the best score, so that noise is not blown up.
    assert (scale.low, scale.high) == (-0.25, 0.25)
    assert _luminance(scale.shade(0.0)[0]) > 0.9


def test_bars_by_hand() -> None:
    (group,) = bars(_section())
    nominal, inferred = group["bars"]
    # Scores 1, 2, 3, 4: the middle half is 2 and 3. 3, 4, 5, 2: it is 3 and 4. The scale ends at 3.5.
    assert (nominal["text"], inferred["text"]) == ("2.50 (2.50 to 2.50)", "3.50 (3.50 to 3.50)")
    assert nominal["fill"] == (0.0, pytest.approx(100 * 2.5 / 3.5)) and inferred["fill"] == (0.0, 100.0)
    assert nominal["whisker"] == (pytest.approx(100 * 2.5 / 3.5), 0.0)
    # 0 + 1 + 2 + 3 falls in 4 worlds of 2 episodes.
    assert (nominal["falls"], nominal["episodes"]) == (6, 8)


def test_a_loss_is_a_bar_to_the_left_of_zero() -> None:
    section = _section()
    for cell in section.columns[0].reports[0]["cells"]:
        cell["returns"] = [-30.0] if cell["context"] == "nominal" else [10.0]
    columns = [Column(context, section.columns[0].reports, context) for context in ("nominal", "inferred")]
    (group,) = bars(Section("s", "", columns, 10.0, []))
    # From -3 to 1, zero is at three quarters.
    assert [bar["fill"] for bar in group["bars"]] == [(0.0, 75.0), (75.0, 25.0)]
    # One episode has no interval.
    assert [(bar["whisker"], bar["text"]) for bar in group["bars"]] == [(None, "-3.00"), (None, "1.00")]


def _height(chart: dict[str, Any], value: float) -> float:
    """Where a number stands by the marks of the axis."""
    (low, bottom), *_, (high, top) = [(float(label), y) for label, y in chart["y_ticks"]]
    return bottom + (value - low) / (high - low) * (top - bottom)


def test_line_charts_by_hand() -> None:
    steps = np.arange(1000)
    reward = np.where(steps < 500, 4.0, 2.0)
    context = np.stack([np.where(steps < 500, 1.0, 0.5), np.ones(1000)], axis=1)
    traces = {"nominal": Trace([500], reward, np.ones((1000, 2))), "inferred": Trace([500], reward + 1, context)}
    rewards, contexts = line_charts(traces, ["hip", "knee"])
    assert (rewards["title"], contexts["title"]) == ("reward per step", "context")
    _, _, left, right, top, bottom = rewards["size"]
    # 100 steps before the change and 300 after it are shown: the change is at a quarter of the width.
    assert rewards["changes"] == [(500, pytest.approx(left + (right - left) / 4))]
    first, second = rewards["lines"]
    assert (first["title"], first["dashed"]) == ("nominal", True)
    assert (second["title"], second["dashed"]) == ("inferred", False)
    points = np.array(first["points"])
    # Blocks of ten steps, none across the change: ten at 4, thirty at 2.
    assert len(points) == 40
    np.testing.assert_allclose(points[:10, 1], _height(rewards, 4.0))
    np.testing.assert_allclose(points[10:, 1], _height(rewards, 2.0))
    assert points[9, 0] < rewards["changes"][0][1] < points[10, 0]
    assert all(top <= y <= bottom for _, y in rewards["y_ticks"])
    # Each number of the context is a line: the knee stays at 1, the inferred hip goes to 0.5 and is called by its name.
    titles = [line["title"] for line in contexts["lines"]]
    assert titles == ["nominal, hip", "nominal, knee", "inferred, hip", "inferred, knee"]
    assert {line["colour"] for line in contexts["lines"][2:]} == {second["colour"]}
    ends = [line["points"][-1][1] for line in contexts["lines"]]
    np.testing.assert_allclose(ends, [_height(contexts, value) for value in (1.0, 1.0, 0.5, 1.0)])
    name, x, y = contexts["label"]
    assert (name, y) == ("hip", pytest.approx(_height(contexts, 0.5)))
    assert x > contexts["changes"][0][1]


def test_no_number_is_named_where_none_moves() -> None:
    trace = Trace([500], np.ones(1000), np.ones((1000, 2)))
    _, contexts = line_charts({"inferred": trace}, ["hip", "knee"])
    assert contexts["label"] is None


def test_a_line_ends_with_the_last_episode() -> None:
    reward = np.concatenate([np.ones(520), np.full(480, np.nan)])
    (chart,) = line_charts({"nominal": Trace([500], reward, None)})
    # 400 to 520 in blocks of ten.
    assert len(chart["lines"][0]["points"]) == 12
