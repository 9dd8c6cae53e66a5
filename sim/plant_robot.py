"""One simulated robot of ours as a robot to drive, for the tasks that gymnasium does not know."""

from __future__ import annotations

import numpy as np

from adapters.robots.simulated_robot import SimulatedRobot
from sim.environments import Environment
from sim.plant import BatchedPlant


class PlantRobot(SimulatedRobot):
    """One episode of an environment in configs/env.

    Args:
        environment: the task.
        seed: seed of the start state.
    """

    def __init__(self, environment: Environment, seed: int) -> None:
        self._plant = BatchedPlant(environment, [environment.model()])
        values = self._plant.reset(np.random.default_rng(seed))[0]
        super().__init__(values, environment.act_dim, environment.control_dt)

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        observations, rewards, terminated = self._plant.step(action[None])
        return observations[0], float(rewards[0]), bool(terminated[0])

    def close(self) -> None:
        """Let go of the simulator."""
        self._plant.close()
