"""Intervals by hand, the table's numbers, the sentences, and a report that stands alone."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from adapters.errors import UserError
from sim.perturb import load_suite
from sim.report import (
    Column,
    Difference,
    Interval,
    Section,
    World,
    comparisons,
    figure,
    interval,
    paired_difference,
    score_table,
    statement,
    write_report,
)
from sim.validate import interquartile_mean, validate

SUITES = ("mass-damping", "joint-failure")
YARDSTICK = 4900.0


def _report(bundle: str, contexts: Sequence[str], returns: Callable[[str, int], Sequence[float]]) -> dict[str, Any]:
    """A report over the shipped suites; `returns` gives the episodes of (context, index of the world)."""
    worlds = [(suite, world) for suite in SUITES for world in load_suite(suite)]
    cells: list[dict[str, Any]] = []
    for context in contexts:
        for index, (suite, world) in enumerate(worlds):
            values = [float(value) for value in returns(context, index)]
            cell: dict[str, Any] = {
                "name": world.name,
                "suite": suite,
                "perturbation": world.model_dump(mode="json", exclude_defaults=True),
                "context": context,
                "returns": values,
            }
            if world.at_step:
                cell["return_after_change"] = sum(values) / len(values) / 2
                if context == "inferred":
                    cell["steps_to_90_percent"] = None if world.name == "dead-bfoot-at-500" else 40 + index
            cells.append(cell)
    return {"bundle": bundle, "env": "halfcheetah", "episodes": len(values), "cells": cells}


def _section(title: str, seeds: int, lift: float = 0.0, episodes: int = 4) -> Section:
    """Made-up results: the inferred context returns `lift` more than the nominal one."""
    rng = np.random.default_rng(7)

    def noisy(context: str, index: int) -> list[float]:
        base = 3000 - 60 * index + {"nominal": 0.0, "inferred": lift, "oracle": lift}[context]
        return (base + rng.normal(0, 20, episodes)).tolist()

    mopo = [_report(f"mopo-{seed}", ["nominal"], noisy) for seed in range(seeds)]
    augwm = [_report(f"augwm-{seed}", ["nominal", "inferred", "oracle"], noisy) for seed in range(seeds)]
    columns = [
        Column("MOPO", mopo, "nominal"),
        Column("AugWM nominal", augwm, "nominal"),
        Column("AugWM inferred", augwm, "inferred"),
        Column("oracle", augwm, "oracle"),
    ]
    return Section(title, f"made up, {seeds} training seeds", columns, YARDSTICK)


def _small(returns: np.ndarray, title: str = "a") -> tuple[Column, list[World]]:
    """A column with returns `(seeds, worlds, episodes)` over a suite of its own."""
    reports = [
        {
            "bundle": f"{title}-{seed}",
            "cells": [
                {"name": f"w{i}", "suite": "s", "perturbation": {"name": f"w{i}"}, "context": "nominal", "returns": row}
                for i, row in enumerate(rows)
            ],
        }
        for seed, rows in enumerate(returns.tolist())
    ]
    return Column(title, reports, "nominal"), [World("s", f"w{i}") for i in range(returns.shape[1])]


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


@settings(max_examples=20, deadline=None)
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
    # World 0 resamples to 2, 3, 4, world 1 to 4, 5, 6, each with 1/4, 1/2, 1/4: both low or both high is 1/16, beyond
    # 2.5 %, so the interval is (2 + 4) / 2 to (4 + 6) / 2.
    theirs = np.array([[[100.0], [900.0]], [[500.0], [20.0]]])
    a, worlds = _small(theirs + np.array([[[2.0], [4.0]], [[4.0], [6.0]]]))
    difference = paired_difference(a, _small(theirs)[0], worlds, 1.0)
    assert difference == Difference(Interval(4.0, 3.0, 5.0, "training seeds"), [3.0, 5.0])
    assert difference.verdict == "gain"


def test_pairs_need_the_same_seeds() -> None:
    a, worlds = _small(np.zeros((2, 3, 1)))
    b, _ = _small(np.zeros((3, 3, 1)), "b")
    with pytest.raises(UserError, match=r"'a' has .*\(2, 3, 1\) and 'b' \(3, 3, 1\)"):
        paired_difference(a, b, worlds, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "by_seed", "verdict", "says", "never"),
    [
        (0.01, 0.09, [0.1, 0.02], "gain", "a scored higher than b: +0.050 (95 % interval +0.010 to +0.090)", "lower"),
        (-0.09, -0.01, [-0.1, -0.02], "loss", "a scored lower than b: -0.050 (95 % interval -0.090 to", "higher"),
        (-0.01, 0.11, [0.1, 0.02], "inconclusive", "No difference shown between a and b", "scored"),
        (0.0, 0.1, [0.1, 0.02], "inconclusive", "No difference shown", "scored"),
        # The interval is clear of zero, and one of the trainings went the other way.
        (0.01, 0.09, [0.12, -0.02], "inconclusive", "By training seed: +0.120, -0.020.", "scored"),
        (-0.09, -0.01, [-0.12, 0.02], "inconclusive", "No difference shown", "scored"),
        (math.nan, math.nan, [0.05], "inconclusive", "nothing is shown", "scored"),
        (math.nan, math.nan, [-0.05], "inconclusive", "nothing is shown", "scored"),
    ],
)
def test_statement_goes_by_the_sign(
    low: float, high: float, by_seed: list[float], verdict: str, says: str, never: str
) -> None:
    difference = Difference(Interval(math.copysign(0.05, by_seed[0]), low, high, "training seeds"), by_seed)
    assert difference.verdict == verdict
    text = statement(difference, "a", "b")
    assert says in text and never not in text


def test_statement_warns_of_a_single_training_seed() -> None:
    difference = Difference(Interval(0.05, 0.01, 0.09, "episodes"), [0.05])
    assert statement(difference, "a", "b").endswith("One training seed: another training may come out otherwise.")


def test_comparisons_find_the_pairs_by_bundle() -> None:
    columns = _section("live", 2).columns
    assert [(question, a.title, b.title) for question, a, b in comparisons(columns)] == [
        ("What adaptation gained or lost", "AugWM inferred", "AugWM nominal"),
        ("Against MOPO", "AugWM inferred", "MOPO"),
        ("What a perfect context would change", "oracle", "AugWM inferred"),
    ]


def _rows(columns: list[Column]) -> dict[str, list[str]]:
    """The score table as a terminal shows it in 100 columns, by the first entry of each row."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(score_table(columns, YARDSTICK))
    lines = [re.split(r"[│┃]", line)[1:-1] for line in console.export_text().splitlines()]
    return {line[0].strip(): [text.strip() for text in line[1:]] for line in lines if line}


def test_table_by_hand() -> None:
    # MOPO returns 490 in world 0, 980 in world 1 and so on; AugWM 4900 nominal, 2450 inferred, 9800 oracle.
    flat = {"nominal": 4900.0, "inferred": 2450.0, "oracle": 9800.0}
    mopo = [_report("mopo", ["nominal"], lambda _, index: [490.0 * (index + 1)] * 2)]
    augwm = [_report("augwm", list(flat), lambda context, _: [flat[context] - 490, flat[context] + 490])]
    columns = [
        Column("MOPO", mopo, "nominal"),
        *(Column(f"AugWM {name}" if name != "oracle" else name, augwm, name) for name in flat),
    ]
    rows = _rows(columns)
    assert rows["mass-0.5-damping-0.5"] == ["0.10", "1.00", "0.50", "2.00"]
    # The 13th of the grid is the original: 13 x 0.1.
    assert rows["mass-1-damping-1 (original)"] == ["1.30", "1.00", "0.50", "2.00"]
    # The grid's mean is 0.1 x (1 + ... + 25) / 25 = 1.3, the failures' 0.1 x (26 + ... + 37) / 12 = 3.15, all of
    # them 0.1 x (1 + ... + 37) / 37 = 1.9.
    assert rows["mass-damping: mean"][0] == "1.30"
    assert rows["joint-failure: mean"][0] == "3.15"
    assert rows["all: mean"] == ["1.90", "1.00", "0.50", "2.00"]
    assert len(rows) == 1 + 37 + 3
    bold = [
        [str(text.style) for text in column._cells if hasattr(text, "style")]
        for column in score_table(columns, YARDSTICK).columns[1:]
    ]
    # Bold is the best that a robot can have: AugWM nominal below 1.0, both at 1.0, MOPO above; the oracle never.
    assert [texts[0] for texts in bold] == ["", "bold", "", ""]
    assert [texts[9] for texts in bold] == ["bold", "bold", "", ""]
    assert [texts[10] for texts in bold] == ["bold", "", "", ""]
    assert not any(bold[3])


def test_columns_refuse_what_does_not_fit() -> None:
    report = _report("mopo", ["nominal"], lambda *_: [1.0, 2.0])
    with pytest.raises(UserError, match="'MOPO' has no validation report"):
        Column("MOPO", [], "nominal")
    with pytest.raises(UserError, match="'MOPO': a report has no context 'inferred'"):
        Column("MOPO", [report], "inferred")
    with pytest.raises(UserError, match="no world 'other' of suite 's'"):
        Column("MOPO", [report], "nominal").returns([World("s", "other")])
    longer = _report("mopo", ["nominal"], lambda *_: [1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="differ in episodes"):
        Column("MOPO", [report, longer], "nominal").returns([World("joint-failure", "dead-ffoot")])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
def test_interval_is_of_the_same_mean_as_the_validation_report(count: int) -> None:
    scores = np.random.default_rng(count).normal(size=count)
    column, worlds = _small(scores[None, :, None])
    assert interval(column, worlds, 1.0).point == pytest.approx(interquartile_mean(scores), rel=1e-12)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a figure and a report of two sections: adaptation lost in the first and gained in the second."""
    folder = tmp_path_factory.mktemp("report")
    sections = [_section("live", 1, lift=-200.0), _section("full <run>", 3, lift=200.0)]
    figure(folder / "figure.png", sections)
    details = {
        "live": {
            "world_models": [{"holdout_mse": 0.02834, "horizon_rmse": {"1": 0.031, "5": 0.1, "20": 0.4, "50": 0.875}}],
            "provenance": {"training seeds": [0], "updates": 30000, "versions": {"numpy": "2.0", "torch": "2.13.0"}},
            "commands": ["surefoot demo seeds=[0]"],
        }
    }
    write_report(folder / "report.html", sections, folder / "figure.png", details)
    return folder


def test_html_has_every_world_and_every_fact(written: Path) -> None:
    html = (written / "report.html").read_text()
    for suite in SUITES:
        for world in load_suite(suite):
            # Once in the table of either section.
            assert len(re.findall(rf"<th>{re.escape(world.name)}( \(original\))?</th>", html)) >= 2
    for fact in ("0.0283", "0.875", "training seeds", "30000", "torch 2.13.0", "surefoot demo seeds=[0]", "4,900"):
        assert fact in html
    assert "full &lt;run&gt;" in html and "<run>" not in html


def test_html_stands_alone(written: Path) -> None:
    html = (written / "report.html").read_text()
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'>)\s]{0,22})""", html, re.IGNORECASE)
    assert links == ["data:image/png;base64,"]
    assert not re.search(r"https?://|<script|<link|@import", html)
    png = base64.b64encode((written / "figure.png").read_bytes()).decode()
    assert png in html


def test_html_says_what_the_numbers_say(written: Path) -> None:
    html = (written / "report.html").read_text()
    live, full = html.split('<section class="card">')[1:3]
    assert "AugWM inferred scored lower than AugWM nominal" in live
    assert "AugWM inferred scored higher than AugWM nominal" not in live
    assert "AugWM inferred scored higher than AugWM nominal" in full
    assert "By training seed: +0.04" in full and "One training seed: another" in live
    # Oracle and inferred are drawn from the same distribution, so there is nothing to tell apart.
    assert "No difference shown between oracle and AugWM inferred" in full


def test_html_sums_up_the_failures_in_mid_run(written: Path) -> None:
    html = (written / "report.html").read_text()
    # Worlds 31 to 36 take 40 + index steps, all but dead-bfoot-at-500, the 33rd: 71, 72, 74, 75, 76.
    assert re.search(r"<strong>74 steps</strong>\s*\(5 of 6 contexts moved", html)
    assert re.search(r"<strong>74 steps</strong>\s*\(15 of 18 contexts moved", html)
    assert "<th>dead-bfoot-at-500</th><td>-, -, -</td>" in html
    assert "<th>dead-ffoot-at-500</th><td>76, 76, 76</td>" in html


def test_figure_is_one_png_of_a_readable_size(written: Path) -> None:
    header = (written / "figure.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    assert width >= 1600 and height >= 1600


def test_a_report_without_a_grid_or_failures_is_written_too(tmp_path: Path) -> None:
    column, _ = _small(np.array([[[100.0], [-300.0]]]), "MOPO")
    section = Section("live", "two worlds, one episode", [column], 1000.0)
    figure(tmp_path / "figure.png", [section])
    write_report(tmp_path / "report.html", [section], tmp_path / "figure.png", {})
    html = (tmp_path / "report.html").read_text()
    assert "<th>w1</th>" in html and "-0.30" in html and "nan" not in html
    assert "A failure in mid-run" not in html and "Score over all worlds" not in html


def test_nothing_is_left_where_a_report_cannot_be_written(tmp_path: Path) -> None:
    column, _ = _small(np.array([[[1.0, 2.0]]]))
    sections = [Section("live", "", [column], 1.0)]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        figure(tmp_path / "file" / "figure.png", sections)
    with pytest.raises(UserError, match=r"figure\.png"):
        write_report(tmp_path / "report.html", sections, tmp_path / "figure.png", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_what_validate_reports_can_be_shown(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    suite = tmp_path / "legs.yaml"
    suite.write_text("- {name: early, actuator_gain: {bfoot: 0.0}}\n- {name: late, at_step: 30, gravity: 0.5}\n")
    report = validate(make_bundle(), [suite, "mass-damping"], episodes=2, steps=40)
    columns = [Column(context, [report], context) for context in ("nominal", "inferred", "oracle")]
    section = Section("live", "forty steps of a made-up policy", columns, report["yardstick_return"])
    figure(tmp_path / "figure.png", [section])
    write_report(tmp_path / "report.html", [section], tmp_path / "figure.png", {})
    html = (tmp_path / "report.html").read_text()
    for cell in report["cells"]:
        assert f"<th>{cell['name']}" in html
    late = next(cell for cell in report["cells"] if (cell["name"], cell["context"]) == ("late", "nominal"))
    assert columns[0].score([World("legs", "late")], 4900.0) == pytest.approx(late["return_mean"] / 4900.0)
    assert "{:,.0f}".format(late["return_after_change"]) in html.split("A failure in mid-run")[1]
