"""Least squares of the observed change on the predicted one: `scale`, `affine` and `shared_scale`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from deploy.context.change import ChangeDetector, ChangeSettings
from deploy.context.estimator import Health, PredictChange, usable


@dataclasses.dataclass(frozen=True)
class ScaleSettings:
    """Settings of the `scale`, `affine` and `shared_scale` estimators.

    Attributes:
        forgetting: weight of the evidence a step later; 0.99 remembers about 100 steps.
        prior_std: how far from 1 a scaling is expected to lie before anything is seen.
        min_explained: share of the squared residual at z = 1 that the fit must explain for its context to be used.
        least: smallest scaling passed on. Below 1 the loop feeds itself: a policy that is told that it moves less than
            expected moves less, and then does (results/halfcheetah-mixed/README.md).
        most: largest scaling passed on.
        change: change detection.
    """

    forgetting: float = 0.99
    prior_std: float = 0.25
    min_explained: float = 0.3
    least: float = 1.0
    most: float = 1.1
    change: ChangeSettings = dataclasses.field(default_factory=ChangeSettings)


class ScaleEstimator:
    """Recursive least squares of the observed change on the predicted change, per dimension, with forgetting.

    For every dimension, with the model's predicted standard deviation as weight,

        minimise  sum_k f^(t-k) (dy_k - c - z dx_k)^2 / std_k^2 / s2  +  (z - 1)^2 / prior_std^2

    where dx is the predicted and dy the observed change, s2 >= 1 is how much larger than predicted the residual is,
    and c is an offset in the affine form and 0 otherwise. A dimension that the scaling does not explain has a large
    s2, and its z stays near 1. The idea of fitting z to observations directly is the authors' (Ball et al.
    2021, future work); the affine form lets a constant external force go into c instead of z. In the shared form one
    z is fitted for all dimensions together, which a hundred noisy steps determine far better than one each.

    Args:
        predict_change: the bundle's dynamics.
        low: smallest scaling `(obs_dim,)` that the policy was trained on.
        high: largest.
        nominal: what the policy is told where nothing has changed; what has is a factor on it.
        settings: settings.
        batch: leading shape.
        affine: whether to fit an offset.
        shared: whether all dimensions share one scaling.
    """

    needs_action = False

    def __init__(
        self,
        predict_change: PredictChange,
        low: np.ndarray,
        high: np.ndarray,
        nominal: np.ndarray,
        settings: ScaleSettings,
        batch: tuple[int, ...] = (),
        *,
        affine: bool = False,
        shared: bool = False,
    ) -> None:
        self.predict_change, self.low, self.high, self.nominal = predict_change, low, high, nominal
        self.settings, self.batch, self.affine, self.shared = settings, batch, affine, shared
        self.detector = ChangeDetector(settings.change, batch)
        self.reset()

    def reset(self) -> None:
        """Forget the episode."""
        shape = (*self.batch, len(self.nominal))
        # Discounted sums of weight, dx, dy, dx^2, dx dy, dy^2.
        self.sums = np.zeros((6, *shape))
        self.scale = np.ones(shape)
        self.offset = np.zeros(shape)
        self.certainty = np.zeros(shape)
        self.explained = np.zeros(self.batch)
        self.lost = np.zeros(self.batch, dtype=bool)
        self.changed = np.zeros(self.batch, dtype=bool)
        self.detector.reset()

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
        """Take in one transition."""
        predicted, std = self.predict_change(obs, action)
        observed = np.asarray(next_obs, dtype=np.float64) - obs
        asked, valid = usable(valid, observed - predicted, std)
        self.lost = np.where(asked, ~valid, self.lost)
        lanes = valid[..., None]
        dx, dy = np.where(lanes, predicted, 0.0), np.where(lanes, observed, 0.0)
        weight = np.where(lanes, 1.0 / np.square(np.where(lanes, std, 1.0)), 0.0)
        surprise = (weight * np.square(dy - self.offset - self.scale * dx)).mean(-1)
        # A step that stands out counts for as much as a bad step that is usual.
        weight *= (self.detector.bound(surprise) / np.maximum(surprise, 1e-12))[..., None]
        self.changed = self.detector.update(surprise, valid)
        keep = np.where(lanes, self.settings.forgetting, 1.0)
        keep = np.where(self.changed[..., None], self.settings.change.keep, keep)
        terms = (weight, weight * dx, weight * dy, weight * dx * dx, weight * dx * dy, weight * dy * dy)
        for total, term in zip(self.sums, terms, strict=True):
            total *= keep
            total += term
        self._solve()

    def _solve(self) -> None:
        """Turn the sums into scale, offset, certainty and the share of the residual that they explain."""
        w, x, y, xx, xy, yy = self.sums
        safe = np.maximum(w, 1e-12)
        nominal_residual = yy - 2 * xy + xx
        if self.affine:
            xx, xy, yy = xx - x * x / safe, xy - x * y / safe, yy - y * y / safe
        steps = self._effective_steps()[..., None]
        noise = np.maximum(_residual(self.scale, xx, xy, yy) / steps, 1.0)
        information, evidence = xx / noise, (xy - xx) / noise
        if self.shared:
            information, evidence = (v.sum(-1, keepdims=True) + 0 * v for v in (information, evidence))
        precision = information + 1.0 / self.settings.prior_std**2
        self.certainty = information / precision
        self.scale = 1.0 + evidence / precision
        if self.affine:
            self.offset = (y - self.scale * x) / safe
        left = _residual(self.scale, xx, xy, yy).sum(-1)
        self.explained = 1.0 - left / np.maximum(nominal_residual.sum(-1), 1e-12)

    def _effective_steps(self) -> np.ndarray:
        """How many steps the discounted sums stand for, at most."""
        return np.minimum(np.maximum(self.detector.count, 1.0), 1.0 / max(1.0 - self.settings.forgetting, 1e-12))

    def context(self, obs: np.ndarray, action: np.ndarray | None = None) -> np.ndarray:
        """Return the present scaling, nominal in lanes where it is not to be trusted."""
        scaling = self.nominal * np.clip(self.scale, self.settings.least, self.settings.most)
        return np.where(self._trusted()[..., None], np.clip(scaling, self.low, self.high), self.nominal)

    def _trusted(self) -> np.ndarray:
        """Whether the scaling explains what is observed, and is one that the policy was trained on.

        A scaling beyond the range is not clipped and passed on: what the policy would do with it is anybody's guess.
        """
        scaling = self.nominal * self.scale
        in_range = ((scaling >= self.low) & (scaling <= self.high)).all(-1)
        return in_range & (self.explained >= self.settings.min_explained) & ~self.lost

    def health(self) -> Health:
        """Return residual, confidence and whether a change was noticed."""
        confidence = np.where(self._trusted(), self.certainty.mean(-1), 0.0)
        return Health(np.sqrt(self.detector.fast), confidence, self.changed)


def _residual(scale: np.ndarray, xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> np.ndarray:
    """Discounted sum of (dy - scale dx)^2, weighted, from the sums; rounding must not make it negative."""
    return np.maximum(yy - 2 * scale * xy + np.square(scale) * xx, 0.0)
