"""How much of its command each actuator delivers, as a network tells it from what the robot did lately."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from deploy.context.change import ChangeDetector, ChangeSettings
from deploy.context.estimator import Health, PredictChange, usable

Adapt = Callable[[np.ndarray], np.ndarray]
"""The bundle's adaptation module: histories `(..., history_dim)`, row after row, to contexts `(..., context_dim)`."""


@dataclasses.dataclass(frozen=True)
class HistorySettings:
    """Settings of the `history` estimator.

    Attributes:
        window: transitions that the adaptation module reads, as many as it was trained with.
        change: change detection; it is reported and does not change the estimate.
    """

    window: int = 50
    change: ChangeSettings = dataclasses.field(default_factory=ChangeSettings)

    def size(self, obs_dim: int, act_dim: int) -> int:
        """How many numbers a history has."""
        return self.window * (1 + 2 * obs_dim + act_dim)


class HistoryEstimator:
    """Asks the bundle's adaptation module, in the manner of RMA (Kumar et al. 2021, arXiv 2107.04034).

    A row of the history is one transition, [1, obs, action, next_obs - obs], the newest last; before the first one it
    is zeros. A transition that is lost is left out, which a row does not show: it knows nothing of its neighbours.

    The module alone gives the context. The world model tells how well the gains explain the motion, for `health`.

    Args:
        adapt: the adaptation module.
        predict_change: the bundle's dynamics.
        low: smallest gain `(act_dim,)` that the policy was trained on.
        high: largest.
        nominal: gains of the original robot.
        settings: settings.
        batch: leading shape.
    """

    needs_action = False

    def __init__(
        self,
        adapt: Adapt,
        predict_change: PredictChange,
        low: np.ndarray,
        high: np.ndarray,
        nominal: np.ndarray,
        settings: HistorySettings,
        batch: tuple[int, ...] = (),
    ) -> None:
        self.adapt, self.predict_change = adapt, predict_change
        self.low, self.high, self.nominal = low, high, nominal
        self.settings, self.batch = settings, batch
        self.detector = ChangeDetector(settings.change, batch)
        self.reset()

    def reset(self) -> None:
        """Forget the episode."""
        # The first transition shows how wide a row is.
        self.history: np.ndarray | None = None
        self.gain = np.broadcast_to(self.nominal, (*self.batch, len(self.nominal))).copy()
        self.steps = np.zeros(self.batch)
        self.lost = np.zeros(self.batch, dtype=bool)
        self.changed = np.zeros(self.batch, dtype=bool)
        self.detector.reset()

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
        """Take in one transition."""
        obs, action = np.asarray(obs, dtype=np.float64), np.asarray(action, dtype=np.float64)
        observed = np.asarray(next_obs, dtype=np.float64) - obs
        predicted, std = self.predict_change(obs, self.gain * action)
        row = np.concatenate([np.ones((*self.batch, 1)), obs, action, observed], axis=-1)
        asked, valid = usable(valid, row, observed - predicted, std)
        surprise = np.square((observed - predicted) / std).mean(-1)
        self.changed = self.detector.update(np.where(valid, surprise, 0.0), valid)
        if self.history is None:
            self.history = np.zeros((*self.batch, self.settings.window, row.shape[-1]), dtype=np.float32)
        moved = np.concatenate([self.history[..., 1:, :], row[..., None, :]], axis=-2, dtype=np.float32)
        self.history = np.where(valid[..., None, None], moved, self.history)
        self.steps = np.minimum(self.steps + valid, self.settings.window)
        gain = np.asarray(self.adapt(self.history.reshape(*self.batch, -1)), dtype=np.float64)
        sound = np.isfinite(gain).all(-1)
        self.lost = np.where(asked, ~(valid & sound), self.lost)
        self.gain = np.where((valid & sound)[..., None], np.clip(gain, self.low, self.high), self.gain)

    def context(self, obs: np.ndarray, action: np.ndarray | None = None) -> np.ndarray:
        """Return the present gains, nominal in lanes where nothing or nothing sound was seen."""
        return np.where(self._trusted()[..., None], self.gain, self.nominal)

    def _trusted(self) -> np.ndarray:
        return (self.steps > 0) & ~self.lost

    def health(self) -> Health:
        """Return residual, how much of the window is filled, and whether a change was noticed."""
        confidence = np.where(self._trusted(), self.steps / self.settings.window, 0.0)
        return Health(np.sqrt(self.detector.fast), confidence, self.changed)
