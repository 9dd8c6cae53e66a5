"""How much of its command each actuator delivers, and what pushes the body besides.

The gains come from recursive least squares on the world model's own reaction, the pushes from what that leaves over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from deploy.context.change import ChangeDetector, ChangeSettings
from deploy.context.estimator import Health, PredictChange, usable

# Steps without a push that a push is averaged with.
PUSH_PRIOR = 10.0
# Further from the prediction than this multiple of the largest push, a step says no more of a push.
PUSH_BOUND = 7.0


@dataclasses.dataclass(frozen=True)
class ActuatorGainSettings:
    """Settings of the `actuator_gain` estimator.

    Attributes:
        forgetting: weight of the evidence a step later; 0.98 remembers about 50 steps.
        prior_std: how far from nominal a gain is expected to lie before anything is seen.
        probe: by how much a gain is moved to see how the world model reacts.
        min_explained: share of the squared residual at nominal gains that the fit must explain for it to be used.
        change: change detection.
    """

    forgetting: float = 0.98
    prior_std: float = 0.3
    probe: float = 0.2
    min_explained: float = 0.1
    change: ChangeSettings = dataclasses.field(default_factory=ChangeSettings)


class ActuatorGainEstimator:
    """Fits g, one gain for each actuator: the command a now has the effect that g a would have had before.

    The world model f is asked what g a would do, and how that depends on g; around the present g0 it is linear,

        dy_k = f(s_k, g a_k) ~ f(s_k, g0 a_k) + H_k (g - g0),

    and the g that explains the observed changes dy best is found by least squares over the past, each step weighted by
    f^age and by the model's predicted variance times s2, where s2 >= 1 is how much larger than predicted the residual
    is. A prior holds g at the nominal gains, so that an actuator that is not used keeps what it had. This is a Kalman
    filter in information form, with forgetting in the place of process noise.

    A push b is what wind, a slope or another weight adds to the change of a term of the observation in every step. It
    is the discounted mean of what the gains leave over there,

        b = sum_k f^age (dy_k - f(s_k, g a_k)) / (PUSH_PRIOR + sum_k f^age),

    for each pushed term alone, so that a push is none before anything is seen.

    Args:
        predict_change: the bundle's dynamics.
        low: smallest pushes and gains `(pushed + act_dim,)` that the policy was trained on.
        high: largest.
        nominal: those of the original robot.
        settings: settings.
        batch: leading shape.
        pushed: terms of the observation that pushes are told of, counted from 0.
    """

    needs_action = False

    def __init__(
        self,
        predict_change: PredictChange,
        low: np.ndarray,
        high: np.ndarray,
        nominal: np.ndarray,
        settings: ActuatorGainSettings,
        batch: tuple[int, ...] = (),
        pushed: Sequence[int] = (),
    ) -> None:
        self.predict_change, self.pushed = predict_change, list(pushed)
        (self.push_low, self.low), (self.push_high, self.high), (_, self.nominal) = (
            np.split(values, [len(pushed)]) for values in (low, high, nominal)
        )
        self.settings, self.batch = settings, batch
        self.detector = ChangeDetector(settings.change, batch)
        self.reset()

    def reset(self) -> None:
        """Forget the episode."""
        dim = len(self.nominal)
        # Discounted sums of w H H', w H y and w y^2 with y = dy - f(s, g0 a) + H g0, and of w (dy - f(s, a))^2.
        self.information = np.zeros((*self.batch, dim, dim))
        self.evidence = np.zeros((*self.batch, dim))
        self.energy, self.nominal_residual = np.zeros(self.batch), np.zeros(self.batch)
        self.gain = np.broadcast_to(self.nominal, (*self.batch, dim)).copy()
        # Discounted sums of what the gains leave over in the pushed terms, and of 1.
        self.left_over, self.weighed = np.zeros((*self.batch, len(self.pushed))), np.zeros(self.batch)
        self.explained = np.zeros(self.batch)
        self.certainty = np.zeros(self.batch)
        self.lost = np.zeros(self.batch, dtype=bool)
        self.changed = np.zeros(self.batch, dtype=bool)
        self.detector.reset()

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
        """Take in one transition."""
        predicted, std, reaction = self._react(np.asarray(obs), np.asarray(action))
        observed = np.asarray(next_obs, dtype=np.float64) - obs
        residual, residual_nominal = (observed - predicted[..., row, :] for row in (0, 1))
        asked, valid = usable(valid, residual, residual_nominal, std, reaction.reshape(*self.batch, -1))
        self.lost = np.where(asked, ~valid, self.lost)
        residual, residual_nominal = (np.where(valid[..., None], r, 0.0) for r in (residual, residual_nominal))
        reaction = np.where(valid[..., None, None], reaction, 0.0)
        weight = np.where(valid[..., None], 1.0 / np.square(np.where(valid[..., None], std, 1.0)), 0.0)
        surprise = (weight * np.square(residual)).mean(-1)
        # A step that stands out counts for as much as a bad step that is usual.
        weight *= (self.detector.bound(surprise) / np.maximum(surprise, 1e-12))[..., None]
        self.changed = self.detector.update(surprise, valid)
        keep = np.where(valid, self.settings.forgetting, 1.0)
        keep = np.where(self.changed, self.settings.change.keep, keep)
        weighted = reaction * weight[..., None, :]
        to_explain = residual + (reaction * self.gain[..., None]).sum(-2)
        self.information = keep[..., None, None] * self.information + weighted @ np.swapaxes(reaction, -1, -2)
        self.evidence = keep[..., None] * self.evidence + (weighted @ to_explain[..., None])[..., 0]
        self.energy = keep * self.energy + (weight * np.square(to_explain)).sum(-1)
        self.nominal_residual = keep * self.nominal_residual + (weight * np.square(residual_nominal)).sum(-1)
        self._solve(obs.shape[-1])
        bound = PUSH_BOUND * np.maximum(self.push_high, -self.push_low)
        self.left_over = keep[..., None] * self.left_over + np.clip(residual[..., self.pushed], -bound, bound)
        self.weighed = keep * self.weighed + valid

    def _react(self, obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ask the world model what happens at the present gains, at the nominal ones, and at each one moved a little.

        Returns:
            The predicted changes of the first two `(2, obs_dim)`, the standard deviation at the first `(obs_dim,)`, and
            how the change depends on each gain `(act_dim, obs_dim)`.
        """
        dim = len(self.nominal)
        probe = np.where(self.gain > 0.5, -self.settings.probe, self.settings.probe)
        gains = np.repeat(self.gain[..., None, :], dim + 2, axis=-2)
        gains[..., 1, :] = self.nominal
        gains[..., 2:, :] += probe[..., None] * np.eye(dim)
        states = np.broadcast_to(obs[..., None, :], (*self.batch, dim + 2, obs.shape[-1]))
        rows = (gains * action[..., None, :]).reshape(-1, dim)
        change, std = self.predict_change(states.reshape(-1, obs.shape[-1]), rows)
        change, std = (np.asarray(v, dtype=np.float64).reshape(states.shape) for v in (change, std))
        reaction = (change[..., 2:, :] - change[..., :1, :]) / probe[..., None]
        return change[..., :2, :], std[..., 0, :], reaction

    def _solve(self, obs_dim: int) -> None:
        """Turn the sums into gains, their certainty and the share of the residual that they explain."""
        steps = np.minimum(np.maximum(self.detector.count, 1.0), 1.0 / max(1.0 - self.settings.forgetting, 1e-12))
        noise = np.maximum(self._residual() / (steps * obs_dim), 1.0)
        precision = self.information / noise[..., None, None] + np.eye(len(self.nominal)) / self.settings.prior_std**2
        pull = self.evidence / noise[..., None] + self.nominal / self.settings.prior_std**2
        variance = np.linalg.inv(precision)
        self.gain = np.clip((variance @ pull[..., None])[..., 0], self.low, self.high)
        spread = np.diagonal(variance, axis1=-2, axis2=-1).mean(-1)
        self.certainty = 1.0 - spread / self.settings.prior_std**2
        self.explained = 1.0 - self._residual() / np.maximum(self.nominal_residual, 1e-12)

    def _residual(self) -> np.ndarray:
        """Discounted squared residual at the present gains, from the sums; rounding must not make it negative."""
        cross = (self.evidence * self.gain).sum(-1)
        square = np.einsum("...i,...ij,...j->...", self.gain, self.information, self.gain)
        return np.maximum(self.energy - 2.0 * cross + square, 0.0)

    def context(self, obs: np.ndarray, action: np.ndarray | None = None) -> np.ndarray:
        """Return the present pushes and gains, gains nominal in lanes where they are not to be trusted."""
        gains = np.where(self._trusted()[..., None], self.gain, self.nominal)
        return np.concatenate([self.push, gains], axis=-1)

    @property
    def push(self) -> np.ndarray:
        """The present pushes `(pushed,)`, within the range that the policy knows."""
        mean = self.left_over / (PUSH_PRIOR + self.weighed)[..., None]
        return np.where(self.lost[..., None], 0.0, np.clip(mean, self.push_low, self.push_high))

    def _trusted(self) -> np.ndarray:
        """Whether the gains explain what is observed."""
        return (self.explained >= self.settings.min_explained) & ~self.lost

    def health(self) -> Health:
        """Return residual, confidence and whether a change was noticed."""
        confidence = np.where(self._trusted(), self.certainty, 0.0)
        return Health(np.sqrt(self.detector.fast), confidence, self.changed)
