"""Any gymnasium environment with vectors in and out as a robot."""

from __future__ import annotations

from typing import Any

import numpy as np

from adapters.errors import UserError
from adapters.robots.simulated_robot import PERIOD_PRECISION, SimulatedRobot


class GymnasiumRobot(SimulatedRobot):
    """One episode of a gymnasium environment.

    Args:
        env_id: the environment's id in gymnasium, for example HalfCheetah-v5.
        control_dt: control period in s; where the environment has one of its own, they must agree.
        seed: seed of the start state.
        options: what the environment is made with beside its id.

    Raises:
        UserError: there is no such environment, it does not map a vector to a vector, or its period is another.
    """

    def __init__(self, env_id: str, control_dt: float, seed: int, **options: Any) -> None:
        import gymnasium

        try:
            self._env = gymnasium.make(env_id, **options)
        except gymnasium.error.Error as error:
            raise UserError(
                f"gymnasium cannot make env={env_id}: {error}; give the id of another environment."
            ) from error
        spaces = self._env.observation_space, self._env.action_space
        if not all(isinstance(space, gymnasium.spaces.Box) and len(space.shape or ()) == 1 for space in spaces):
            raise UserError(
                f"env={env_id} does not take and give vectors of numbers (its spaces are {spaces}); choose another one."
            )
        own = getattr(self._env.unwrapped, "dt", control_dt)
        if abs(own - control_dt) > PERIOD_PRECISION:
            raise UserError(
                f"env={env_id} has a control period of {own} s, and the policy acts every {control_dt} s; choose "
                "another one."
            )
        values, _ = self._env.reset(seed=seed)
        super().__init__(values, int(np.prod(self._env.action_space.shape or ())), control_dt)

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        action = np.asarray(action, self._env.action_space.dtype)
        values, reward, terminated, truncated, _ = self._env.step(action)
        return values, float(reward), bool(terminated or truncated)

    def close(self) -> None:
        """Free the environment."""
        self._env.close()
