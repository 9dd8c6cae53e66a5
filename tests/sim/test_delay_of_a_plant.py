"""The delay that the controller finds is the sum of those of the simulated robot's motors and sensors."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.context import PredictChange
from deploy.delay import DelayCompensator
from deploy.spec import DelaySpec
from sim.environments import make_environment
from sim.perturb import Perturbation
from sim.perturbed_plant import PerturbedPlant
from sim.worlds import timeline

CHEETAH = make_environment("halfcheetah")
ROBOTS, STEPS = 4, 400


def wander(actuators: int, sensors: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Send random commands; returns what is observed `(STEPS + 1, ROBOTS, obs_dim)` and the commands."""
    world = Perturbation.model_validate({"name": "x", "actuator_delay": actuators, "observation_delay": sensors})
    generator = np.random.default_rng(seed)
    commands = generator.uniform(-1.0, 1.0, (STEPS, ROBOTS, CHEETAH.act_dim))
    with PerturbedPlant(CHEETAH, [timeline(CHEETAH, world)] * ROBOTS) as robots:
        seen = [robots.reset(CHEETAH.initial_states(generator, ROBOTS), generator.spawn(ROBOTS))]
        seen += [robots.step(command)[0] for command in commands]
    return np.array(seen), commands


@pytest.fixture(scope="module")
def predict() -> PredictChange:
    """A linear model of the change of state, by least squares: a poor one, as the feet touch the ground."""
    seen, commands = wander(0, 0, seed=0)

    def features(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        return np.concatenate([obs, action, np.ones((*obs.shape[:-1], 1))], -1)

    inputs = features(seen[:-1], commands).reshape(STEPS * ROBOTS, -1)
    change = np.diff(seen, axis=0).reshape(STEPS * ROBOTS, -1)
    weights = np.linalg.lstsq(inputs, change, rcond=None)[0]
    std = (change - inputs @ weights).std(0)
    return lambda obs, action: (features(obs, action) @ weights, np.broadcast_to(std, obs.shape))


@pytest.mark.parametrize(("actuators", "sensors"), [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (1, 2)])
def test_delays_of_motors_and_sensors_add_up(predict: PredictChange, actuators: int, sensors: int) -> None:
    seen, commands = wander(actuators, sensors, seed=1)
    delays = DelayCompensator(predict, CHEETAH.act_dim, DelaySpec(most=4), (ROBOTS,))
    found = []
    for step, command in enumerate(commands):
        delays.record(command)
        delays.update(seen[step], seen[step + 1])
        found.append(delays.delay)
    assert (np.array(found)[100:] == actuators + sensors).all()
