"""Learning curves: what is read from runs, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sim import learning_curves


def write(folder: Path, name: str, figures: list[float], figure: str = "return") -> None:
    """A run with an evaluation every 10 control steps."""
    (folder / name).mkdir(parents=True)
    lines = [
        {"stage": "policy", "control_steps": 10 * (place + 1), "return": value, figure: value}
        for place, value in enumerate(figures)
    ]
    lines.insert(0, {"stage": "policy", "control_steps": 5})
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_table_has_mean_and_range_at_every_tenth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "nppac-0", [float(value) for value in range(10, 110, 10)])
    write(tmp_path, "nppac-1", [float(value) for value in range(30, 130, 10)])
    write(tmp_path, "sac-baseline-0", [7.0] * 5)
    assert learning_curves.main([str(tmp_path), str(tmp_path / "curves.png")]) == 0
    printed = capsys.readouterr().out
    assert "nppac, 2 seeds" in printed and "sac-baseline, 1 seeds" in printed
    # At 10 steps 10 and 30, at 100 steps 100 and 120.
    assert "20 (10 to 30)" in printed and "110 (100 to 120)" in printed
    # The shorter run ends half way, and nothing stands there for it beyond.
    assert printed.count("7 (7 to 7)") == 5
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_success_is_counted_where_there_is_one(tmp_path: Path) -> None:
    write(tmp_path, "nppac-0", [0.0, 0.5], "success")
    figure, curves = learning_curves.read_curves(tmp_path)
    assert figure == "success"
    np.testing.assert_array_equal(curves["nppac"].values, [[0.0, 0.5]])


def test_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learning_curves.main([str(tmp_path)]) == 2
    assert "holds no evaluated runs" in capsys.readouterr().err
    assert learning_curves.main([]) == 2
