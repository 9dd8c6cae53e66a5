"""Relabelled data against what the new task itself records of the same motion, and rewards by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import sim.relabel
from adapters.datasets import TransitionDataset
from adapters.errors import UserError
from sim.collect import collect
from sim.environments import make_environment
from sim.relabel import relabel, reward_by


def logged(env: str, recipe: str = "random") -> TransitionDataset:
    """The same motion, whatever the task of the robot."""
    return collect(recipe, 2000 if recipe == "random" else 5000, seed=0, env=env)


@pytest.fixture(scope="module")
def halfcheetah() -> TransitionDataset:
    return logged("halfcheetah", "medium")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("halfcheetah", "halfcheetah-jump"),
        ("halfcheetah", "halfcheetah-backward"),
        ("halfcheetah-capped", "halfcheetah-jump"),
        ("halfcheetah-jump", "halfcheetah-capped"),
        ("halfcheetah-backward", "halfcheetah-jump"),
        ("hopper", "hopper-backward"),
        ("walker2d-backward", "walker2d"),
        ("ant", "ant"),
    ],
)
def test_is_what_the_new_task_records(old: str, new: str) -> None:
    before, expected = logged(old), logged(new)
    found = relabel(before, new)
    for field in ("actions", "terminals", "timeouts"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    for field in ("observations", "next_observations"):
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), rtol=0, atol=1e-7)
    # Rewards are kept in single precision, and those of the jump go up to about 15.
    np.testing.assert_allclose(found.rewards, expected.rewards, rtol=0, atol=2e-6)
    assert found.metadata.observation_names == expected.metadata.observation_names
    assert found.metadata.env == new
    assert old == new or np.abs(before.rewards - expected.rewards).max() > 0.1


def test_speed_across_what_was_paid_is_the_mean_of_the_observed_ones() -> None:
    before, expected = logged("ant", "mixed"), logged("ant-angle", "mixed")
    error = relabel(before, "ant-angle").rewards - expected.rewards
    # The docstring's figures: 0.03 by the step, less than 1 % by the return.
    assert 0.0 < np.sqrt(np.square(error).mean()) < 0.035
    assert abs(error.sum()) < 0.01 * abs(expected.rewards.sum())
    # Observed speeds alone are farther off.
    observed = relabel(before, "ant-angle", speed="observed").rewards - expected.rewards
    assert np.square(observed).mean() > 2 * np.square(error).mean()


def test_jump_by_hand() -> None:
    # Two episodes, of two rows and of one; |a|^2 = 4; the log pays v - 0.1 |a|^2, so v = 5, 1 and 2 m/s.
    arrays = {
        "observations": np.zeros((3, 17), np.float32),
        "next_observations": np.zeros((3, 17), np.float32),
        "actions": np.tile(np.float32([1, 1, 1, 1, 0, 0]), (3, 1)),
        "rewards": np.float32([4.6, 0.6, 1.6]),
        "terminals": np.zeros(3, bool),
        "timeouts": np.array([False, True, True]),
    }
    heights = np.float32([0.1, 0.3, 0.2, -0.2, 0.0])  # of rootz: first episode 0.1, 0.3, 0.2; second -0.2, 0.0
    arrays["observations"][:, 0] = heights[[0, 1, 3]]
    arrays["next_observations"][:, 0] = heights[[1, 2, 4]]
    arrays["observations"][:, 8] = arrays["next_observations"][:, 8] = [7, 1, 2]
    arrays["next_observations"][0] = arrays["observations"][1]
    environment = make_environment("halfcheetah")
    metadata = dataclasses.replace(logged("halfcheetah").metadata, observation_names=environment.observation_names)
    jump = relabel(TransitionDataset.from_arrays(arrays, metadata, "by hand"), "halfcheetah-jump")
    # min(v, 3) - 0.4 + 15 (z' - z at the start): 3 - 0.4 + 15 * 0.2, 1 - 0.4 + 15 * 0.1, 2 - 0.4 + 15 * 0.2
    np.testing.assert_allclose(jump.rewards, [5.6, 2.1, 4.6], atol=1e-5)
    assert jump.obs_dim == 18 and jump.metadata.observation_names[8] == "torso_height"
    np.testing.assert_allclose(jump.observations[:, 8], [0.8, 1.0, 0.5], atol=1e-6)


def test_metadata_says_what_was_done(halfcheetah: TransitionDataset) -> None:
    metadata = relabel(halfcheetah, "halfcheetah-backward").metadata
    for text in (halfcheetah.metadata.source, halfcheetah.metadata.sha256, "for halfcheetah-backward instead of"):
        assert text in metadata.source
    assert metadata.sha256 != halfcheetah.metadata.sha256


@pytest.fixture
def tireless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hopper whose episode never ends, beside the shipped tasks."""
    hopper: Any = make_environment("hopper")
    changes = {"name": "hopper-tireless", "robot": "hopper", "termination": "never"}
    other = dataclasses.replace(hopper, config=hopper.config.model_copy(update=changes))
    monkeypatch.setattr(
        sim.relabel, "make_environment", lambda name: other if name == other.name else make_environment(name)
    )


def test_ends_of_the_old_task_alone_become_timeouts(tireless: None) -> None:
    before = logged("hopper")
    found = relabel(before, "hopper-tireless")
    assert len(found) == len(before) and before.terminals.any() and not found.terminals.any()
    np.testing.assert_array_equal(found.timeouts, before.terminals | before.timeouts)
    # The bonus of 1 for each step that the rule does not end is now paid at the falls too.
    np.testing.assert_allclose(found.rewards - before.rewards, before.terminals, atol=1e-6)


def test_what_comes_after_an_end_of_the_new_task_is_left_out(tireless: None) -> None:
    fallen = logged("hopper")
    # The log of the one that never ends: the ends of the first two episodes are no ends there.
    over = np.flatnonzero(fallen.terminals)
    arrays = fallen.arrays() | {
        "terminals": np.zeros(len(fallen), bool),
        "timeouts": fallen.terminals | fallen.timeouts,
    }
    metadata = dataclasses.replace(fallen.metadata, env="hopper-tireless")
    first = over[1] + 1  # rows of two episodes, put together to one that goes on after its fall
    joined = {name: array[:first].copy() for name, array in arrays.items()}
    joined["timeouts"][:] = False
    joined["next_observations"][over[0]] = joined["observations"][over[0] + 1]
    joined["next_observations"][over[0] - 1, 0] = joined["observations"][over[0], 0] = 0.5  # down one row before
    before = TransitionDataset.from_arrays(joined, metadata, "put together")
    with pytest.warns(
        UserWarning, match=rf"^{first - over[0]} of {first} rows came after hopper had ended the episode"
    ):
        found = relabel(before, "hopper", speed="observed")
    assert len(found) == over[0] and np.flatnonzero(found.terminals).tolist() == [over[0] - 1]
    assert not found.timeouts.any()


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("hopper-backward", "is a task of Hopper-v5's robot and the data is of HalfCheetah-v5's"),
        ("walker-walk", "the rewards of walker-walk are not told by observations"),
        ("halfcheetah-fly", "there is no environment 'halfcheetah-fly'"),
    ],
)
def test_task_of_another_robot_is_refused(halfcheetah: TransitionDataset, task: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        relabel(halfcheetah, task)


def test_rewards_that_are_not_the_tasks_are_noticed(halfcheetah: TransitionDataset) -> None:
    without = dataclasses.replace(halfcheetah, rewards=np.zeros_like(halfcheetah.rewards))
    with pytest.raises(UserError, match=r"are not those of halfcheetah: .* give speed=observed"):
        relabel(without, "halfcheetah-backward")
    found = relabel(without, "halfcheetah-backward", speed="observed")
    error = found.rewards - relabel(halfcheetah, "halfcheetah-backward").rewards
    assert np.sqrt(np.square(error).mean()) < 0.5 < found.rewards.std()


def test_rewards_that_tell_too_little_are_noticed() -> None:
    with pytest.raises(UserError, match="tell no speed beyond 3 m/s, and halfcheetah needs it; give speed=observed"):
        relabel(logged("halfcheetah-capped"), "halfcheetah")


def test_data_of_another_size_is_refused(halfcheetah: TransitionDataset) -> None:
    wrong = dataclasses.replace(halfcheetah, metadata=dataclasses.replace(halfcheetah.metadata, env="halfcheetah-jump"))
    with pytest.raises(UserError, match="has 17 observations and 6 actions where halfcheetah-jump has 18 and 6"):
        relabel(wrong, "halfcheetah")


def test_own_rewards(halfcheetah: TransitionDataset) -> None:
    found = reward_by(halfcheetah, lambda obs, action, next_obs: next_obs[:, 0] - obs[:, 0] + action[:, 5], "up")
    expected = halfcheetah.next_observations[:, 0] - halfcheetah.observations[:, 0] + halfcheetah.actions[:, 5]
    np.testing.assert_array_equal(found.rewards, expected)
    for field in ("observations", "actions", "next_observations", "terminals", "timeouts"):
        np.testing.assert_array_equal(getattr(found, field), getattr(halfcheetah, field))
    assert "rewards of up" in found.metadata.source and found.metadata.env == "halfcheetah"


def test_own_rewards_cannot_change_the_data(halfcheetah: TransitionDataset) -> None:
    def careless(obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray) -> np.ndarray:
        obs -= 1.0
        return obs[:, 0]

    found = reward_by(halfcheetah, careless, "careless")
    np.testing.assert_array_equal(found.observations, halfcheetah.observations)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda obs, action, next_obs: obs, r"returns the shape \(5000, 17\) where \(5000,\) is needed"),
        (lambda obs, action, next_obs: 0.0, r"returns the shape \(\) "),
        (lambda obs, action: obs, r"fails on this data \(TypeError"),
        (lambda obs, action, next_obs: np.full(len(obs), np.nan), "'rewards' is not finite in float32 at row 0"),
    ],
)
def test_own_rewards_that_are_none(halfcheetah: TransitionDataset, function: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"reward=mine.*{sentence}"):
        reward_by(halfcheetah, function, "mine")
