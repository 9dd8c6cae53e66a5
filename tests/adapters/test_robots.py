"""A gymnasium environment as a robot is that environment, and the shipped descriptions fit theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from dm_control import suite

from adapters.errors import UserError
from adapters.robots.dm_control_robot import DmControlRobot
from adapters.robots.gymnasium_robot import GymnasiumRobot


class Slide(gymnasium.Env):
    """A point that a command pushes: x += u; the reward is x; terminal beyond 3."""

    dt = 0.1

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = self.np_random.uniform(0, 0.1)
        return np.array([self.x]), {}

    def step(self, action: np.ndarray) -> Any:
        assert action.dtype == np.float32
        self.x += float(action[0])
        return np.array([self.x]), self.x, self.x > 3, False, {}


@pytest.fixture(autouse=True)
def slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log where it runs
    gymnasium.register("Slide-v0", Slide, max_episode_steps=20, disable_env_checker=True)
    yield
    del gymnasium.registry["Slide-v0"]


def test_time_values_and_freshness() -> None:
    robot = GymnasiumRobot("Slide-v0", 0.1, seed=0)
    first = robot.observe()
    assert (first.time, first.fresh) == (0.0, True)
    assert not robot.observe().fresh
    robot.command(np.array([0.5]))
    second = robot.observe()
    assert (second.time, second.fresh) == (pytest.approx(0.1), True)
    np.testing.assert_allclose(second.values - first.values, 0.5)
    assert robot.episode_return == pytest.approx(second.values[0])
    robot.close()


def test_start_is_a_function_of_the_seed() -> None:
    one, same, other = (GymnasiumRobot("Slide-v0", 0.1, seed).observe().values[0] for seed in (1, 1, 2))
    assert one == same != other


def test_episodes_end_stales_the_robot() -> None:
    robot = GymnasiumRobot("Slide-v0", 0.1, seed=0)
    sent = 0
    while robot.observe().fresh:
        robot.command(np.array([1.0]))
        sent += 1
    # The start lies in [0, 0.1): three steps end at most at 3.1, and four beyond 3 for sure.
    assert robot.ended and sent in (3, 4)
    total = robot.episode_return
    robot.command(np.array([1.0]))
    assert robot.episode_return == total and not robot.observe().fresh


def test_parity_with_gymnasium() -> None:
    robot, env = GymnasiumRobot("HalfCheetah-v5", 0.05, seed=3), gymnasium.make("HalfCheetah-v5")
    values, _ = env.reset(seed=3)
    generator, total = np.random.default_rng(0), 0.0
    for step in range(30):
        observation = robot.observe()
        assert observation.time == pytest.approx(0.05 * step)
        np.testing.assert_array_equal(observation.values, values)
        action = generator.uniform(-1, 1, 6)
        robot.command(action)
        values, reward, *_ = env.step(action.astype(np.float32))
        total += float(reward)
    assert robot.episode_return == pytest.approx(total)
    assert (robot.obs_dim, robot.act_dim) == (17, 6)


def test_options_reach_the_environment() -> None:
    plain = GymnasiumRobot("Ant-v5", 0.05, seed=0)
    bare = GymnasiumRobot("Ant-v5", 0.05, seed=0, include_cfrc_ext_in_observation=False)
    # 13 positions and 14 velocities, and six contact forces for each of 13 bodies.
    assert (plain.obs_dim, bare.obs_dim) == (27 + 6 * 13, 27)


def test_parity_with_dm_control() -> None:
    robot = DmControlRobot("quadruped-walk", 0.02, seed=3)
    env = suite.load("quadruped", "walk", task_kwargs={"random": 3})
    step, generator, total = env.reset(), np.random.default_rng(0), 0.0
    for count in range(30):
        observation = robot.observe()
        assert observation.time == pytest.approx(0.02 * count) and observation.fresh
        np.testing.assert_array_equal(observation.values, np.concatenate([*map(np.ravel, step.observation.values())]))
        action = generator.uniform(-1, 1, 12)
        robot.command(action)
        step = env.step(action)
        total += step.reward
    assert robot.episode_return == pytest.approx(total)
    assert (robot.obs_dim, robot.act_dim) == (78, 12)
    robot.close()


def test_dm_controls_episode_ends_after_its_time() -> None:
    robot, sent = DmControlRobot("cheetah-run", 0.01, seed=0), 0
    while robot.observe().fresh:
        robot.command(np.zeros(6))
        sent += 1
    # 10 s of 0.01 s each.
    assert robot.ended and sent == 1000


@pytest.mark.parametrize(
    ("name", "control_dt", "sentence"),
    [
        ("walker-fly", 0.025, "dm_control has no task 'walker-fly'; give DOMAIN-TASK"),
        ("walker", 0.025, "dm_control has no task 'walker'"),
        ("walker-walk", 0.02, "walker-walk has a control period of 0.025 s, and the policy acts every 0.02 s"),
    ],
)
def test_task_of_dm_control_that_is_no_such_robot_is_refused(name: str, control_dt: float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DmControlRobot(name, control_dt, seed=0)


@pytest.mark.parametrize(
    ("env_id", "control_dt", "sentence"),
    [
        ("Nonsense-v0", 0.1, "gymnasium cannot make env=Nonsense-v0"),
        ("not an id!", 0.1, "gymnasium cannot make"),
        ("CartPole-v1", 0.1, "does not take and give vectors of numbers"),
        ("Slide-v0", 0.05, "has a control period of 0.1 s, and the policy acts every 0.05 s"),
    ],
)
def test_environment_that_is_no_such_robot_is_refused(env_id: str, control_dt: float, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        GymnasiumRobot(env_id, control_dt, seed=0)
