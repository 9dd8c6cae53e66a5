"""Context estimators: what the robot's own motion says about how its dynamics have changed.

Every estimator compares the observed change of state with the change that the world model predicts for the original
environment, and returns z, one scaling per observation dimension, 1 where nothing has changed (Ball et al. 2021,
"Augmented World Models", section 4.3). The cost of a step is constant, whatever the episode's length.

All state has the leading shape `batch`: `()` is one robot, `(n,)` is n robots side by side, as validation runs them.
Shapes in the docstrings leave that prefix out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from adapters.errors import UserError

PredictChange = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""The bundle's dynamics: obs, action -> predicted change of state and its standard deviation, in the data's units."""


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


@dataclasses.dataclass(frozen=True)
class ScaleSettings:
    """Settings of the `scale`, `affine` and `shared_scale` estimators.

    Attributes:
        forgetting: weight of the evidence a step later; 0.99 remembers about 100 steps.
        prior_std: how far from 1 a scaling is expected to lie before anything is seen.
        min_explained: share of the squared residual at z = 1 that the fit must explain for its context to be used.
        least: smallest scaling passed on. Below 1 the loop feeds itself: a policy that is told that it moves less than
            expected moves less, and then does (results/README.md).
        most: largest scaling passed on.
        change: change detection.
    """

    forgetting: float = 0.99
    prior_std: float = 0.25
    min_explained: float = 0.3
    least: float = 1.0
    most: float = 1.05
    change: ChangeSettings = ChangeSettings()


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
    change: ChangeSettings = ChangeSettings()


class LinearForwardEstimator:
    """The published scheme: a linear forward model fitted online, divided by the world model's prediction.

    f(s, a) = W [s; a; 1] is fitted to the observed change by recursive least squares; for the action about to be
    taken, z = f(s, a) / predicted change, elementwise. The forward model stands in for the change that is not yet seen
    when the action has to be chosen. What the paper leaves open (inputs, ridge, warm-up, clipping, window) are
    settings; `surefoot bench context` repeats the sweep that their defaults come from.

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


# Numbers beyond this are a broken sensor's; their squares would swamp the sums for ever.
LARGEST = 1e6


def usable(valid: Any, *arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which lanes are asked for, and which of them hold only numbers that can be learned from."""
    sound = np.logical_and.reduce([(np.abs(array) < LARGEST).all(-1) for array in arrays])
    asked = np.ones_like(sound) if valid is None else np.broadcast_to(np.asarray(valid, dtype=bool), sound.shape)
    return asked, asked & sound


ESTIMATORS = ("linear_forward", "scale", "affine", "shared_scale")


def make_estimator(
    name: str,
    *,
    predict_change: PredictChange,
    low: np.ndarray,
    high: np.ndarray,
    nominal: np.ndarray,
    act_dim: int,
    settings: Mapping[str, Any] | None = None,
    batch: tuple[int, ...] = (),
) -> ContextEstimator:
    """Return the estimator of that name.

    Raises:
        UserError: there is no such estimator, or it has no such setting.
    """
    low, high, nominal = (np.asarray(v, dtype=np.float64) for v in (low, high, nominal))
    chosen = estimator_settings(name, settings)
    if isinstance(chosen, LinearForwardSettings):
        return LinearForwardEstimator(predict_change, low, high, nominal, act_dim, chosen, batch)
    form = {"affine": name == "affine", "shared": name == "shared_scale"}
    return ScaleEstimator(predict_change, low, high, nominal, chosen, batch, **form)


def estimator_settings(name: str, given: Mapping[str, Any] | None = None) -> ScaleSettings | LinearForwardSettings:
    """Return an estimator's settings, its defaults where nothing is given.

    Raises:
        UserError: there is no such estimator, or it has no such setting.
    """
    if name not in ESTIMATORS:
        raise UserError(f"there is no context estimator '{name}'; choose one of {', '.join(ESTIMATORS)}.")
    kind = LinearForwardSettings if name == "linear_forward" else ScaleSettings
    return _settings(kind, given, name)


def _settings(kind: Any, given: Mapping[str, Any] | None, estimator: str) -> Any:
    """Build a settings dataclass from a mapping, the nested change detection included."""
    values = dict(given or {})
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise UserError(
            f"the estimator '{estimator}' has no setting '{unknown[0]}'; it has {', '.join(sorted(known))}."
        )
    if "change" in values and not isinstance(values["change"], ChangeSettings):
        values["change"] = _settings(ChangeSettings, values["change"], f"{estimator}.change")
    return kind(**values)
