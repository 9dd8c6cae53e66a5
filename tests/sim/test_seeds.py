"""Reports of several training seeds, pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.files import write_json
from sim.seeds import main, read_columns


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


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path)]) == 2
    assert "holds no reports named ALGORITHM-SEED.json" in capsys.readouterr().err
