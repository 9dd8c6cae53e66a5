"""The oracle against worlds whose scaling is known."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adapters.errors import UserError
from sim.environments import Environment, make_environment
from sim.oracle import ActuatorOracle, OracleEstimator, true_step
from sim.perturb import Change, Perturbation
from sim.perturbed_plant import PerturbedPlant
from sim.plant import BatchedPlant
from sim.worlds import make_world, timeline

ENVIRONMENT = make_environment("halfcheetah")
ACTIONS = np.random.default_rng(1).uniform(-1, 1, (3, 6))


@pytest.fixture
def plant() -> Iterator[BatchedPlant]:
    """Three lanes: the original twice, and a heavy one."""
    heavy = make_world(ENVIRONMENT, Change(body_mass={"*": 1.5})).model
    with BatchedPlant(ENVIRONMENT, [ENVIRONMENT.model(), ENVIRONMENT.model(), heavy]) as plant:
        start = ENVIRONMENT.initial_states(np.random.default_rng(0), 1)
        plant.reset(states=np.repeat(start, 3, 0))
        yield plant


def _oracle(
    plant: BatchedPlant, share: np.ndarray | float, std: float, estimator: str = "scale", nominal: float = 1.0
) -> OracleEstimator:
    """An oracle whose bundle predicts `share` of the change of the first lane, the original."""

    def predict(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        change = (plant.peek(action) - plant.observe())[:1] * share
        return np.repeat(change, 3, 0), np.full((3, 17), std)

    context = SimpleNamespace(low=[0.5] * 17, high=[1.5] * 17, nominal=[nominal] * 17, estimator=estimator)
    bundle: Any = SimpleNamespace(predict_change=predict, manifest=SimpleNamespace(context=context))
    return OracleEstimator(plant, bundle)


def test_original_is_nominal_and_a_wrong_prediction_is_its_inverse(plant: BatchedPlant) -> None:
    same = np.repeat(ACTIONS[:1], 3, 0)
    np.testing.assert_allclose(_oracle(plant, 1.0, 0.0).context(plant.observe(), same)[:2], 1.0)
    # A prediction 1.25 times too large: true / predicted = 0.8.
    np.testing.assert_allclose(_oracle(plant, 1.25, 0.0).context(plant.observe(), same)[:2], 0.8)


def test_changed_world_is_true_change_over_predicted_within_the_range(plant: BatchedPlant) -> None:
    same = np.repeat(ACTIONS[:1], 3, 0)
    true = plant.peek(same) - plant.observe()
    context = _oracle(plant, 1.0, 0.0).context(plant.observe(), same)
    np.testing.assert_allclose(context[2], np.clip(true[2] / true[0], 0.5, 1.5))
    assert (context[2] != 1.0).any()


def test_range_is_kept_and_small_predictions_are_nominal(plant: BatchedPlant) -> None:
    same = np.repeat(ACTIONS[:1], 3, 0)
    assert (_oracle(plant, 0.1, 0.0).context(plant.observe(), same)[0] == 1.5).all()
    assert (_oracle(plant, -1.0, 0.0).context(plant.observe(), same)[0] == 0.5).all()
    assert (_oracle(plant, 2.0, 1e3).context(plant.observe(), same) == 1.0).all()
    assert (_oracle(plant, 0.0, 0.0).context(plant.observe(), same) == 1.0).all()


def test_shared_scaling_is_the_least_squares_fit_of_one_step(plant: BatchedPlant) -> None:
    same = np.repeat(ACTIONS[:1], 3, 0)
    share = np.where(np.arange(17) == 3, 2.0, 1.0)
    # All dimensions but number 3 are predicted right, that one twice too large; equal weights:
    # z = sum(d p) / sum(p^2) with p = d, but p3 = 2 d3.
    d = (plant.peek(same) - plant.observe())[0]
    p = share * d
    expected = (d @ p) / (p @ p)
    oracle = _oracle(plant, share, 1e-9, "shared_scale")
    np.testing.assert_allclose(oracle.context(plant.observe(), same)[0], expected, rtol=1e-6)
    assert (_oracle(plant, 2.0, 1e3, "shared_scale").context(plant.observe(), same) == 1.0).all()


def test_nominal_is_a_factor(plant: BatchedPlant) -> None:
    same = np.repeat(ACTIONS[:1], 3, 0)
    # 1.1 x 0.8 = 0.88.
    np.testing.assert_allclose(_oracle(plant, 1.25, 0.0, nominal=1.1).context(plant.observe(), same)[:2], 0.88)


def test_looking_leaves_the_plant_alone_and_follows_a_swap(plant: BatchedPlant) -> None:
    oracle, same = _oracle(plant, 1.0, 0.0), np.repeat(ACTIONS[:1], 3, 0)
    before = plant.states
    heavy = oracle.context(plant.observe(), same)[2]
    np.testing.assert_array_equal(plant.states, before)
    plant.replace_models({1: plant.models[2]})
    np.testing.assert_array_equal(oracle.context(plant.observe(), same)[1], heavy)


def test_it_sees_through_noise_and_delays() -> None:
    blind = Perturbation(
        name="blind", observation_noise={"*": 1.0}, observation_delay=2, actuator_delay=2, body_mass={"*": 1.5}
    )
    heavy = Perturbation(name="heavy", body_mass={"*": 1.5})
    start = ENVIRONMENT.initial_states(np.random.default_rng(0), 1)
    contexts = []
    for world in (blind, heavy):
        with PerturbedPlant(ENVIRONMENT, [timeline(ENVIRONMENT, world)] * 3) as robots:
            seen = robots.reset(np.repeat(start, 3, 0), [np.random.default_rng(lane) for lane in range(3)])
            oracle = _oracle(robots.plant, 1.25, 0.0)
            oracle.predict_change = lambda obs, action: (0.1 * obs, np.zeros(17))
            contexts.append(oracle.context(seen, ACTIONS))
    np.testing.assert_array_equal(*contexts)


@pytest.mark.parametrize("pushed", [(), (8, 9)])
def test_gains_of_actuators_are_read_off_the_models(plant: BatchedPlant, pushed: tuple[int, ...]) -> None:
    changed = make_world(ENVIRONMENT, Change(actuator_gain={"bfoot": 0.0, "fthigh": 1.2, "*shin": 0.5})).model
    plant.replace_models({1: changed})
    none, pushes = [0.0] * len(pushed), len(pushed)
    context = SimpleNamespace(
        low=none + [0.0] * 6, high=none + [1.1] * 6, nominal=none + [1.0] * 6, kind="actuator_gain", pushed=pushed
    )
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(context=context))
    found = ActuatorOracle(plant, bundle).context(plant.observe(), None)
    # bthigh, bshin, bfoot, fthigh, fshin, ffoot; mass is no gain, and 1.2 is beyond the range.
    np.testing.assert_allclose(found[:, pushes:], [[1] * 6, [1, 0.5, 0, 1.1, 0.5, 1], [1] * 6])
    np.testing.assert_array_equal(found[:, :pushes], 0)


def walked(environment: Environment, steps: int, robots: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, commands and next observations of robots that move at random, `(steps * robots, dim)`."""
    generator = np.random.default_rng(0)
    low, high = environment.action_low, environment.action_high
    actions = generator.uniform(low, high, (steps, robots, environment.act_dim))
    with BatchedPlant(environment, [environment.model()] * robots) as plant:
        seen = [plant.reset(generator)]
        seen += [plant.step(action)[0] for action in actions]
    before, after = (np.concatenate(part) for part in (seen[:-1], seen[1:]))
    return before, actions.reshape(-1, environment.act_dim), after


@pytest.mark.parametrize("name", ["halfcheetah", "halfcheetah-jump", "hopper", "walker2d", "ant"])
def test_simulator_takes_a_state_from_its_observation_and_goes_on_as_it_did(name: str) -> None:
    environment = make_environment(name)
    obs, commands, after = walked(environment, 5)
    np.testing.assert_allclose(environment.observe(environment.states_of(obs)), obs)
    # A velocity that the task clips at 10 is not told.
    told = (np.abs(obs) < 10.0).all(-1)
    assert told.mean() > 0.4
    # Seven lanes at once, so that the last chunk is a short one. Where the robot is in the plane changes nothing.
    true = true_step(environment, obs[told], commands[told], lanes=7)
    assert true.sound.all()
    np.testing.assert_allclose(true.next_obs, after[told], atol=1e-7)


def test_a_simulator_that_diverges_is_told_from_one_that_ends_the_episode() -> None:
    environment = make_environment("hopper")
    obs = np.tile(walked(environment, 1)[0][:1], (3, 1))
    obs[1, 0] = 0.5  # too low: the episode is over
    obs[2, -1] = np.inf
    sound = true_step(environment, obs, np.zeros((3, environment.act_dim))).sound
    assert sound.tolist() == [True, True, False]


def test_an_environment_whose_observation_hides_the_state_is_refused() -> None:
    with pytest.raises(UserError, match="an observation of the environment 'walker-walk' does not tell"):
        true_step(make_environment("walker-walk"), np.zeros((2, 24)), np.zeros((2, 6)))
