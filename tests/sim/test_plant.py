"""The batched plant: lanes do not touch each other, threads do not change a bit, models can be swapped."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

from sim.environments import FULL_PHYSICS, Environment, make_environment
from sim.perturb import Change
from sim.plant import BatchedPlant
from sim.worlds import make_world


@pytest.fixture(scope="module")
def environment() -> Environment:
    return make_environment("halfcheetah")


def _models(environment: Environment, n: int) -> list[mujoco.MjModel]:
    """Make n models with rising mass."""
    return [
        make_world(environment, Change(body_mass={"*": 1.0 + i / n}, dof_damping={"*": 0.5})).model for i in range(n)
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
    heavy = make_world(environment, Change(body_mass={"*": 2.0})).model
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


def test_force_changes_the_momentum_by_force_times_time(environment: Environment) -> None:
    model = environment.model()
    model.opt.gravity[:] = 0
    forces = np.zeros((model.nbody, 6))
    forces[model.body("torso").id, :3] = 7.0, 0.0, -3.0
    forces[model.body("ffoot").id, :3] = 0.0, 0.0, 10.0
    # Far above the ground, in the pose in which no spring pulls.
    start = np.zeros((2, 19))
    start[:, 2] = 5.0
    data = mujoco.MjData(model)

    def momentum(state: np.ndarray) -> np.ndarray:
        mujoco.mj_setState(model, data, state, FULL_PHYSICS)
        mujoco.mj_forward(model, data)
        mujoco.mj_subtreeVel(model, data)
        return data.subtree_linvel[0] * model.body_mass.sum()

    with BatchedPlant(environment, [model, model]) as plant:
        plant.reset(states=start)
        plant.push({1: forces})
        for _ in range(4):
            plant.step(np.zeros((2, 6)))
        assert not momentum(plant.states[0]).any()
        # (7, 0, -3) N + (0, 0, 10) N over 4 x 0.05 s.
        np.testing.assert_allclose(momentum(plant.states[1]), [1.4, 0.0, 1.4], atol=2e-3)
        plant.push({1: np.zeros_like(forces)})
        for _ in range(4):
            plant.step(np.zeros((2, 6)))
        np.testing.assert_allclose(momentum(plant.states[1]), [1.4, 0.0, 1.4], atol=2e-3)


def test_robot_without_a_force_does_not_feel_that_another_has_one(environment: Environment) -> None:
    forces = np.full((8, 6), 20.0)
    actions = np.random.default_rng(1).uniform(-1, 1, (10, 3, 6))
    ends = []
    for pushed in ({}, {1: forces}):
        with BatchedPlant(environment, _models(environment, 3), threads=2) as plant:
            plant.reset(np.random.default_rng(0))
            plant.push(pushed)
            for action in actions:
                plant.step(action)
            ends.append(plant.states)
    np.testing.assert_array_equal(ends[0][[0, 2]], ends[1][[0, 2]])
    assert abs(ends[0][1] - ends[1][1]).max() > 0.1


def test_peek_is_the_next_observation_and_leaves_the_plant_alone(environment: Environment) -> None:
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 6))
    with BatchedPlant(environment, _models(environment, 3)) as plant:
        plant.reset(np.random.default_rng(0))
        before = plant.states
        seen = plant.peek(actions)
        np.testing.assert_array_equal(plant.states, before)
        np.testing.assert_array_equal(seen, plant.step(actions)[0])
        assert abs(plant.states - before).max() > 0


@pytest.mark.parametrize("name", ["ant", "quadruped-walk"])
def test_peek_leaves_the_sensors_alone(name: str) -> None:
    task = make_environment(name)
    generator = np.random.default_rng(1)
    with BatchedPlant(task, [task.model()] * 2) as plant:
        plant.reset(generator)
        plant.step(task.commands(generator.uniform(-1, 1, (2, task.act_dim))))
        before = plant.observe()
        plant.peek(task.commands(generator.uniform(-1, 1, (2, task.act_dim))))
        np.testing.assert_array_equal(plant.observe(), before)


@pytest.mark.parametrize("name", ["ant", "quadruped-walk"])
def test_restart_touches_its_robots_alone(name: str) -> None:
    task = make_environment(name)
    generator = np.random.default_rng(1)
    with BatchedPlant(task, [task.model()] * 3) as plant:
        plant.reset(generator)
        plant.step(task.commands(generator.uniform(-1, 1, (3, task.act_dim))))
        before, states = plant.observe(), task.initial_states(generator, 2)
        started = plant.restart(np.array([2, 0]), states)
        after = plant.observe()
        np.testing.assert_array_equal(after[1], before[1])
        np.testing.assert_array_equal(after[[2, 0]], started)
        np.testing.assert_array_equal(plant.states[[2, 0]], states)
    with BatchedPlant(task, [task.model()] * 2) as fresh:
        np.testing.assert_array_equal(fresh.reset(states=states), started)


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
