"""The upper bound of context inference: the true scaling, read from a copy of the true simulator."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from deploy.bundle import Bundle
from deploy.context import Health
from sim.environments import Environment
from sim.plant import BatchedPlant

MIN_CHANGE = 1.0
"""Predicted changes smaller than this many predicted standard deviations divide nothing: their scaling is nominal."""


class _Oracle:
    """What estimators that look instead of estimating have in common."""

    def __init__(self, plant: BatchedPlant, bundle: Bundle) -> None:
        context = bundle.manifest.context
        if context is None:
            raise ValueError(f"{bundle.path} takes no context")
        self.plant, self.spec = plant, context
        self.low, self.high, self.nominal = (np.asarray(v) for v in (context.low, context.high, context.nominal))

    def reset(self) -> None:
        """Nothing is remembered, so nothing is forgotten."""

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
        """Nothing is learned from a transition."""

    def health(self) -> Health:
        """Return full confidence: nothing is estimated."""
        lanes = len(self.plant)
        return Health(np.zeros(lanes), np.ones(lanes), np.zeros(lanes, bool))


class ActuatorOracle(_Oracle):
    """A context estimator that looks: it reads the gain of every actuator off the true simulator, and tells no push.

    Args:
        plant: the robots that the controller drives, one a lane.
        bundle: gives nominal gains and the range that the policy was trained on.
    """

    needs_action = False

    def __init__(self, plant: BatchedPlant, bundle: Bundle) -> None:
        super().__init__(plant, bundle)
        self.original = plant.environment.model().actuator_gainprm[:, 0]

    def context(self, obs: np.ndarray, action: np.ndarray | None) -> np.ndarray:
        """Return the true gains `(n, act_dim)`, within the range of the context."""
        gains = np.array([model.actuator_gainprm[:, 0] for model in self.plant.models]) / self.original
        told = np.tile(self.nominal, (len(gains), 1))
        told[:, len(self.spec.pushed) :] *= gains
        return np.clip(told, self.low, self.high)


class OracleEstimator(_Oracle):
    """A context estimator that looks: it steps the true simulator once under the candidate action.

    z = true change / change predicted for the original environment, elementwise, times the nominal context, clipped to
    the range that the policy was trained on. Passing the true change as context is how Ball et al. 2021 bound what
    inference can reach. Where the bundle infers one scaling for all dimensions, it is the one that fits this step best,
    by least squares in predicted standard deviations.

    It looks at the true state, and at the candidate action as if that acted at once: noise and delays scale nothing.

    Args:
        plant: the robots that the controller drives, one a lane; their states and models are read at every step.
        bundle: gives the prediction and the range of the context.
    """

    needs_action = True

    def __init__(self, plant: BatchedPlant, bundle: Bundle) -> None:
        super().__init__(plant, bundle)
        self.predict_change = bundle.predict_change
        self.shared = self.spec.estimator == "shared_scale"

    def context(self, obs: np.ndarray, action: np.ndarray | None) -> np.ndarray:
        """Return the true scaling `(n, obs_dim)` for the candidate actions `(n, act_dim)` at the plant's states."""
        assert action is not None, "the oracle needs the action about to be taken"
        present = self.plant.observe()
        predicted, std = self.predict_change(present, action)
        true = self.plant.peek(action) - present
        large = np.abs(predicted) > MIN_CHANGE * std
        if self.shared:
            weight = large / np.square(np.where(large, std, 1.0))
            fit = (weight * true * predicted).sum(-1, keepdims=True)
            size = (weight * predicted * predicted).sum(-1, keepdims=True)
            large = np.broadcast_to(size > 0, large.shape)
            ratio = fit / np.where(size > 0, size, 1.0)
        else:
            ratio = true / np.where(large, predicted, 1.0)
        return np.where(large, np.clip(self.nominal * ratio, self.low, self.high), self.nominal)


class TrueStep(NamedTuple):
    """What the simulator does with a state and a command.

    Attributes:
        next_obs: `(n, obs_dim)`.
        reward: `(n,)`.
        sound: `(n,)` bool, false where the physics diverged.
    """

    next_obs: np.ndarray
    reward: np.ndarray
    sound: np.ndarray


def true_step(environment: Environment, obs: np.ndarray, commands: np.ndarray, lanes: int = 1_000) -> TrueStep:
    """Put the simulator into the state of each observation, and hold a command for one control period.

    Args:
        environment: the task.
        obs: `(n, obs_dim)`.
        commands: `(n, act_dim)`.
        lanes: how many are stepped at once.

    Raises:
        UserError: the task's observations do not tell the state.
    """
    steps = []
    for first in range(0, len(obs), lanes):
        rows = slice(first, first + lanes)
        states = environment.states_of(obs[rows].astype(np.float64))
        with BatchedPlant(environment, [environment.model()] * len(states)) as plant:
            plant.reset(states=states)
            next_obs, reward, ended = plant.step(commands[rows])
        diverged = ended & ~np.asarray(environment.terminated(next_obs))
        steps.append(TrueStep(next_obs, reward, ~diverged & np.isfinite(next_obs).all(-1)))
    return TrueStep(*(np.concatenate(part) for part in zip(*steps, strict=True)))


def make_oracle(plant: BatchedPlant, bundle: Bundle) -> OracleEstimator | ActuatorOracle:
    """Return the oracle of the kind of context that the bundle's policy reads."""
    context = bundle.manifest.context
    assert context is not None
    return ActuatorOracle(plant, bundle) if context.kind == "actuator_gain" else OracleEstimator(plant, bundle)
