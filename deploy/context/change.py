"""Noticing that the dynamics have just changed, from the residual alone."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ChangeSettings:
    """When a jump of the residual counts as a change of the dynamics.

    Attributes:
        fast: steps over which the present residual is averaged.
        slow: steps over which the usual residual is averaged.
        ratio: how many times the usual squared residual the present one must be.
        keep: share of the evidence kept after a change; the rest is forgotten at once.
    """

    fast: float = 8.0
    slow: float = 200.0
    ratio: float = 3.0
    keep: float = 0.02


class ChangeDetector:
    """Two running means of the squared residual, a fast and a slow one; a change is where they part.

    Args:
        settings: time constants and threshold.
        batch: leading shape.
    """

    def __init__(self, settings: ChangeSettings, batch: tuple[int, ...]) -> None:
        self.settings, self.batch = settings, batch
        self.reset()

    def reset(self) -> None:
        """Forget what is usual."""
        self.fast, self.slow, self.count = (np.zeros(self.batch) for _ in range(3))

    def bound(self, squared_residual: np.ndarray) -> np.ndarray:
        """Cap the squared residual of one step, once it is known what is usual, so that one step alone is no change.

        A change shows in two steps or more; a single one that stands out is a glitch of a sensor.
        """
        known = self.count > 3 * self.settings.fast
        largest = 0.5 * self.settings.ratio * self.settings.fast * np.maximum(self.slow, 1e-12)
        return np.where(known, np.minimum(squared_residual, largest), squared_residual)

    def update(self, squared_residual: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Take in the squared residual of one step and return whether the dynamics have just changed, bool."""
        settings = self.settings
        squared_residual = self.bound(squared_residual)
        self.count = self.count + valid
        # Early in an episode both are plain averages, so that neither carries a made-up start.
        for name, span in (("fast", settings.fast), ("slow", settings.slow)):
            mean = getattr(self, name)
            rate = np.where(valid, 1.0 / np.minimum(np.maximum(self.count, 1.0), span), 0.0)
            setattr(self, name, mean + rate * (squared_residual - mean))
        fired = valid & (self.count > 3 * settings.fast) & (self.fast > settings.ratio * self.slow)
        # After a change the new residual is the usual one, and a while must pass before the next can be told.
        self.slow = np.where(fired, self.fast, self.slow)
        self.count = np.where(fired, 0.0, self.count)
        return fired
