"""A report that stands alone and says what the numbers say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.errors import UserError
from sim.figure import figure
from sim.perturb import Perturbation, load_suite
from sim.report import write_demo
from sim.scores import Column, Section, World, comparisons
from sim.validate import validate
from sim.wording import TIMES

SUITES = ("mass-damping", "joint-failure")
YARDSTICK = 4900.0


Worlds = Sequence[tuple[str, Perturbation]]
SHIPPED: Worlds = [(suite, world) for suite in SUITES for world in load_suite(suite)]
PLAIN: Worlds = [("s", Perturbation(name="w0")), ("s", Perturbation(name="w1"))]


def _report(
    bundle: str, contexts: Sequence[str], returns: Callable[[str, int], Sequence[float]], worlds: Worlds = SHIPPED
) -> dict[str, Any]:
    """A report over some worlds; `returns` gives the episodes of (context, index of the world)."""
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
                "falls": 0,
            }
            if world.at_step:
                cell["return_after_change"] = sum(values) / len(values) / 2
                if context == "inferred":
                    cell["steps_to_90_percent"] = None if world.name == "dead-bfoot-at-500" else 40 + index
            cells.append(cell)
    return {"bundle": bundle, "env": "halfcheetah", "episodes": len(values), "steps": 1000, "cells": cells}


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
    return Section(title, f"made up, {seeds} training seeds", columns, YARDSTICK, comparisons(columns))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a figure and a report of two sections: adaptation lost in the first and gained in the second."""
    folder = tmp_path_factory.mktemp("report")
    sections = [_section("live", 1, lift=-200.0), _section("full <run>", 3, lift=200.0)]
    figure(folder / "figure.png", sections)
    details = {
        "live": {
            "world_models": [{"holdout_mse": 0.02834, "horizon_rmse": {"1": 0.031, "5": 0.1, "20": 0.4, "50": 0.875}}],
            "provenance": {
                "training seeds": [0],
                "updates": 30000,
                "versions": {"numpy": "2.0", "torch": "2.13.0"},
                "data set": {"sha256": "0f" * 32, "rows": 150000},
                "algorithms": {"augwm": {"horizon": 5, "sac": {"hidden": [256, 256], "clip": None}}},
            },
            "commands": ["surefoot demo seeds=[0]"],
        }
    }
    write_demo(folder / "report.html", sections, details)
    return folder


def test_html_has_every_world_and_every_fact(written: Path) -> None:
    html = (written / "report.html").read_text()
    for suite in SUITES:
        for world in load_suite(suite):
            # Once in the table of either section, and again where it is a failure in mid-run.
            assert html.count(f"<code>{world.name}</code>") == (4 if world.at_step else 2)
    assert html.count(f"mass {TIMES} 1, joint damping {TIMES} 1 (original)<code>") == 2
    for fact in (
        "0.0283",
        "0.875",
        "training seeds",
        "30000",
        "torch 2.13.0",
        "augwm (horizon 5, sac (hidden 256, 256, clip None))",
        "surefoot demo seeds=[0]",
        "4,900",
    ):
        assert fact in html
    assert "full &lt;run&gt;" in html and "<run>" not in html


def test_html_stands_alone(written: Path) -> None:
    html = (written / "report.html").read_text()
    assert not re.search(r"""https?:|<link|@import|\burl\(|\b(src|href)\s*=""", html)


def test_html_says_what_the_numbers_say(written: Path) -> None:
    html = (written / "report.html").read_text()
    live, full = html.split('<section class="card">')[1:3]
    assert "AugWM inferred scored lower than AugWM nominal" in live
    assert "AugWM inferred scored higher than AugWM nominal" not in live
    assert "AugWM inferred scored higher than AugWM nominal" in full
    assert "By training seed: +0.04" in full and "One training seed: another" in live
    assert "bootstrap interval over episodes" in " ".join(live.split())
    assert "bootstrap interval over training seeds" in " ".join(full.split())
    # Oracle and inferred are drawn from the same distribution, so there is nothing to tell apart.
    assert "No difference shown between oracle and AugWM inferred" in full


def test_html_sums_up_the_failures_in_mid_run(written: Path) -> None:
    html = (written / "report.html").read_text()
    # Worlds 31 to 36 take 40 + index steps, all but dead-bfoot-at-500, the 33rd: 71, 72, 74, 75, 76.
    assert re.search(r"<strong>74 steps</strong>\s*\(5 of 6 contexts moved", html)
    assert re.search(r"<strong>74 steps</strong>\s*\(15 of 18 contexts moved", html)
    assert "motor bfoot dead from step 500 on<code>dead-bfoot-at-500</code></th><td>-, -, -</td>" in html
    assert "motor ffoot dead from step 500 on<code>dead-ffoot-at-500</code></th><td>76, 76, 76</td>" in html


def test_figure_is_one_png_of_a_readable_size(written: Path) -> None:
    header = (written / "figure.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    assert width >= 1600 and height >= 1600


def test_a_report_without_a_grid_or_failures_is_written_too(tmp_path: Path) -> None:
    report = _report("mopo", ["nominal"], lambda _, index: [100.0 - 400.0 * index], PLAIN)
    column = Column("MOPO", [report], "nominal")
    section = Section("live", "two worlds, one episode", [column], 1000.0, [])
    figure(tmp_path / "figure.png", [section])
    write_demo(tmp_path / "report.html", [section], {})
    html = (tmp_path / "report.html").read_text()
    assert "<code>w1</code>" in html and "-0.30" in html and "nan" not in html
    assert "A failure in mid-run" not in html and "all 2 worlds" not in html
    # Neither suite of HalfCheetah's is there, and nothing says how long the log was.
    assert "<em>" not in html and "The recorded steps of policies" in html


def test_the_words_say_what_the_task_is(written: Path, tmp_path: Path) -> None:
    html = " ".join((written / "report.html").read_text().split())
    assert "<h1>HalfCheetah-v5: one log" in html
    assert "sees 17 numbers" in html and "6 motors (bthigh, bshin, bfoot, fthigh, fshin, ffoot), 20 times" in html
    assert "an episode of 1,000 steps, which is 50 seconds" in html and "150,000 recorded steps" in html
    assert "bonus" not in html
    report = _report("mopo", ["nominal"], lambda *_: [1.0, 2.0], PLAIN) | {"env": "hopper", "steps": 500}
    section = Section("live", "another robot", [Column("MOPO", [report], "nominal")], 1.0, [])
    write_demo(tmp_path / "report.html", [section], {})
    html = " ".join((tmp_path / "report.html").read_text().split())
    # Hopper-v5 steps four times 2 ms: 125 steps a second, 500 in 4 s; it earns 1 for each step that it stands.
    assert "<h1>Hopper-v5: one log" in html and "3 motors" in html and "125 times a second" in html
    assert "500 steps, which is 4 seconds" in html and "bonus for each step" in html and "HalfCheetah" not in html


def test_nothing_is_left_where_a_report_cannot_be_written(tmp_path: Path) -> None:
    column = Column("MOPO", [_report("mopo", ["nominal"], lambda *_: [1.0, 2.0], PLAIN)], "nominal")
    sections = [Section("live", "", [column], 1.0, [])]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        figure(tmp_path / "file" / "figure.png", sections)
    with pytest.raises(UserError, match="cannot write"):
        write_demo(tmp_path / "file" / "report.html", sections, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_what_validate_reports_can_be_shown(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    suite = tmp_path / "legs.yaml"
    suite.write_text("- {name: early, actuator_gain: {bfoot: 0.0}}\n- {name: late, at_step: 30, gravity: 0.5}\n")
    report = validate(make_bundle(), [suite, "mass-damping"], episodes=2, steps=40)
    columns = [Column(context, [report], context) for context in ("nominal", "inferred", "oracle")]
    section = Section("live", "forty steps of a made-up policy", columns, report["yardstick_return"], [])
    figure(tmp_path / "figure.png", [section])
    write_demo(tmp_path / "report.html", [section], {})
    html = (tmp_path / "report.html").read_text()
    for cell in report["cells"]:
        assert f"<code>{cell['name']}</code>" in html
    late = next(cell for cell in report["cells"] if (cell["name"], cell["context"]) == ("late", "nominal"))
    assert columns[0].score([World("legs", "late")], 4900.0) == pytest.approx(late["return_mean"] / 4900.0)
    assert "{:,.0f}".format(late["return_after_change"]) in html.split("A failure in mid-run")[1]
