"""The published scheme: a linear forward model fitted online, over the world model's prediction."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from deploy.context.change import ChangeDetector, ChangeSettings
from deploy.context.estimator import Health, PredictChange, usable


@dataclasses.dataclass(frozen=True)
class LinearForwardSettings:
    """Settings of the `linear_forward` estimator.

    Attributes:
        forgetting: weight of the evidence a step later.
        ridge: pull of the linear model's weights towards zero, on inputs in the data's units.
        warm_up: steps of an episode during which the context is nominal.
        smoothing: share of the old context kept at every step.
        min_change: predicted changes smaller than this many predicted standard deviations divide nothing.
        half_width: how far from nominal the context may go.
        max_residual: residual, in predicted standard deviations, beyond which the context is nominal.
        change: change detection.
    """

    forgetting: float = 0.998
    ridge: float = 0.1
    warm_up: int = 300
    smoothing: float = 0.9
    min_change: float = 1.0
    half_width: float = 0.05
    max_residual: float = 100.0
    change: ChangeSettings = dataclasses.field(default_factory=ChangeSettings)


class LinearForwardEstimator:
    """The published scheme: a linear forward model fitted online, divided by the world model's prediction.

    f(s, a) = W [s; a; 1] is fitted to the observed change by recursive least squares; for the action about to be
    taken, z = f(s, a) / predicted change, elementwise. The forward model stands in for the change that is not yet seen
    when the action has to be chosen. What the paper leaves open (inputs, ridge, warm-up, clipping, window) are
    settings; `surefoot bench name=context` repeats the sweep that their defaults come from.

    Args:
        predict_change: the bundle's dynamics.
        low: smallest scaling `(obs_dim,)` that the policy was trained on.
        high: largest.
        nominal: what the policy is told where nothing has changed; what has is a factor on it.
        act_dim: size of an action.
        settings: settings.
        batch: leading shape.
    """

    needs_action = True

    def __init__(
        self,
        predict_change: PredictChange,
        low: np.ndarray,
        high: np.ndarray,
        nominal: np.ndarray,
        act_dim: int,
        settings: LinearForwardSettings,
        batch: tuple[int, ...] = (),
    ) -> None:
        self.predict_change, self.nominal = predict_change, nominal
        self.low = np.maximum(low, nominal - settings.half_width)
        self.high = np.minimum(high, nominal + settings.half_width)
        self.settings, self.batch = settings, batch
        self.inputs = len(nominal) + act_dim + 1
        self.detector = ChangeDetector(settings.change, batch)
        self.reset()

    def reset(self) -> None:
        """Forget the episode."""
        obs_dim = len(self.nominal)
        self.weights = np.zeros((*self.batch, self.inputs, obs_dim))
        self.covariance = np.zeros((*self.batch, self.inputs, self.inputs))
        self.covariance[...] = np.eye(self.inputs) / self.settings.ridge
        self.smoothed = np.ones((*self.batch, obs_dim)) * self.nominal
        self.steps = np.zeros(self.batch, dtype=int)
        self.lost = np.zeros(self.batch, dtype=bool)
        self.changed = np.zeros(self.batch, dtype=bool)
        self.detector.reset()

    def _features(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        one = np.ones((*self.batch, 1))
        return np.concatenate([np.nan_to_num(obs), np.nan_to_num(action), one], axis=-1).astype(np.float64)

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
        """Take in one transition."""
        _, std = self.predict_change(obs, action)
        observed = np.asarray(next_obs, dtype=np.float64) - obs
        asked, valid = usable(valid, observed, std, action)
        self.lost = np.where(asked, ~valid, self.lost)
        features = self._features(obs, action)
        error = np.where(valid[..., None], observed - self._change(features), 0.0)
        surprise = np.square(error / np.where(valid[..., None], std, 1.0)).mean(-1)
        # A step that stands out counts for as much as a bad step that is usual.
        error *= np.sqrt(self.detector.bound(surprise) / np.maximum(surprise, 1e-12))[..., None]
        self.changed = self.detector.update(surprise, valid)
        # A change makes the old weights a guess: the covariance grows as if most of the evidence were gone.
        self.covariance[self.changed] /= self.settings.change.keep
        self._recurse(features, error, valid)
        self.steps = self.steps + valid

    def _recurse(self, features: np.ndarray, error: np.ndarray, valid: np.ndarray) -> None:
        """One step of recursive least squares with forgetting; invalid lanes are left as they are."""
        forgetting = self.settings.forgetting
        spread = np.einsum("...ij,...j->...i", self.covariance, features)
        scale = forgetting + np.einsum("...i,...i->...", features, spread)
        gain = np.where(valid[..., None], spread / scale[..., None], 0.0)
        self.weights += gain[..., :, None] * error[..., None, :]
        self.covariance -= gain[..., :, None] * spread[..., None, :]
        self.covariance /= np.where(valid, forgetting, 1.0)[..., None, None]
        # Without excitation forgetting would let the covariance grow without bound.
        largest = np.einsum("...ii->...i", self.covariance).max(-1)
        self.covariance *= np.minimum(1.0, 1.0 / (self.settings.ridge * largest))[..., None, None]

    def _change(self, features: np.ndarray) -> np.ndarray:
        """The linear model's change of state."""
        return np.einsum("...i,...ij->...j", features, self.weights)

    def context(self, obs: np.ndarray, action: np.ndarray | None) -> np.ndarray:
        """Return the ratio of the two predictions for the candidate action, smoothed and clipped."""
        assert action is not None, "linear_forward needs the action about to be taken"
        predicted, std = self.predict_change(obs, action)
        large = np.abs(predicted) > self.settings.min_change * std
        ratio = self.nominal * self._change(self._features(obs, action)) / np.where(large, predicted, 1.0)
        ratio = np.where(large & np.isfinite(ratio), np.clip(ratio, self.low, self.high), self.smoothed)
        keep = np.where(self.steps >= self.settings.warm_up, self.settings.smoothing, 1.0)[..., None]
        self.smoothed = keep * self.smoothed + (1.0 - keep) * ratio
        return np.where(self._trusted()[..., None], self.smoothed, self.nominal)

    def _trusted(self) -> np.ndarray:
        warm = self.steps >= self.settings.warm_up
        return warm & (np.sqrt(self.detector.fast) <= self.settings.max_residual) & ~self.lost

    def health(self) -> Health:
        """Return residual, confidence and whether a change was noticed."""
        return Health(np.sqrt(self.detector.fast), self._trusted().astype(float), self.changed)
