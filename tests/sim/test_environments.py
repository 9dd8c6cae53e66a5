"""The batched tasks against gymnasium's own, step by step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from adapters.errors import UserError
from sim.environments import make_environment, quiet_mujoco
from sim.plant import BatchedPlant

NAMES = ["halfcheetah", "hopper", "walker2d"]


@pytest.fixture(params=NAMES)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """Our description of a task and gymnasium's environment."""
    environment = make_environment(request.param)
    with quiet_mujoco(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = gymnasium.make(environment.gym_id)
    yield environment, reference
    reference.close()


def test_description_is_gymnasiums(pair: tuple[Any, Any]) -> None:
    environment, reference = pair
    assert environment.control_dt == pytest.approx(reference.unwrapped.dt)
    assert (environment.obs_dim,) == reference.observation_space.shape
    assert (environment.act_dim,) == reference.action_space.shape
    np.testing.assert_array_equal(environment.action_low, reference.action_space.low)
    np.testing.assert_array_equal(environment.action_high, reference.action_space.high)
    assert len(set(environment.observation_names)) == environment.obs_dim


def test_start_is_gymnasiums_for_the_same_generator(pair: tuple[Any, Any]) -> None:
    environment, reference = pair
    expected, _ = reference.reset(seed=7)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(7)))
    np.testing.assert_array_equal(environment.observe(environment.initial_states(generator, 1))[0], expected)


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["within", "beyond"])
def test_steps_are_gymnasiums(pair: tuple[Any, Any], scale: float) -> None:
    environment, reference = pair
    bare = reference.unwrapped
    generator = np.random.default_rng(3)
    bare.reset(seed=0)
    start = environment.initial_states(generator, 1)
    nq, nv = bare.model.nq, bare.model.nv
    bare.set_state(start[0, 1 : 1 + nq], start[0, 1 + nq : 1 + nq + nv])
    with BatchedPlant(environment, [environment.model()]) as plant:
        plant.reset(states=start)
        for _ in range(50):
            action = generator.uniform(-scale, scale, environment.act_dim)
            bare.data.qacc_warmstart[:] = 0
            observation, reward, terminated, _, _ = bare.step(action)
            ours, our_reward, our_end = plant.step(action[None])
            np.testing.assert_allclose(ours[0], observation, rtol=0, atol=1e-9)
            assert our_reward[0] == pytest.approx(reward, abs=1e-9)
            assert our_end[0] == terminated


def test_starts_are_spread_as_the_reset_noise_says() -> None:
    states = make_environment("halfcheetah").initial_states(np.random.default_rng(0), 4000)
    # Uniform on [-0.1, 0.1] has standard deviation 0.2 / sqrt(12) = 0.0577; the velocities' is 0.1 itself.
    assert states[:, 1:10].std() == pytest.approx(0.0577, abs=0.001)
    assert states[:, 10:].std() == pytest.approx(0.1, abs=0.002)
    assert abs(states[:, 1:10]).max() <= 0.1


def test_model_is_a_fresh_copy() -> None:
    environment = make_environment("halfcheetah")
    environment.model().body_mass[:] = 0
    assert environment.model().body_mass.sum() == pytest.approx(14.0)


def test_unknown_environment_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no environment 'cheetah'.*halfcheetah, hopper, walker2d"):
        make_environment("cheetah")
