"""Context estimators: what the robot's own motion says about how its dynamics have changed.

An estimator compares the observed change of state with the change that the world model predicts for the original
environment, and returns the context that the policy reads, nominal where nothing has changed (Ball et al. 2021,
"Augmented World Models", section 4.3); `history` asks a network that was trained to tell it instead. There are two
kinds of context: one scaling of the change for each observation dimension, and one gain for each actuator, with the
pushes on the body before them where a policy was trained to be told these. The cost of a step is constant, whatever the
episode's length.

All state has the leading shape `batch`: `()` is one robot, `(n,)` is n robots side by side, as validation runs them.
Shapes in the docstrings leave that prefix out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from adapters.errors import UserError
from deploy.context.actuator_gain import ActuatorGainEstimator, ActuatorGainSettings
from deploy.context.change import ChangeSettings
from deploy.context.estimator import ContextEstimator, Health, PredictChange
from deploy.context.history import Adapt, HistoryEstimator, HistorySettings
from deploy.context.linear_forward import LinearForwardEstimator, LinearForwardSettings
from deploy.context.scale import ScaleEstimator, ScaleSettings

__all__ = [
    "ESTIMATORS",
    "Adapt",
    "ContextEstimator",
    "Health",
    "HistorySettings",
    "PredictChange",
    "estimator_settings",
    "make_estimator",
]

# The kind of context that each estimator gives, as a bundle names it.
ESTIMATORS = dict.fromkeys(("linear_forward", "scale", "affine", "shared_scale"), "delta_scale")
ESTIMATORS |= dict.fromkeys(("actuator_gain", "history"), "actuator_gain")

Settings = ScaleSettings | LinearForwardSettings | ActuatorGainSettings | HistorySettings
_checked = functools.cache(TypeAdapter)


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
    adapt: Adapt | None = None,
    pushed: Sequence[int] = (),
) -> ContextEstimator:
    """Return the estimator of that name; `history` alone needs `adapt`, the bundle's adaptation module.

    Raises:
        UserError: there is no such estimator, it has no such setting, it lacks its adaptation module, or it tells
            nothing of what is `pushed`.
    """
    if pushed and name != "actuator_gain":
        raise UserError(f"the estimator '{name}' tells no pushes; actuator_gain does.")
    low, high, nominal = (np.asarray(v, dtype=np.float64) for v in (low, high, nominal))
    chosen = estimator_settings(name, settings)
    if isinstance(chosen, LinearForwardSettings):
        return LinearForwardEstimator(predict_change, low, high, nominal, act_dim, chosen, batch)
    if isinstance(chosen, ActuatorGainSettings):
        return ActuatorGainEstimator(predict_change, low, high, nominal, chosen, batch, pushed)
    if isinstance(chosen, HistorySettings):
        if adapt is None:
            raise UserError(
                "the estimator 'history' needs a bundle with adaptation.onnx; train one with algorithm=rma."
            )
        return HistoryEstimator(adapt, predict_change, low, high, nominal, chosen, batch)
    form = {"affine": name == "affine", "shared": name == "shared_scale"}
    return ScaleEstimator(predict_change, low, high, nominal, chosen, batch, **form)


def estimator_settings(name: str, given: Mapping[str, Any] | None = None) -> Settings:
    """Return an estimator's settings, its defaults where nothing is given.

    Raises:
        UserError: there is no such estimator, or it has no such setting or none of that type.
    """
    if name not in ESTIMATORS:
        raise UserError(f"there is no context estimator '{name}'; choose one of {', '.join(ESTIMATORS)}.")
    kinds = {"linear_forward": LinearForwardSettings, "actuator_gain": ActuatorGainSettings, "history": HistorySettings}
    return _settings(kinds.get(name, ScaleSettings), given, name)


def complete_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of an estimator, so that a later default does not change what a bundle does."""
    return dataclasses.asdict(estimator_settings(name, given))


def require_estimator(name: str, kind: str, given: Mapping[str, Any]) -> None:
    """Refuse an estimator that is not there, gives another kind of context, or has no such settings.

    Raises:
        UserError: it is so.
    """
    estimator_settings(name, given)
    if ESTIMATORS[name] != kind:
        fit = ", ".join(other for other, of in ESTIMATORS.items() if of == kind)
        raise UserError(f"the estimator '{name}' gives no context of the kind {kind}; choose one of {fit}.")


def _settings(kind: Any, given: Mapping[str, Any] | None, estimator: str) -> Any:
    """Build a settings dataclass from a mapping, the nested change detection included."""
    values = {} if given is None else given
    if not isinstance(values, Mapping):
        raise UserError(f"the settings of the estimator '{estimator}' are {given!r}; give each by its name.")
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise UserError(
            f"the estimator '{estimator}' has no setting '{unknown[0]}'; it has {', '.join(sorted(known))}."
        )
    if "change" in values and not isinstance(values["change"], ChangeSettings):
        values = {**values, "change": _settings(ChangeSettings, values["change"], f"{estimator}.change")}
    try:
        return _checked(kind).validate_python(values)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        raise UserError(
            f"the estimator '{estimator}' has {name}={fault['input']!r}: {fault['msg']}; give another value."
        ) from error
