"""The batched plant: lanes do not touch each other, threads do not change a bit, models can be swapped."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

from sim.environments import FULL_PHYSICS, Environment, make_environment
from sim.perturb import Perturbation, apply
from sim.plant import BatchedPlant


@pytest.fixture(scope="module")
def environment() -> Environment:
    return make_environment("halfcheetah")


def _models(environment: Environment, n: int) -> list[mujoco.MjModel]:
    """Make n models with rising mass."""
    return [
        apply(environment.model(), Perturbation(name=str(i), body_mass={"*": 1.0 + i / n}, dof_damping={"*": 0.5}))
        for i in range(n)
    ]


def test_lane_equals_mj_step_alone(environment: Environment) -> None:
    generator = np.random.default_rng(0)
    models = _models(environment, 3)
    with BatchedPlant(environment, models) as plant:
        plant.reset(generator)
        for _ in range(10):
            before, actions = plant.states, generator.uniform(-1, 1, (3, 6))
            plant.step(actions)
            for lane, model in enumerate(models):
                data = mujoco.MjData(model)
                mujoco.mj_setState(model, data, before[lane], FULL_PHYSICS)
                data.ctrl[:] = actions[lane]
                mujoco.mj_step(model, data, nstep=environment.frame_skip)
                expected = np.zeros(before.shape[1])
                mujoco.mj_getState(model, data, expected, FULL_PHYSICS)
                np.testing.assert_array_equal(plant.states[lane], expected)


def test_threads_change_nothing(environment: Environment) -> None:
    actions = np.random.default_rng(1).uniform(-1, 1, (20, 7, 6))
    ends = []
    for threads in (1, 2, 3):
        with BatchedPlant(environment, _models(environment, 7), threads) as plant:
            plant.reset(np.random.default_rng(0))
            rewards = [plant.step(action)[1] for action in actions]
            ends.append((plant.states, np.array(rewards)))
    for states, rewards in ends[1:]:
        np.testing.assert_array_equal(states, ends[0][0])
        np.testing.assert_array_equal(rewards, ends[0][1])


def test_replaced_model_acts_from_that_step_on_and_keeps_the_state(environment: Environment) -> None:
    heavy = apply(environment.model(), Perturbation(name="heavy", body_mass={"*": 2.0}))
    start = environment.initial_states(np.random.default_rng(0), 1)
    action = np.full((2, 6), 0.5)
    with BatchedPlant(environment, [environment.model()] * 2) as plant:
        plant.reset(states=np.repeat(start, 2, 0))
        plant.step(action)
        before = plant.states
        plant.replace_models({1: heavy})
        np.testing.assert_array_equal(plant.states, before)
        plant.step(action)
        assert abs(plant.states[0] - plant.states[1]).max() > 1e-3
        changed = plant.states[1]
    with BatchedPlant(environment, [heavy]) as plant:
        plant.reset(states=before[1:])
        plant.step(action[:1])
        np.testing.assert_array_equal(plant.states[0], changed)


def test_peek_is_the_next_observation_and_leaves_the_plant_alone(environment: Environment) -> None:
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 6))
    with BatchedPlant(environment, _models(environment, 3)) as plant:
        plant.reset(np.random.default_rng(0))
        before = plant.states
        seen = plant.peek(actions)
        np.testing.assert_array_equal(plant.states, before)
        np.testing.assert_array_equal(seen, plant.step(actions)[0])
        assert abs(plant.states - before).max() > 0


def test_states_are_copies(environment: Environment) -> None:
    with BatchedPlant(environment, [environment.model()]) as plant:
        plant.reset(np.random.default_rng(0))
        plant.states[:] = 0
        saved = plant.states
        assert abs(saved).max() > 0
        plant.step(np.zeros((1, 6)))
        plant.states = saved
        np.testing.assert_array_equal(plant.states, saved)


@pytest.mark.parametrize("threads", [1, 2])
def test_diverged_lane_ends_without_reward_or_a_log_file(
    environment: Environment, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unstable = environment.model()
    unstable.dof_damping[:] = -1e4
    with BatchedPlant(environment, [unstable, environment.model()], threads) as plant:
        plant.reset(np.random.default_rng(0))
        observations, rewards, terminated = plant.step(np.zeros((2, 6)))
    assert terminated.tolist() == [True, False]
    assert rewards[0] == 0.0
    assert rewards[1] != 0.0
    assert np.isfinite(observations).all()
    assert not list(tmp_path.iterdir())


def test_reset_takes_a_generator_or_states(environment: Environment) -> None:
    with BatchedPlant(environment, [environment.model()]) as plant, pytest.raises(ValueError, match="either"):
        plant.reset()
