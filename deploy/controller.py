"""The controller: observation in, safe command out, at a fixed rate.

The same object runs one robot and, in validation, hundreds side by side: all state has the leading shape `batch`, `()`
for one robot. It reads no clock (time comes in), so that a recorded log replays to the same bits. It never raises in
the loop and never returns a command that is not finite or is beyond the limits: a fault becomes the safe command and a
reason.
"""

from __future__ import annotations

import dataclasses
from enum import IntEnum
from typing import Literal

import numpy as np

from deploy.bundle import Bundle
from deploy.context import ContextEstimator, Health, make_estimator
from deploy.limits import CommandLimits, ObservationLimits

# Share of the control period by which an observation may be early or late and still teach the estimator.
PERIOD_TOLERANCE = 0.2


class State(IntEnum):
    """What the controller is doing."""

    RUNNING = 0
    HOLD = 1
    STOPPED = 2


class Reason(IntEnum):
    """Why a command is the safe one."""

    NONE = 0
    BAD_SHAPE = 1
    NOT_FINITE = 2
    OUT_OF_LIMITS = 3
    BAD_TIME = 4
    BAD_COMMAND = 5
    EXCEPTION = 6
    TOO_MANY_FAULTS = 7
    STOP_REQUESTED = 8


REASONS = {
    Reason.NONE: "",
    Reason.BAD_SHAPE: "the observation has another size than the bundle's",
    Reason.NOT_FINITE: "the observation holds a number that is not finite",
    Reason.OUT_OF_LIMITS: "the observation is beyond the robot's limits",
    Reason.BAD_TIME: "time did not move forward",
    Reason.BAD_COMMAND: "the policy gave a command that is not finite",
    Reason.EXCEPTION: "the policy or the estimator raised",
    Reason.TOO_MANY_FAULTS: "too many faults in a row; clear() lets it run again",
    Reason.STOP_REQUESTED: "a stop was asked for; clear() lets it run again",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """The answer to one observation; arrays with the leading shape `batch`.

    Attributes:
        action: `(*batch, act_dim)` in command units, finite and within limits.
        state: `State` as an integer.
        reason: `Reason` as an integer.
        context: what the policy read, `(*batch, context_dim)`, or None where it reads none.
        health: of the context estimate, or None.
        error: text of an exception, where one was caught.
    """

    action: np.ndarray
    state: np.ndarray
    reason: np.ndarray
    context: np.ndarray | None
    health: Health | None
    error: str = ""

    @property
    def explanation(self) -> str:
        """The first fault in words, empty where there is none."""
        worst = Reason(int(np.max(self.reason)))
        return f"{REASONS[worst]}: {self.error}" if self.error else REASONS[worst]


class Controller:
    """Runs a bundle.

    Args:
        bundle: the checked bundle.
        context: "inferred" runs the bundle's estimator, "nominal" tells the policy that nothing has changed.
        estimator: takes the place of the bundle's estimator.
        batch: leading shape of every array; `()` is one robot.
        max_faults: bad steps in a row after which a robot is stopped until `clear`.
    """

    def __init__(
        self,
        bundle: Bundle,
        context: Literal["inferred", "nominal"] = "inferred",
        estimator: ContextEstimator | None = None,
        batch: tuple[int, ...] = (),
        max_faults: int = 20,
    ) -> None:
        self.bundle, self.batch, self.max_faults = bundle, batch, max_faults
        spec = bundle.manifest
        self.control_dt = spec.robot.control_dt
        self.obs_shape = (*batch, spec.obs_dim)
        self.command_limits = CommandLimits(spec.robot)
        self.observation_limits = ObservationLimits(spec.robot)
        self.hold_position = spec.robot.action.law == "position"
        self.rest = self.command_limits.apply(np.zeros((*batch, spec.act_dim)), None)
        self.nominal = None if spec.context is None else np.array(spec.context.nominal)
        self.estimator = estimator
        if spec.context is not None and estimator is None and context == "inferred":
            self.estimator = make_estimator(
                spec.context.estimator,
                predict_change=bundle.predict_change,
                low=np.array(spec.context.low),
                high=np.array(spec.context.high),
                nominal=np.array(spec.context.nominal),
                act_dim=spec.act_dim,
                settings=spec.context.settings,
                batch=batch,
            )
        self.reset()

    def reset(self) -> None:
        """Start a new episode: running, nothing remembered."""
        self.state = np.full(self.batch, State.RUNNING)
        self.latch = np.full(self.batch, Reason.NONE)
        self.faults = np.zeros(self.batch, dtype=int)
        self.previous_time: float | None = None
        self.previous_obs = np.zeros(self.obs_shape)
        self.previous_good = np.zeros(self.batch, dtype=bool)
        self.previous_action: np.ndarray | None = None
        self.context = self._nominal_context()
        self.health: Health | None = None
        if self.estimator is not None:
            self.estimator.reset()

    def stop(self) -> None:
        """Stop every robot until `clear`."""
        self.state[...] = State.STOPPED
        self.latch[...] = Reason.STOP_REQUESTED

    def clear(self) -> None:
        """Let stopped robots run again."""
        self.state = np.full(self.batch, State.RUNNING)
        self.latch = np.full(self.batch, Reason.NONE)
        self.faults = np.zeros(self.batch, dtype=int)

    def step(self, time: float, obs: np.ndarray) -> Command:
        """Answer the observations made at `time`.

        Args:
            time: seconds on any clock that only moves forward.
            obs: `(*batch, obs_dim)`.
        """
        obs, reason = self._check(time, obs)
        error = ""
        action = self._safe_action()
        try:
            self._learn(time, obs, reason)
            action = self._decide(obs, reason == Reason.NONE)
        except Exception as caught:  # anything at all must end in the safe command, with its text kept
            error = f"{type(caught).__name__}: {caught}"
            reason = np.where(reason == Reason.NONE, Reason.EXCEPTION, reason)
        bad_command = (reason == Reason.NONE) & ~np.isfinite(action).all(-1)
        reason = np.where(bad_command, Reason.BAD_COMMAND, reason)
        self._settle(reason)
        running = self.state == State.RUNNING
        action = np.where(running[..., None], action, self._safe_action())
        action = self.command_limits.apply(action, self.previous_action)
        self._remember(time, obs, reason, action)
        shown = np.where(self.state == State.STOPPED, self.latch, reason)
        return Command(action, self.state.copy(), shown, self.context, self.health, error)

    def _check(self, time: float, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a finite observation and, for every robot, what is wrong with the one that came."""
        reason = np.full(self.batch, Reason.NONE)
        try:
            values = np.asarray(obs, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape != self.obs_shape:
            return self.previous_obs, np.full(self.batch, Reason.BAD_SHAPE)
        reason = np.where(self.observation_limits.within(values), reason, Reason.OUT_OF_LIMITS)
        reason = np.where(np.isfinite(values).all(-1), reason, Reason.NOT_FINITE)
        forward = np.isfinite(time) and (self.previous_time is None or time > self.previous_time)
        if not forward:
            reason = np.full(self.batch, Reason.BAD_TIME)
        return np.where(np.isfinite(values), values, self.previous_obs), reason

    def _learn(self, time: float, obs: np.ndarray, reason: np.ndarray) -> None:
        """Tell the estimator what the last command did, where both ends of the transition are good."""
        if self.estimator is None or self.previous_time is None or self.previous_action is None:
            return
        if abs(time - self.previous_time - self.control_dt) > PERIOD_TOLERANCE * self.control_dt:
            return
        valid = self.previous_good & (reason == Reason.NONE)
        self.estimator.update(self.previous_obs, self.previous_action, obs, valid)

    def _decide(self, obs: np.ndarray, good: np.ndarray) -> np.ndarray:
        """Set the context and ask the policy."""
        if self.estimator is not None and self.context is not None:
            candidate = self.bundle.act(obs, self.context) if self.estimator.needs_action else None
            context = self.estimator.context(obs, candidate)
            usable = good[..., None] & np.isfinite(context).all(-1, keepdims=True)
            self.context = np.where(usable, context, self._nominal_context())
            self.health = self.estimator.health()
        return self.bundle.act(obs, self.context)

    def _nominal_context(self) -> np.ndarray | None:
        if self.nominal is None:
            return None
        return np.broadcast_to(self.nominal, (*self.batch, len(self.nominal))).copy()

    def _safe_action(self) -> np.ndarray:
        """Rest: no effort, no velocity; or, where positions are commanded, the last position."""
        return self.previous_action if self.hold_position and self.previous_action is not None else self.rest

    def _settle(self, reason: np.ndarray) -> None:
        """Move the state machine: a fault holds, too many in a row stop."""
        faulty = reason != Reason.NONE
        self.faults = np.where(faulty, self.faults + 1, 0)
        self.latch = np.where(
            (self.faults >= self.max_faults) & (self.latch == Reason.NONE), Reason.TOO_MANY_FAULTS, self.latch
        )
        moving = np.where(faulty, State.HOLD, State.RUNNING)
        self.state = np.where(self.latch != Reason.NONE, State.STOPPED, moving)

    def _remember(self, time: float, obs: np.ndarray, reason: np.ndarray, action: np.ndarray) -> None:
        self.previous_obs, self.previous_action = obs, action
        self.previous_good = reason == Reason.NONE
        # A clock that jumped forward far away must not make every later time look late.
        if np.isfinite(time):
            self.previous_time = time
