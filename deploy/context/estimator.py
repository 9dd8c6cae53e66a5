"""What a context estimator takes and gives; every member of this folder keeps to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

PredictChange = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""The bundle's dynamics: obs, action -> predicted change of state and its standard deviation, in the data's units."""

# Numbers beyond this are a broken sensor's; their squares would swamp the sums for ever.
LARGEST = 1e6


class Health(NamedTuple):
    """How far an estimate is to be trusted; arrays of shape `batch`.

    Attributes:
        residual: root mean square of what the fit leaves unexplained, in predicted standard deviations.
        confidence: 0 (the context is nominal for want of evidence) to 1 (the evidence outweighs the prior).
        changed: whether a sudden change of the dynamics was noticed at the last update.
    """

    residual: np.ndarray
    confidence: np.ndarray
    changed: np.ndarray


class ContextEstimator(Protocol):
    """What the controller asks of an estimator."""

    needs_action: bool
    """Whether `context` depends on the action about to be taken."""

    def reset(self) -> None:
        """Forget the episode: the context is nominal again."""

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
        """Take in one transition `(obs_dim,), (act_dim,), (obs_dim,)`; lanes where `valid` is False are left alone."""

    def context(self, obs: np.ndarray, action: np.ndarray | None) -> np.ndarray:
        """Return z `(obs_dim,)` for acting at `obs`; `action` is a candidate, read where `needs_action`."""

    def health(self) -> Health:
        """Return how far the present estimate is to be trusted."""


def usable(valid: Any, *arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which lanes are asked for, and which of them hold only numbers that can be learned from."""
    sound = np.logical_and.reduce([(np.abs(array) < LARGEST).all(-1) for array in arrays])
    asked = np.ones_like(sound) if valid is None else np.broadcast_to(np.asarray(valid, dtype=bool), sound.shape)
    return asked, asked & sound
