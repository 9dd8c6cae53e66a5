"""`surefoot collect bag=...`: a robot's log becomes the data set of what happened."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from adapters.datasets import TransitionDataset, load_dataset
from adapters.errors import UserError
from sim.environments import make_environment
from sim.lcm_stack import LcmSettings, run_lcm
from sim.logs import ObservedTask, find_robot, read_log

if TYPE_CHECKING:
    from tests.conftest import CommandLine


@pytest.fixture
def url() -> str:
    """Return a network that no other test and no other process uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        return f"udpm://239.255.76.67:{free.getsockname()[1]}?ttl=0"


@pytest.fixture(scope="module")
def halfcheetah() -> TransitionDataset:
    return load_dataset("package://adapters/datasets/data/halfcheetah-mixed.npz")


def test_lcm_log_is_the_episode_that_the_plant_recorded(
    url: str, make_bundle: Callable[..., Path], command_line: CommandLine, tmp_path: Path
) -> None:
    run_lcm(LcmSettings(bundle=make_bundle(), output=tmp_path, steps=60, seed=1, url=url, log=True))
    done = command_line("collect", f"bag={tmp_path / 'robot.lcm'}", "robot=halfcheetah", f"output={tmp_path / 'x.npz'}")
    assert (done.code, done.err) == (0, "")
    assert "rows         60" in done.out
    dataset = load_dataset(tmp_path / "x.npz")
    assert (dataset.metadata.env, dataset.metadata.source) == ("halfcheetah", "robot.lcm")
    with np.load(tmp_path / "episode.npz") as episode:
        np.testing.assert_array_equal(dataset.observations, episode["observations"].astype(np.float32))
        np.testing.assert_array_equal(dataset.actions, episode["actions"].astype(np.float32))
        assert dataset.rewards.sum() == pytest.approx(episode["rewards"].sum(), abs=2.0)
    assert np.flatnonzero(dataset.timeouts).tolist() == [59]


def test_rewards_from_observations_are_close_to_the_simulators(halfcheetah: TransitionDataset) -> None:
    task = ObservedTask(make_environment("halfcheetah"))
    rewards = task.reward(halfcheetah.observations, halfcheetah.actions, halfcheetah.next_observations)
    error = rewards - halfcheetah.rewards
    # The figures in the docstring: 0.31 by the step, of a standard deviation of 2.23, and 1 % by the episode.
    assert error.std() < 0.32
    assert halfcheetah.rewards.std() > 2.2
    returns = np.add.reduceat(error, [rows.start for rows in halfcheetah.episode_slices()])
    assert np.abs(returns).max() < 0.01 * np.abs(halfcheetah.episode_returns()).mean()


def test_reward_and_end_by_hand() -> None:
    task = ObservedTask(make_environment("hopper"))
    upright, fallen = np.zeros(11), np.zeros(11)
    upright[0], fallen[0] = 1.2, 0.5  # height of the torso in m; below 0.7 the hopper is down
    upright[5], fallen[5] = 2.0, 3.0  # forward speed in m/s
    observations, next_observations = np.array([upright, upright]), np.array([upright, fallen])
    actions = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # Mean speed - 0.001 |action|^2 + 1 while upright: 2 - 0.001 + 1, and 2.5.
    np.testing.assert_allclose(task.reward(observations, actions, next_observations), [2.999, 2.5])
    assert task.terminated(next_observations).tolist() == [False, True]


def test_robot_without_a_task_gets_no_rewards(url: str, make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    run_lcm(LcmSettings(bundle=make_bundle(), output=tmp_path, steps=10, url=url, log=True))
    robot = find_robot("halfcheetah").model_copy(update={"name": "greyhound"})
    with pytest.warns(UserWarning, match="holds no rewards, so they are 0"):
        dataset = read_log(tmp_path / "robot.lcm", robot)
    assert dataset.metadata.env == "greyhound"
    assert not dataset.rewards.any()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("pony", None, "there is no robot '.*pony'; give a YAML file or one of ant, .*halfcheetah.*, walker2d"),
        ("pony.yaml", "name: pony\n", r"pony\.yaml describes no robot: observations: Field required"),
        ("pony.yaml", "name: [pony\n", r"pony\.yaml is not valid YAML: "),
    ],
)
def test_robot_that_is_not_known(tmp_path: Path, name: str, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        find_robot(str(tmp_path / name))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bag=nowhere.mcap"], "there is no data set at nowhere.mcap"),
        (["bag={empty}"], "is empty; record it again"),
        (["bag={empty}", "robot=pony"], "there is no robot 'pony'"),
        (["bag={empty}", "joint_map=[bthigh]"], "joint_map has the entry 'bthigh'"),
    ],
)
def test_mistake_is_one_sentence_and_exit_code_2(
    command_line: CommandLine, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "empty.lcm").write_bytes(b"")
    given = [argument.format(empty=tmp_path / "empty.lcm") for argument in arguments]
    done = command_line("collect", *given, f"output={tmp_path / 'x.npz'}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert sentence in done.err
    assert not (tmp_path / "x.npz").exists()
