"""The joint failure with real processes, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

pytest.importorskip("rclpy")

from described import describe

from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.controller import Controller
from sim import joint_failure, video
from sim.environments import make_environment
from sim.mujoco_plant import find_world
from sim.rollout import EpisodeResult, run_episodes
from sim.stack import StackSettings

STEPS, AT_STEP = 60, 30


def settings(bundle: Path, output: Path) -> StackSettings:
    """The scenario, cut short."""
    short: dict[str, Any] = {**joint_failure.SETTINGS, "steps": STEPS, "at_step": AT_STEP}
    return StackSettings(bundle=bundle, output=output, **short)


def in_process(bundle: Path, context: Any) -> EpisodeResult:
    return run_episodes(
        make_environment("halfcheetah"),
        [find_world("joint-failure:dead-ffoot", AT_STEP)],
        lambda plant: Controller(Bundle.load(bundle), context, batch=(len(plant),)),
        episodes=1,
        seed=0,
        steps=STEPS,
    )


def test_both_runs_are_written_down(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(video, "BACKENDS", ("none-such",))
    bundle, output, moves = describe(make_bundle()), tmp_path / "out", list[int]()
    summary = joint_failure.joint_failure(settings(bundle, output), moves.append)
    assert summary == json.loads((output / "joint-failure.json").read_text())
    # Without graphics there is a sentence in place of the video, and all the rest.
    assert summary["no_video"].startswith("MuJoCo cannot render with MUJOCO_GL=none-such, so there is no video")
    assert not list(output.glob("*.mp4"))
    assert imread(output / "joint-failure.png").shape[:2] == (9 * 130, 11 * 130)
    assert moves == sorted(moves)
    assert max(moves, default=0) <= 2 * STEPS
    for name, context in (("adapted", "inferred"), ("nominal", "nominal")):
        expected, run = in_process(bundle, context), summary["runs"][name]
        rewards = expected.rewards[0, 0].astype(np.float64)
        assert (run["return_before"], run["return_after"]) == (rewards[:AT_STEP].sum(), rewards[AT_STEP:].sum())
        # The tiny bundle's context moves at the second step, when there is a first transition to learn from.
        assert run["steps_adapted"] == (expected.context[0, 0] != 1).any(-1).sum()
        assert (run["steps_adapted"] > STEPS / 2) == (name == "adapted")
        with np.load(output / name / "trace.npz") as trace:
            np.testing.assert_array_equal(trace["rewards"], rewards)
            np.testing.assert_array_equal(trace["context"].astype(np.float32), expected.context[0, 0])
            assert trace["residual"].shape == (STEPS,)
            # HalfCheetah's reward is its speed, less 0.1 times the squared commands.
            cost = 0.1 * np.square(trace["actions"]).sum(-1)
            np.testing.assert_allclose(trace["speed"] - cost, rewards, atol=1e-5)


def test_table_has_a_row_for_each_run() -> None:
    run = {"return_before": 10.0, "return_after": 20.4, "speed_before": 1.0, "speed_after": 2.0}
    runs = {
        "adapted": {**run, "steps_adapted": 77, "steps_to_90_percent": 12},
        "nominal": {**run, "steps_adapted": 0, "steps_to_90_percent": None},
    }
    summary = {"env": "halfcheetah", "world": "dead-ffoot", "at_step": 500, "steps": 1000, "runs": runs}
    console = Console(width=200, record=True)
    console.print(joint_failure.table(summary))
    text = console.export_text()
    assert "halfcheetah, dead-ffoot at step 500 of 1000" in text
    rows = [line.replace("│", " ").split() for line in text.splitlines() if "│" in line]
    assert rows == [
        ["adapted", "10", "20", "1.00", "2.00", "77", "12"],
        ["nominal", "10", "20", "1.00", "2.00", "0", "-"],
    ]


def test_bundle_that_does_not_adapt_is_refused(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reads no context, so it cannot adapt"):
        joint_failure.joint_failure(settings(describe(make_bundle(context=False)), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_run_whose_commands_are_not_the_controllers_is_no_trace(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    states, record = np.zeros((3, 19)), tmp_path / "episode.npz"
    np.savez(record, observations=np.zeros((2, 17)), actions=np.ones((2, 6)), rewards=np.zeros(2), states=states)
    with pytest.raises(RuntimeError, match="are not those of the controller"):
        joint_failure._trace(Controller(Bundle.load(describe(make_bundle()))), record)
