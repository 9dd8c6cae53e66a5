"""The whole job, small: where rewards and observations need sensors, where a robot falls, and for another task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.datasets import load_dataset
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


@pytest.mark.parametrize("env", ["ant-angle", "quadruped-walk"])
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


def test_from_the_replay_of_one_task_to_a_policy_for_another(command_line: Callable[..., Any], tmp_path: Path) -> None:
    behaviour, run, log = tmp_path / "behaviour", tmp_path / "run", tmp_path / "jump.npz"
    sac = ("updates=20", "steps_per_epoch=20", "random_steps=1000", "keep_replay=true", "sac.hidden=[8,8]")
    for arguments in (
        (
            "train",
            "algorithm=sac",
            "dataset=online",
            "dataset.env=halfcheetah-capped",
            f"output={behaviour}",
            "evaluation_episodes=0",
            *(f"algorithm.{setting}" for setting in sac),
        ),
        ("convert", f"input={behaviour / 'replay.npz'}", "task=halfcheetah-jump", f"output={log}"),
        ("train", "algorithm=mopo", "dataset=file", f"dataset.path={log}", f"output={run}", *SMALL),
        ("export", f"run={run}"),
        (
            "validate",
            f"bundle={run / 'mopo.bundle'}",
            "perturbations=surface",
            "episodes=1",
            "steps=5",
            f"output={run}",
        ),
        ("run", f"bundle={run / 'mopo.bundle'}", "steps=5"),
    ):
        done = command_line(*arguments)
        assert done.code == 0, done
    report = read_json(run / "validation.json")
    assert report["env"] == "halfcheetah-jump" and report["cells"]
    # Of 1,040 rows each of the ten robots made 104, which the replay tells one robot after another.
    assert len(load_dataset(log).episode_slices()) == 10
