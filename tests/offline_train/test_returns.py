"""The table of returns: what it reads from runs, and its means and intervals by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.files import write_json
from offline_train.returns import interval, main, read_returns

SYNTHETIC = {"rows": 1_000, "made_by": {"config": {"method": {"name": "synther"}, "condition": None}}}


def run(folder: Path, returns: list[float], *, seed: int = 0, path: str | None = "log.npz", **settings: Any) -> str:
    """A run's folder with evaluations every 10 updates."""
    algorithm = {"name": "td3-bc", "hidden": [256, 256]} | settings.pop("algorithm", {})
    dataset = {"name": "mixed", "path": path, "real_fraction": settings.pop("real_fraction", 0.0)}
    config = {"algorithm": algorithm, "dataset": dataset, "seed": seed}
    write_json(folder / "run.json", {"config": config, "dataset": {"env": "hopper", "rows": 500, **settings}})
    lines = [{"stage": "policy", "step": 10 * (i + 1), "return": value} for i, value in enumerate(returns)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_interval_by_hand() -> None:
    # Mean 20, standard deviation 10, 10 / sqrt 3 = 5.774, times t(2) = 4.303: 24.84.
    assert interval([10.0, 20.0, 30.0]) == "20 (-5 to 45)"
    assert interval([7.0]) == "7 (one seed)"


def test_last_evaluations_are_averaged(tmp_path: Path) -> None:
    found = read_returns(Path(run(tmp_path / "a", [100, 1, 2, 3, 4, 5])))
    assert found.last == 3.0 and not found.online
    assert (found.algorithm, found.learned_from) == ("td3-bc", "mixed, 500 rows: real")


def test_what_was_learned_from_is_said(tmp_path: Path) -> None:
    large = {"algorithm": {"hidden": [512] * 3}, "synthetic": SYNTHETIC, "real_fraction": 0.5}
    found = read_returns(Path(run(tmp_path / "a", [1], **large)))
    assert (found.algorithm, found.learned_from) == ("td3-bc 3x512", "mixed, 500 rows: synther, 1,000, 50% real")


def test_control_steps_of_a_run_in_the_simulator(tmp_path: Path) -> None:
    online = {"name": "redq", "steps_per_update": 1, "updates_per_step": 5, "random_steps": 100}
    online |= {"critics": 10, "policy_delay": 20}
    found = read_returns(Path(run(tmp_path / "a", [1, 2, 3], path=None, algorithm=online)))
    assert found.online and found.learned_from == "hopper"
    assert found.algorithm == "redq, 10 critics, 5 updates a step"
    np.testing.assert_array_equal(found.steps, [102, 104, 106])


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    online = {"name": "sac", "steps_per_update": 1, "updates_per_step": 1, "random_steps": 0}
    folders = [
        run(tmp_path / "a", [10], seed=0),
        run(tmp_path / "b", [30], seed=1),
        run(tmp_path / "c", [40], synthetic=SYNTHETIC),
        run(tmp_path / "d", [5, 6, 7, 8], path=None, algorithm=online),
    ]
    assert main(folders) == 0
    printed = capsys.readouterr().out
    # Two seeds, 10 and 30: 20, give or take 10 t(1) = 127.
    for text in ("20 (-107 to 147)", "40 (one seed)", "synther, 1,000", "hopper, sac", "8 (one seed)"):
        assert text in printed, printed
    (tmp_path / "d" / "metrics.jsonl").write_text("")
    assert main(folders) == 2 and "no evaluations" in capsys.readouterr().err
    assert main([]) == 2
