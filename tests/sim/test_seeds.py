"""Reports of several training seeds, pooled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from adapters.files import write_json
from sim.seeds import hardest, main, read_columns, regained


def report(returns: dict[str, list[float]]) -> dict[str, Any]:
    """A report of one world in one suite, with the returns of each context."""
    cells = [
        {"suite": "grid", "name": "heavy", "perturbation": {}, "context": context, "returns": values}
        for context, values in returns.items()
    ]
    return {"yardstick_return": 100.0, "cells": cells}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, gain in enumerate((10.0, 20.0, 30.0)):
        write_json(tmp_path / f"augwm-{seed}.json", report({"nominal": [50.0, 50.0], "inferred": [50.0 + gain] * 2}))
        write_json(tmp_path / f"mopo-{seed}.json", report({"nominal": [40.0, 60.0]}))
    write_json(tmp_path / "mopo-0-more.json", report({"nominal": [1.0, 3.0]}))
    write_json(tmp_path / "notes.json", {})
    return tmp_path


def test_reports_are_sorted_by_part_algorithm_context_and_seed(folder: Path) -> None:
    columns = read_columns(folder)
    assert {part: [column.title for column in found] for part, found in columns.items()} == {
        "": ["augwm nominal", "augwm inferred", "mopo nominal"],
        "more": ["mopo nominal"],
    }
    assert columns[""][1].returns(columns[""][1].worlds()).tolist() == [[[60, 60]], [[70, 70]], [[80, 80]]]


def test_table_has_scores_and_paired_differences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Of three scores 0.6, 0.7 and 0.8 none is left out: their mean is 0.7.
    assert any("augwm inferred " in line and "0.700 (" in line for line in lines)
    # 0.1, 0.2 and 0.3: mean 0.2, standard deviation 0.1, t(0.975, 2) = 4.303; 0.2 +- 4.303 x 0.1 / sqrt(3) = 0.248.
    (difference,) = (line for line in lines if "augwm inferred - augwm nominal" in line)
    assert "+0.200 (-0.048 to +0.448); +0.100, +0.200, +0.300" in difference


def mid_run(settled: dict[str, float]) -> dict[str, Any]:
    """A report with a dead foot from the start and from step 500 on, and another change in mid-run alone."""
    described = {
        "dead": {"actuator_gain": {"foot": 0.0}},
        "dead-late": {"at_step": 500, "actuator_gain": {"foot": 0.0}},
        "alone": {"at_step": 500, "gravity": 0.5},
        "there-and-back": {"at_step": 500, "actuator_gain": {"foot": 0.0}, "schedule": [{"at_step": 700}]},
    }
    cells = [
        {
            "suite": "failures",
            "name": name,
            "context": "inferred",
            "perturbation": {"name": name} | change,
            "returns": [settled[name]],
            "settled_reward": settled[name],
        }
        for name, change in described.items()
    ]
    return {"yardstick_return": 1.0, "cells": cells}


def test_what_is_regained_is_a_share_of_what_is_reached_from_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, late in enumerate((3.0, 4.0)):
        settled = {"dead": 4.0, "dead-late": late, "alone": 9.0, "there-and-back": 9.0}
        write_json(tmp_path / f"ours-{seed}.json", mid_run(settled))
    (column,) = read_columns(tmp_path)[""]
    # 3 / 4 and 4 / 4; the other two worlds have no counterpart that is changed from the start.
    (found,) = regained(column).items()
    assert found[0].name == "dead-late" and found[1].tolist() == [0.75, 1.0]
    assert main([str(tmp_path)]) == 0
    # The mean of the two seeds.
    assert re.search(r"dead-late\W+0\.88", capsys.readouterr().out)


def test_reports_that_do_not_tell_what_is_regained_have_the_other_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = mid_run({"dead": 4.0, "dead-late": 2.0, "alone": 9.0, "there-and-back": 9.0})
    for cell in earlier["cells"]:
        del cell["settled_reward"]
    write_json(tmp_path / "ours-0.json", earlier)
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "ours" in shown and "of what is reached" not in shown


def test_hardest_worlds_are_the_baselines_worst_quarter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def returns(values: list[float]) -> dict[str, Any]:
        worlds = [(f"w{place}", value) for place, value in enumerate(values)]
        cells = [
            {"suite": "grid", "name": name, "context": "nominal", "perturbation": {}, "returns": [value]}
            for name, value in worlds
        ]
        return {"yardstick_return": 10.0, "cells": cells}

    write_json(folder / "base-0-quarter.json", returns([5, 1, 4, 3, 2, 6, 7, 8]))
    write_json(folder / "ours-0-quarter.json", returns([0, 8, 0, 0, 6, 0, 0, 0]))
    base, ours = read_columns(folder)["quarter"]
    # The worst two of eight for the baseline are w1 and w4.
    assert [{world.name for world in chosen} for chosen in hardest([base, ours], base)] == [{"w1", "w4"}]
    # With more seeds each one's worlds are chosen by the others: by the second seed w0 and w2, by the first w1 and w4.
    write_json(folder / "base-1-quarter.json", returns([1, 5, 2, 3, 4, 6, 7, 8]))
    write_json(folder / "ours-1-quarter.json", returns([0, 8, 0, 0, 6, 0, 0, 0]))
    base, ours = read_columns(folder)["quarter"]
    found = [{world.name for world in chosen} for chosen in hardest([base, ours], base)]
    assert found == [{"w0", "w2"}, {"w1", "w4"}]
    (folder / "base-1-quarter.json").unlink()
    (folder / "ours-1-quarter.json").unlink()
    assert main([str(folder), "nobody"]) == 2
    assert "there is no column 'nobody'" in capsys.readouterr().err
    for path in folder.glob("*.json"):
        if "quarter" not in path.name:
            path.unlink()
    assert main([str(folder), "base nominal"]) == 0
    printed = capsys.readouterr().out
    # (1 + 2) / 2 / 10 and (8 + 6) / 2 / 10.
    assert re.search(r"base nominal\W+0\.150", printed) and re.search(r"ours nominal\W+0\.700", printed)


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path)]) == 2
    assert "holds no reports named ALGORITHM-SEED.json" in capsys.readouterr().err
