"""Any gymnasium environment with vectors in and out as a robot; time is simulated, one step for each command."""

from __future__ import annotations

import numpy as np

from adapters.errors import UserError
from adapters.robots.robot import Observation

# Periods that differ by less are the same, written with another number of digits.
PERIOD_PRECISION = 1e-6


class GymnasiumRobot:
    """One episode of a gymnasium environment.

    After the episode's end commands have no effect and observations are no longer fresh.

    Args:
        env_id: the environment's id in gymnasium, for example HalfCheetah-v5.
        control_dt: control period in s; where the environment has one of its own, they must agree.
        seed: seed of the start state.

    Attributes:
        episode_return: sum of rewards so far, undiscounted.
        ended: whether the episode is over.

    Raises:
        UserError: there is no such environment, it does not map a vector to a vector, or its period is another.
    """

    def __init__(self, env_id: str, control_dt: float, seed: int) -> None:
        import gymnasium

        try:
            self._env = gymnasium.make(env_id)
        except gymnasium.error.Error as error:
            raise UserError(f"gymnasium cannot make env={env_id}: {error}") from error
        spaces = self._env.observation_space, self._env.action_space
        if not all(isinstance(space, gymnasium.spaces.Box) and len(space.shape or ()) == 1 for space in spaces):
            raise UserError(f"env={env_id} does not take and give vectors of numbers: its spaces are {spaces}.")
        own = getattr(self._env.unwrapped, "dt", control_dt)
        if abs(own - control_dt) > PERIOD_PRECISION:
            raise UserError(f"env={env_id} has a control period of {own} s, and {control_dt} s is asked for.")
        self.obs_dim, self.act_dim = (int(np.prod(space.shape or ())) for space in spaces)
        self.control_dt, self.episode_return, self.ended = control_dt, 0.0, False
        self._steps, self._fresh = 0, True
        self._values, _ = self._env.reset(seed=seed)

    def observe(self) -> Observation:
        """Return the latest observation."""
        fresh, self._fresh = self._fresh, False
        return Observation(self._steps * self.control_dt, np.array(self._values, dtype=np.float64), fresh)

    def command(self, action: np.ndarray) -> None:
        """Apply `action` `(act_dim,)` for one control period."""
        if self.ended:
            return
        values, reward, terminated, truncated, _ = self._env.step(np.asarray(action, self._env.action_space.dtype))
        self._values, self.ended = values, bool(terminated or truncated)
        self.episode_return += float(reward)
        self._steps += 1
        self._fresh = not self.ended

    def close(self) -> None:
        """Free the environment."""
        self._env.close()
