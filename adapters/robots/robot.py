"""What every robot offers, simulated or real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Observation:
    """What a robot's sensors say.

    Attributes:
        time: s, on the robot's own clock.
        values: `(obs_dim,)` in the order and units of the robot's description.
        fresh: whether the values are new since the last `observe`.
    """

    time: float
    values: np.ndarray
    fresh: bool


class Robot(Protocol):
    """A robot that a control loop drives."""

    def observe(self) -> Observation:
        """Return the latest observation."""

    def command(self, action: np.ndarray) -> None:
        """Send a command `(act_dim,)` in the order and units of the robot's description."""

    def close(self) -> None:
        """Let go of the robot."""
