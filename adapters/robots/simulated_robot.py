"""One episode of a simulated environment as a robot; time is simulated, one step for each command."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from adapters.robots.robot import Observation

# Periods that differ by less are the same, written with another number of digits.
PERIOD_PRECISION = 1e-6


class SimulatedRobot(ABC):
    """After the episode's end commands have no effect and observations are no longer fresh.

    Args:
        values: the first observation.
        act_dim: size of a command.
        control_dt: control period in s.

    Attributes:
        episode_return: sum of rewards so far, undiscounted.
        ended: whether the episode is over.
    """

    def __init__(self, values: np.ndarray, act_dim: int, control_dt: float) -> None:
        self.obs_dim, self.act_dim, self.control_dt = len(values), act_dim, control_dt
        self.episode_return, self.ended = 0.0, False
        self._values, self._steps, self._fresh = values, 0, True

    @abstractmethod
    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Apply `action` for one control period; returns observation, reward and whether the episode is over."""

    @abstractmethod
    def close(self) -> None:
        """Free the environment."""

    def observe(self) -> Observation:
        """Return the latest observation."""
        fresh, self._fresh = self._fresh, False
        return Observation(self._steps * self.control_dt, np.array(self._values, dtype=np.float64), fresh)

    def command(self, action: np.ndarray) -> None:
        """Apply `action` `(act_dim,)` for one control period."""
        if self.ended:
            return
        self._values, reward, self.ended = self._step(action)
        self.episode_return += float(reward)
        self._steps += 1
        self._fresh = not self.ended
