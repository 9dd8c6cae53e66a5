"""The Adroit hand's tasks: what they pay, what counts as a success, and that recordings come out as recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adapters.datasets import load_dataset
from adapters.errors import UserError
from sim.adroit import initial_state, main, replay
from sim.gymnasium_tasks import OpenRobots, OpenTask, find_task, judge

# Sizes of observation and action in the paper's tasks (Rajeswaran et al. 2018).
SIZES = {
    "adroit-door": (39, 28),
    "adroit-hammer": (46, 26),
    "adroit-pen": (45, 24),
    "adroit-relocate": (39, 30),
}


def task_of(name: str) -> OpenTask:
    task = find_task(name)
    assert isinstance(task, OpenTask)
    return task


@pytest.mark.parametrize("name", SIZES)
def test_a_step_away_from_the_goal_pays_nothing_or_minus_one(name: str) -> None:
    for suffix, paid in (("", 0.0), ("-binary", -1.0)):
        task = task_of(name + suffix)
        assert (task.obs_dim, task.act_dim) == SIZES[name]
        robots = OpenRobots(task, 1, seed=3)
        assert robots.start().shape == (1, task.obs_dim)
        moved = robots.step(np.zeros((1, task.act_dim)))
        robots.close()
        # The pen's start may happen to be its goal; under this seed none is.
        assert moved.reward.tolist() == [paid] and not moved.success.any() and not moved.terminated.any()


@pytest.mark.parametrize(("suffix", "paid"), [("", 1.0), ("-binary", 0.0)])
def test_a_door_that_stands_open_pays(suffix: str, paid: float) -> None:
    robots = OpenRobots(task_of(f"adroit-door{suffix}"), 1, seed=0)
    robots.start()
    inside: Any = robots.envs[0].unwrapped
    state = inside.get_env_state()
    state["qpos"][inside.model.joint("door_hinge").qposadr] = 1.45  # open from 1.35 rad on
    inside.set_env_state(state)
    moved = robots.step(np.zeros((1, robots.act_dim)))
    robots.close()
    assert moved.reward.tolist() == [paid] and moved.success.all()


def test_a_success_is_the_goal_met_for_long_enough() -> None:
    task = task_of("adroit-door")
    assert judge(lambda obs: np.zeros((len(obs), task.act_dim)), task, 2, seed=0, steps=3) == {
        "return": 0.0,
        "success": 0.0,
    }


@pytest.mark.parametrize(
    ("data", "episode", "error", "followed"), [("door-demos", 11, 0.1, 40), ("pen-demos", 1, 1e-3, 5)]
)
def test_a_recording_reaches_the_goal_as_it_did(data: str, episode: int, error: float, followed: int) -> None:
    dataset = load_dataset(f"package://adapters/datasets/data/{data}.npz").select_episodes([episode])
    (found,) = replay(task_of(dataset.metadata.env), dataset)
    assert found.start_error < error and found.followed >= followed
    # The goal is met from some step on to the end, in the replay as in the recording, to a few steps.
    assert found.recorded > 50 and abs(found.reached - found.recorded) <= 3


def test_a_task_without_recordings_has_no_start_to_tell() -> None:
    env: Any = task_of("adroit-relocate").make().unwrapped
    env.reset(seed=0)
    with pytest.raises(UserError, match="nothing tells the start of a demonstration of adroit-relocate"):
        initial_state(env, "adroit-relocate", np.zeros(39))
    env.close()


@pytest.mark.parametrize(("given", "says"), [([], "give data sets"), (["boat-demos"], "boat-demos")])
def test_what_cannot_be_replayed_is_refused(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    assert says in capsys.readouterr().err
