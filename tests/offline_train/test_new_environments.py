"""The whole job, small, in an environment whose rewards and observations need sensors, and in one whose robot falls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.files import read_json

SMALL = (
    "ensemble.members=2",
    "ensemble.elites=2",
    "ensemble.hidden=[8,8]",
    "ensemble.max_steps=10",
    "ensemble.steps_per_epoch=10",
    "algorithm.updates=10",
    "algorithm.steps_per_epoch=10",
    "algorithm.rollout_starts=50",
    "algorithm.sac.hidden=[8,8]",
    "evaluation_episodes=1",
)
LIGHT = "- name: light\n  body_mass: {'*': 0.75}\n"


@pytest.mark.parametrize("env", ["ant", "quadruped-walk"])
def test_collect_train_export_validate(command_line: Callable[..., Any], tmp_path: Path, env: str) -> None:
    log, run, suite = tmp_path / "log.npz", tmp_path / "run", tmp_path / "light.yaml"
    suite.write_text(LIGHT)
    for arguments in (
        ("collect", f"env={env}", "recipe=random", "steps=2000", f"output={log}"),
        (
            "train",
            "algorithm=augwm",
            "dataset=file",
            f"dataset.path={log}",
            f"dataset.env={env}",
            f"output={run}",
            *SMALL,
        ),
        ("export", f"run={run}"),
        (
            "validate",
            f"bundle={run / 'augwm.bundle'}",
            f"perturbations={suite}",
            "episodes=2",
            "steps=5",
            f"output={run}",
        ),
        ("run", f"bundle={run / 'augwm.bundle'}", "steps=5"),
    ):
        done = command_line(*arguments)
        assert done.code == 0, done
    cells = read_json(run / "validation.json")["cells"]
    assert [cell["context"] for cell in cells] == ["nominal", "inferred", "oracle"]
    assert all(cell["length_mean"] <= 5 for cell in cells)
