"""Intervals by hand, how often a difference is claimed where there is none, the sentences and the table's numbers."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from adapters.errors import UserError
from sim.intervals import Difference, Interval, interquartile_mean, interval, paired_difference, statement
from sim.scores import Column, Section, World, comparisons, score_table

YARDSTICK = 4900.0


def _report(bundle: str, returns: dict[str, np.ndarray], names: list[World] | None = None) -> dict[str, Any]:
    """A report of returns `(worlds, episodes)` by context; the worlds go by `names`, or are w0, w1 of suite s."""
    cells = [
        {"suite": world.suite, "name": world.name, "perturbation": _change(world), "context": context, "returns": row}
        for context, rows in returns.items()
        for world, row in zip(names or _worlds(len(rows)), rows.tolist(), strict=True)
    ]
    return {"bundle": bundle, "cells": cells}


def _worlds(count: int) -> list[World]:
    return [World("s", f"w{index}") for index in range(count)]


def _change(world: World) -> dict[str, Any]:
    """A grid's world is named mass-M-damping-D."""
    numbers = re.fullmatch(r"mass-(.+)-damping-(.+)", world.name)
    if not numbers:
        return {"name": world.name}
    mass, damping = map(float, numbers.groups())
    return {"name": world.name, "body_mass": {"*": mass}, "dof_damping": {"*": damping}}


def _small(returns: np.ndarray, title: str = "a") -> tuple[Column, list[World]]:
    """A column with returns `(seeds, worlds, episodes)` over a suite of its own."""
    reports = [_report(f"{title}-{seed}", {"nominal": rows}) for seed, rows in enumerate(returns)]
    return Column(title, reports, "nominal"), _worlds(returns.shape[1])


def test_interval_by_hand() -> None:
    # One world, two seeds with scores 0 and 1: a resample is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4, so the
    # 2.5th percentile is 0 and the 97.5th is 1. The middle half of (0, 1) is both, so the point is 1/2.
    column, worlds = _small(np.array([[[0.0, 0.0]], [[10.0, 10.0]]]))
    assert interval(column, worlds, 10.0) == Interval(0.5, 0.0, 1.0, "training seeds")


def test_interval_is_stratified() -> None:
    # Each world is the same over its seeds, so no resample within worlds differs; drawn over worlds, it would.
    column, worlds = _small(np.array([[[1.0], [3.0], [5.0], [90.0]]] * 3))
    # Twelve scores, three of each; three are cut at either end, which leaves three 3s and three 5s.
    assert interval(column, worlds, 1.0)[:3] == (4.0, 4.0, 4.0)


def test_one_seed_resamples_episodes() -> None:
    # Episodes 0 and 10: as above, with episodes in the place of seeds.
    column, worlds = _small(np.array([[[0.0, 10.0]]]))
    assert interval(column, worlds, 10.0) == Interval(0.5, 0.0, 1.0, "episodes")


def test_one_episode_has_no_interval() -> None:
    column, worlds = _small(np.array([[[7.0]]]))
    point, low, high, resampled = interval(column, worlds, 1.0)
    assert (point, resampled) == (7.0, "nothing")
    assert math.isnan(low) and math.isnan(high)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), seeds=st.integers(1, 5), worlds=st.integers(2, 8))
def test_interval_covers_its_point(seed: int, seeds: int, worlds: int) -> None:
    returns = np.random.default_rng(seed).normal(2000, 300, (seeds, worlds, 30 if seeds == 1 else 3))
    column, names = _small(returns)
    for point, low, high, _ in (
        interval(column, names, YARDSTICK, samples=400),
        paired_difference(column, _small(returns[:, :, ::-1])[0], names, YARDSTICK, samples=400).interval,
    ):
        # The interquartile mean of a resample is biased outwards by ties: a little slack beside the width.
        slack = 0.25 * (high - low) + 1e-12
        assert low - slack <= point <= high + slack


def test_interval_shrinks_with_seeds() -> None:
    returns = np.random.default_rng(0).normal(2000, 300, (48, 6, 2))
    widths = []
    for seeds in (3, 12, 48):
        column, worlds = _small(returns[:seeds])
        _, low, high, _ = interval(column, worlds, YARDSTICK)
        widths.append(high - low)
    # A sixteenth of the variance: a quarter of the width, give or take.
    assert widths[0] > 1.4 * widths[1] > 1.4 * 1.4 * widths[2]


def test_interval_repeats_under_its_seed() -> None:
    column, worlds = _small(np.random.default_rng(0).normal(size=(3, 5, 2)))
    assert interval(column, worlds, 1.0, seed=3) == interval(column, worlds, 1.0, seed=3)
    assert interval(column, worlds, 1.0, seed=3) != interval(column, worlds, 1.0, seed=4)


def test_paired_difference_by_hand() -> None:
    # Worlds and seeds differ widely, the pairs by 2 and 4 (first seed), 4 and 6 (second): means 3 and 5, in all 4.
    # Their standard deviation is sqrt(2), that of their mean 1, and t(0.975) with one degree of freedom is 12.7062.
    theirs = np.array([[[100.0], [900.0]], [[500.0], [20.0]]])
    a, worlds = _small(theirs + np.array([[[2.0], [4.0]], [[4.0], [6.0]]]))
    (point, low, high, over), by_seed = difference = paired_difference(a, _small(theirs)[0], worlds, 1.0)
    assert (point, over, by_seed) == (4.0, "training seeds", [3.0, 5.0])
    assert (low, high) == (pytest.approx(4 - 12.7062, abs=1e-4), pytest.approx(4 + 12.7062, abs=1e-4))
    assert difference.verdict == "inconclusive"


def test_three_seeds_that_agree_are_a_gain() -> None:
    # Means 3, 4 and 5: standard deviation 1, t(0.975) with two degrees of freedom 4.3027, over sqrt(3): 2.4841.
    a, worlds = _small(np.array([[[3.0]], [[4.0]], [[5.0]]]))
    zero, _ = _small(np.zeros((3, 1, 1)))
    gain = paired_difference(a, zero, worlds, 1.0)
    assert gain.interval[1:3] == (pytest.approx(1.5159, abs=1e-4), pytest.approx(6.4841, abs=1e-4))
    assert gain.verdict == "gain"
    assert paired_difference(zero, a, worlds, 1.0).verdict == "loss"


def test_one_seed_pairs_episodes() -> None:
    # Episodes differ by 2 and 4: a resample is 2, 3 or 4 with probability 1/4, 1/2, 1/4.
    theirs = np.array([[[100.0, 500.0]]])
    a, worlds = _small(theirs + np.array([[[2.0, 4.0]]]))
    difference = paired_difference(a, _small(theirs)[0], worlds, 1.0)
    assert difference == Difference(Interval(3.0, 2.0, 4.0, "episodes"), [3.0])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_one_in_twenty_is_claimed_where_nothing_differs(seeds: int) -> None:
    # A policy is good or bad in all worlds of its seed: the case that a bootstrap within worlds gets wrong.
    rng = np.random.default_rng(seeds)
    trials, worlds = 1000, 12
    returns = rng.normal(0, 1, (trials, seeds, 1, 1)) + rng.normal(0, 0.3, (trials, seeds, worlds, 1))
    zero, names = _small(np.zeros((seeds, worlds, 1)))
    claims = sum(paired_difference(_small(trial)[0], zero, names, 1.0).verdict != "inconclusive" for trial in returns)
    # The standard deviation of the rate is 0.7 %.
    assert 0.03 < claims / trials < 0.07


def test_pairs_need_the_same_seeds() -> None:
    a, worlds = _small(np.zeros((2, 3, 1)))
    b, _ = _small(np.zeros((3, 3, 1)), "b")
    with pytest.raises(UserError, match=r"'a' has .*\(2, 3, 1\) and 'b' \(3, 3, 1\)"):
        paired_difference(a, b, worlds, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "verdict", "says", "never"),
    [
        (0.01, 0.09, "gain", "a scored higher than b: +0.050 (95 % interval +0.010 to +0.090)", "lower"),
        (-0.09, -0.01, "loss", "a scored lower than b: -0.050 (95 % interval -0.090 to", "higher"),
        (-0.01, 0.11, "inconclusive", "No difference shown between a and b", "scored"),
        (0.0, 0.1, "inconclusive", "No difference shown", "scored"),
        (math.nan, math.nan, "inconclusive", "nothing is shown", "scored"),
    ],
)
def test_statement_goes_by_the_interval(low: float, high: float, verdict: str, says: str, never: str) -> None:
    point = math.copysign(0.05, low)
    difference = Difference(Interval(point, low, high, "training seeds"), [0.12, -0.02])
    assert difference.verdict == verdict
    text = statement(difference, "a", "b")
    assert says in text and never not in text
    assert math.isnan(low) or text.endswith("By training seed: +0.120, -0.020.")


def test_statement_warns_of_a_single_training_seed() -> None:
    difference = Difference(Interval(0.05, 0.01, 0.09, "episodes"), [0.05])
    assert statement(difference, "a", "b").endswith("One training seed: another training may come out otherwise.")


def test_comparisons_find_the_pairs_by_bundle() -> None:
    returns = {context: np.ones((1, 1)) for context in ("nominal", "inferred", "oracle")}
    columns = [Column("MOPO", [_report(f"mopo-{seed}", returns) for seed in range(2)], "nominal")]
    columns += [
        Column(context, [_report(f"augwm-{seed}", returns) for seed in range(2)], context) for context in returns
    ]
    assert [(question, a.title, b.title) for question, a, b in comparisons(columns)] == [
        ("What adaptation gained or lost", "inferred", "nominal"),
        ("Against MOPO", "inferred", "MOPO"),
        ("What a perfect context would change", "oracle", "inferred"),
    ]


def _rows(columns: list[Column]) -> dict[str, list[str]]:
    """The score table as a terminal shows it in 100 columns, by the first entry of each row."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(score_table(columns, YARDSTICK))
    lines = [re.split(r"[│┃]", line)[1:-1] for line in console.export_text().splitlines()]
    return {line[0].strip(): [text.strip() for text in line[1:]] for line in lines if line}


def test_table_by_hand() -> None:
    names = [World("grid", name) for name in ("mass-0.5-damping-1", "mass-1-damping-1", "mass-1.5-damping-1")]
    names += [World("failure", "dead-foot"), World("failure", "dead-shin")]
    # MOPO returns 0.4, 1.0, 1.3, 0.5 and 0.9 times the yardstick; AugWM 1 nominal, 0.5 inferred and 2 oracle.
    mopo = YARDSTICK * np.array([[0.4, 0.4], [0.9, 1.1], [1.3, 1.3], [0.5, 0.5], [0.9, 0.9]])
    flat = {"nominal": 1.0, "inferred": 0.5, "oracle": 2.0}
    augwm = {context: np.full((5, 2), YARDSTICK * score) for context, score in flat.items()}
    columns = [
        Column("MOPO", [_report("mopo", {"nominal": mopo}, names)], "nominal"),
        *(Column(context, [_report("augwm", augwm, names)], context) for context in flat),
    ]
    rows = _rows(columns)
    assert rows["mass-0.5-damping-1"] == ["0.40", "1.00", "0.50", "2.00"]
    assert rows["mass-1-damping-1 (original)"] == ["1.00", "1.00", "0.50", "2.00"]
    # (0.4 + 1.0 + 1.3) / 3 = 0.9, (0.5 + 0.9) / 2 = 0.7, (2.7 + 1.4) / 5 = 0.82.
    assert rows["grid: mean"][0] == "0.90"
    assert rows["failure: mean"][0] == "0.70"
    assert rows["all: mean"] == ["0.82", "1.00", "0.50", "2.00"]
    assert len(rows) == 1 + 5 + 3
    bold = [
        [str(text.style) for text in column._cells if hasattr(text, "style")]
        for column in score_table(columns, YARDSTICK).columns[1:]
    ]
    # Bold is the best that a robot can have: AugWM nominal, both where they tie, then MOPO; the oracle never.
    assert [texts[0] for texts in bold] == ["", "bold", "", ""]
    assert [texts[1] for texts in bold] == ["bold", "bold", "", ""]
    assert [texts[2] for texts in bold] == ["bold", "", "", ""]
    assert not any(bold[3])


def test_columns_refuse_what_does_not_fit() -> None:
    report = _report("mopo", {"nominal": np.ones((1, 2))})
    with pytest.raises(UserError, match="'MOPO' has no validation report"):
        Column("MOPO", [], "nominal")
    with pytest.raises(UserError, match="'MOPO': a report has no context 'inferred'"):
        Column("MOPO", [report], "inferred")
    with pytest.raises(UserError, match="no world 'other' of suite 's'"):
        Column("MOPO", [report], "nominal").returns([World("s", "other")])
    longer = _report("mopo", {"nominal": np.ones((1, 3))})
    with pytest.raises(UserError, match="differ in episodes"):
        Column("MOPO", [report, longer], "nominal").returns([World("s", "w0")])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
def test_interval_is_of_the_same_mean_as_the_validation_report(count: int) -> None:
    scores = np.random.default_rng(count).normal(size=count)
    column, worlds = _small(scores[None, :, None])
    assert interval(column, worlds, 1.0).point == pytest.approx(interquartile_mean(scores), rel=1e-12)


def test_interquartile_mean_goes_along_an_axis() -> None:
    values = np.random.default_rng(0).normal(size=(3, 9, 2))
    expected = [[interquartile_mean(values[i, :, k]) for k in range(2)] for i in range(3)]
    np.testing.assert_allclose(interquartile_mean(values, axis=1), expected, rtol=1e-12)
    assert interquartile_mean(values) == interquartile_mean(values.ravel())


@pytest.mark.parametrize(
    ("yardstick", "score", "sign", "text"),
    [
        (4900.0, 0.756, False, "0.76"),
        (4900.0, 0.756, True, "+0.76"),
        (4900.0, -0.004, True, "0.00"),
        (4900.0, -0.004, False, "0.00"),
        (1.0, 3704.6, False, "3,705"),
        (1.0, -1234.0, True, "-1,234"),
    ],
)
def test_scores_are_written_as_they_are_read(yardstick: float, score: float, sign: bool, text: str) -> None:
    # Without a yardstick scores are returns, which have no decimals; what rounds to nothing has no sign.
    assert Section("", "", [], yardstick, []).text(score, sign) == text
