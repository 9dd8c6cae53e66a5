"""The loop over the Robot interface, and the command around it; the shipped robots fit their environments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

import configs
from adapters.errors import UserError
from adapters.robots.robot import Observation
from deploy.bundle import Bundle, RobotDescription
from deploy.controller import Controller, State
from sim.environments import GymnasiumTask, make_environment
from sim.plant import BatchedPlant
from sim.run import RunConfig, connect, drive

ROBOTS = Path(configs.__path__[0]) / "robot"


class Tape:
    """A robot that plays observations back and records commands."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.commands = values, []

    def observe(self) -> Observation:
        step = len(self.commands)
        fresh = step < len(self.values)
        return Observation(0.05 * step, self.values[step if fresh else -1], fresh)

    def command(self, action: np.ndarray) -> None:
        self.commands.append(action)

    def close(self) -> None:
        pass


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "surefoot", "run", *arguments], cwd=cwd, capture_output=True, text=True
    )


def _config(bundle: Path, **changes: Any) -> RunConfig:
    settings = {"bundle": bundle, "driver": "gymnasium", "gym_id": None, "steps": 10, "context": "inferred", "seed": 0}
    return RunConfig.model_validate(settings | changes)


@pytest.mark.parametrize("name", [file.stem for file in sorted(ROBOTS.glob("*.yaml"))])
def test_shipped_robot_is_its_environments(name: str) -> None:
    robot = RobotDescription.model_validate(OmegaConf.to_container(OmegaConf.load(ROBOTS / f"{name}.yaml")))
    environment = make_environment(name)
    assert robot.name == name
    assert robot.observation_names == environment.observation_names
    assert robot.action.joints == environment.action_names
    np.testing.assert_array_equal(robot.action.low, environment.action_low)
    np.testing.assert_array_equal(robot.action.high, environment.action_high)
    assert robot.control_dt == pytest.approx(environment.control_dt)
    clip = environment.config.velocity_clip if isinstance(environment, GymnasiumTask) else None
    expected = {None} if clip is None else {(-clip, clip)}
    assert {term.clip for term in robot.observations if term.name.endswith("_velocity")} == expected
    for term in robot.observations:
        assert term.name.startswith(term.joints or term.name)
    with BatchedPlant(environment, [environment.model()]) as plant:
        start = plant.reset(np.random.default_rng(0))[0]
    for joint, (low, high) in (robot.limits.position or {}).items():
        assert low < start[robot.observation_names.index(f"{joint}_position")] < high


def test_loop_sends_every_command_and_counts_faults(make_bundle: Callable[..., Path]) -> None:
    values = np.random.default_rng(0).normal(0, 0.1, (30, 17))
    values[[4, 5, 9], 2] = np.nan
    robot, moves = Tape(values), []
    outcome = drive(robot, Controller(Bundle.load(make_bundle())), 25, moves.append)
    assert (outcome.steps, len(robot.commands), moves) == (25, 25, list(range(1, 26)))
    assert outcome.faults == {"the observation is not finite (bthigh_position)": 3}
    assert int(outcome.last.state) == State.RUNNING
    assert [np.abs(c).max() == 0 for c in robot.commands] == [step in (4, 5, 9) for step in range(25)]


def test_loop_ends_with_the_robot(make_bundle: Callable[..., Path]) -> None:
    outcome = drive(Tape(np.zeros((7, 17))), Controller(Bundle.load(make_bundle())), 100)
    assert outcome.steps == 7


def test_robot_that_says_nothing_is_refused(make_bundle: Callable[..., Path]) -> None:
    robot = Tape(np.zeros((1, 17)))
    robot.commands.append(None)
    with pytest.raises(UserError, match="gave no observation"):
        drive(robot, Controller(Bundle.load(make_bundle())), 10)


def test_loop_is_closed_as_by_hand(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log where it runs
    bundle = Bundle.load(make_bundle())
    robot = connect(bundle, _config(bundle.path, seed=4))
    assert drive(robot, Controller(bundle), 40).steps == 40
    controller, env, total = Controller(bundle), gymnasium.make("HalfCheetah-v5"), 0.0
    obs, _ = env.reset(seed=4)
    for step in range(40):
        obs, reward, *_ = env.step(controller.step(step * 0.05, obs).action.astype(np.float32))
        total += float(reward)
    assert robot.episode_return == pytest.approx(total)


def test_task_that_gymnasium_does_not_know_is_driven_all_the_same(make_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.load(make_bundle(env="halfcheetah-backward"))
    robot = connect(bundle, _config(bundle.path, seed=4))
    assert drive(robot, Controller(bundle), 40).steps == 40
    environment, controller, total = make_environment("halfcheetah-backward"), Controller(bundle), 0.0
    with BatchedPlant(environment, [environment.model()]) as plant:
        obs = plant.reset(np.random.default_rng(4))
        for step in range(40):
            obs, rewards, _ = plant.step(controller.step(step * 0.05, obs[0]).action[None])
            total += rewards[0]
    assert robot.episode_return == pytest.approx(total) and total != 0


def test_bundle_for_another_robot_is_refused(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(context=False, spare_terms=1)
    with pytest.raises(UserError, match=r"is for 18 observations and env=HalfCheetah-v5 has 17"):
        connect(Bundle.load(bundle), _config(bundle))


def test_command_prints_return_state_and_faults(make_bundle: Callable[..., Path]) -> None:
    path = make_bundle()
    arguments = [f"bundle={path}", "robot=gymnasium", "env=HalfCheetah-v5", "steps=50", "seed=2"]
    done, again = (_run(*arguments, cwd=path.parent) for _ in range(2))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()[-3:]
    assert lines[0].startswith("50 steps, 2.5 s of simulated time, return ")
    assert lines[1:] == ["final state: running", "faults: none"]
    assert again.stdout.splitlines()[-3:] == lines


def test_realtime_run_keeps_the_control_period_and_says_how_well(make_bundle: Callable[..., Path]) -> None:
    path = make_bundle()
    done = _run(f"bundle={path}", "steps=5", "realtime=true", "soft_start=0.1", cwd=path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 steps of 50 ms" in " ".join(done.stdout.split())


def test_dry_run_sends_nothing(make_bundle: Callable[..., Path]) -> None:
    path = make_bundle()
    done = _run(f"bundle={path}", "dry_run=true", cwd=path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    # The environment stands still after its first observation.
    assert done.stdout.splitlines()[-3].startswith("1 steps, 0.1 s of simulated time, return 0.0")


@pytest.mark.parametrize(
    "setting", [{"steps": 0}, {"context": "oracle"}, {"seed": -1}, {"soft_start": -1.0}, {"colour": "red"}]
)
def test_setting_that_makes_no_sense_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        _config(Path("leg.bundle"), **setting)


@pytest.mark.parametrize(
    ("setting", "sentence"), [("env=Hopper-v5", "control period"), ("robot=dog", "driver='dog' is refused")]
)
def test_mistake_is_one_sentence_and_exit_code_2(make_bundle: Callable[..., Path], setting: str, sentence: str) -> None:
    path = make_bundle(context=False)
    done = _run(f"bundle={path}", setting, cwd=path.parent)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert sentence in done.stderr
