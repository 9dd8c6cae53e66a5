"""The controller: observation in, safe command out, at a fixed rate.

The same object runs one robot and, in validation, hundreds side by side: all state has the leading shape `batch`, `()`
for one robot. It reads no clock (time comes in), so that a recorded log replays to the same bits. It never raises in
the loop and never returns a command that is not finite or is beyond the limits: a fault becomes the safe command and a
reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.limits import faulty_terms, limit_command, observation_bounds

if TYPE_CHECKING:
    from deploy.context import ContextEstimator, Health

# Share of the control period by which an observation may be early or late and still teach the estimator.
PERIOD_TOLERANCE = 0.2


class State(IntEnum):
    """What the controller does with a robot: it runs the policy, waits in safety for a good step, or has stopped."""

    RUNNING = 0
    HOLD = 1
    STOPPED = 2


class Reason(IntEnum):
    """What was wrong with a step."""

    NONE = 0
    TIME = 1
    SHAPE = 2
    NOT_FINITE = 3
    LIMIT = 4
    ESTIMATOR = 5
    POLICY = 6
    CONTEXT = 7
    TOO_LONG = 8
    STOP = 9


# Enum members as plain integers, which numpy compares and stores several times faster, for use at every step.
NONE, CONTEXT = int(Reason.NONE), int(Reason.CONTEXT)
RUNNING, HOLD, STOPPED = (int(state) for state in State)

REASONS = {
    Reason.NONE: "",
    Reason.TIME: "time did not move forward",
    Reason.SHAPE: "the observation is not an array of the bundle's size",
    Reason.NOT_FINITE: "the observation is not finite",
    Reason.LIMIT: "the observation is beyond the robot's limits",
    Reason.ESTIMATOR: "the context estimator failed",
    Reason.POLICY: "the policy failed or gave a command that is not finite",
    Reason.CONTEXT: "the context was out of the policy's range, so the nominal one was used",
    Reason.TOO_LONG: "too many bad steps in a row; stopped until clear()",
    Reason.STOP: "stopped on request until clear()",
}


@dataclass(frozen=True, eq=False)
class Command:
    """The answer to one observation; arrays with the leading shape `batch`.

    Attributes:
        action: `(*batch, act_dim)` in command units, finite and within limits.
        state: `State` as integers.
        reason: `Reason` as integers; CONTEXT does not keep a robot from running, every other one does.
        context: `(*batch, context_dim)` as the policy read it, or None where it reads none.
        health: of the context's estimate, or None where there is no estimator.
        detail: the observation terms at fault, or how the observation's shape is wrong.
        error: text of an exception of the estimator or the policy.
    """

    action: np.ndarray
    state: np.ndarray
    reason: np.ndarray
    context: np.ndarray | None
    health: Health | None
    detail: str = ""
    error: str = ""

    @property
    def explanation(self) -> str:
        """Every reason that occurs, in words; empty where all is well."""
        texts = [REASONS[Reason(code)] for code in np.unique(self.reason) if code != Reason.NONE]
        notes = ", ".join(note for note in (self.detail, self.error) if note)
        return "; ".join(texts) + (f" ({notes})" if notes else "")


class _Inferred(NamedTuple):
    """The context to act on, `(*batch, context_dim)`, and where the estimator's own was refused, `batch`."""

    z: np.ndarray | None
    refused: np.ndarray


class Controller:
    """Runs a bundle.

    Args:
        bundle: the policy, its dynamics and limits.
        context: "inferred" by the bundle's estimator, or always the "nominal" one of the original environment.
        estimator: takes the place of the bundle's own estimator.
        batch: leading shape of all arrays; `()` is one robot.
        max_hold: bad steps in a row after which a robot is stopped until `clear`.

    Raises:
        UserError: the bundle's estimator or its settings are not known.
    """

    def __init__(
        self,
        bundle: Bundle,
        context: Literal["inferred", "nominal"] = "inferred",
        estimator: ContextEstimator | None = None,
        batch: tuple[int, ...] = (),
        max_hold: int = 20,
    ) -> None:
        if context not in ("inferred", "nominal"):
            raise UserError(f"there is no context '{context}'; choose inferred or nominal.")
        self.bundle, self.batch, self.max_hold = bundle, batch, max_hold
        robot = bundle.manifest.robot
        self.control_dt, self.names = robot.control_dt, robot.observation_names
        self.obs_shape, self.act_shape = (*batch, robot.obs_dim), (*batch, robot.act_dim)
        self.bounds = observation_bounds(robot)
        self.low, self.high = np.array(robot.action.low), np.array(robot.action.high)
        self.max_step = None if robot.limits.rate is None else robot.limits.rate * robot.control_dt
        # Under a position law a robot at fault stays where it was last seen well.
        self.held_terms: np.ndarray | None = None
        if robot.action.law == "position":
            self.held_terms = np.array([robot.index("joint_position", joint) for joint in robot.action.joints])
        self.spec = bundle.manifest.context
        self.estimator: ContextEstimator | None = None
        if self.spec is not None:
            self.nominal = np.array(self.spec.nominal)
            self.context_low, self.context_high = np.array(self.spec.low), np.array(self.spec.high)
        if self.spec is not None and context == "inferred":
            self.estimator = estimator or self._own_estimator()
        self.state = np.full(batch, State.HOLD)
        self.latch = np.full(batch, Reason.NONE)
        self.reset()

    def _own_estimator(self) -> ContextEstimator:
        from deploy.context import make_estimator

        assert self.spec is not None
        return make_estimator(
            self.spec.estimator,
            predict_change=self.bundle.predict_change,
            low=self.context_low,
            high=self.context_high,
            nominal=self.nominal,
            act_dim=self.act_shape[-1],
            settings=self.spec.settings,
            batch=self.batch,
        )

    def reset(self) -> None:
        """Start a new episode with nothing remembered; a robot that was stopped stays so until `clear`."""
        self.bad_steps = np.zeros(self.batch, dtype=int)
        self.rest = np.clip(np.zeros(self.act_shape), self.low, self.high)
        self.command = self.rest
        self.time: float | None = None
        self.obs = np.zeros(self.obs_shape)
        self.good = np.zeros(self.batch, dtype=bool)
        self.seen = np.zeros(self.batch, dtype=bool)
        self.context = None
        if self.spec is not None:
            self.context = np.broadcast_to(self.nominal, (*self.batch, self.spec.dim))
        if self.estimator is not None:
            self.estimator.reset()

    def stop(self) -> None:
        """Stop every robot until `clear`."""
        self.latch = np.full(self.batch, Reason.STOP)

    def clear(self) -> None:
        """Let stopped robots run again, from their next good step on."""
        self.latch = np.full(self.batch, Reason.NONE)
        self.bad_steps = np.zeros(self.batch, dtype=int)

    def step(self, time: float, obs: np.ndarray) -> Command:
        """Answer the observations made at `time`.

        Args:
            time: s, on any clock that moves forward.
            obs: `(*batch, obs_dim)` in the bundle's units and order.

        Returns:
            The commands, whatever came in.
        """
        forward, steady = self._advance(time)
        values, reason, detail = self._check(obs)
        if not forward:
            reason, detail = np.full(self.batch, Reason.TIME), ""
        good = reason == NONE
        action, health, stage, caught = self.rest, None, Reason.ESTIMATOR, ""
        try:
            if good.any():
                context = self._infer(values, good, steady)
                health = None if self.estimator is None else self.estimator.health()
                stage = Reason.POLICY
                action = np.asarray(self.bundle.act(values, context.z), dtype=np.float64).reshape(self.act_shape)
                self.context, reason = context.z, np.where(context.refused, CONTEXT, reason)
        except Exception as error:  # whatever an estimator or a policy raises ends in the safe command
            action, reason = self.rest, np.where(good, stage, reason)
            caught = f"{type(error).__name__}: {error}"
        reason = np.where(good & ~np.isfinite(action).all(-1), Reason.POLICY, reason)
        self._move_on(reason)
        self._bound(action, values, good)
        self.obs, self.good = values, good
        return Command(
            action=self.command.copy(),
            state=self.state,
            reason=np.where(self.latch == NONE, reason, self.latch),
            context=None if self.context is None else self.context.copy(),
            health=health,
            detail=detail,
            error=caught,
        )

    def _advance(self, time: float) -> tuple[bool, bool]:
        """Take in the time; return whether it went forward, and whether by one control period."""
        try:
            now = float(time)
        except (TypeError, ValueError, OverflowError):
            return False, False
        if not np.isfinite(now):
            return False, False
        # A clock that was set back is bad once; what counts from then on is that it moves again.
        last, self.time = self.time, now
        if last is None:
            return True, False
        return now > last, abs(now - last - self.control_dt) <= PERIOD_TOLERANCE * self.control_dt

    def _check(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        """Return finite observations, the last good one in the place of a bad one; what is wrong with each; where."""
        try:
            values = np.array(obs, dtype=np.float64)  # a copy: callers may fill the same buffer again
        except Exception as error:  # anything may stand where an array should
            return self.obs, np.full(self.batch, Reason.SHAPE), str(error)
        if values.shape != self.obs_shape:
            return self.obs, np.full(self.batch, Reason.SHAPE), f"its shape is {values.shape}, not {self.obs_shape}"
        faulty = faulty_terms(values, self.bounds)
        if not faulty.any():
            return values, np.full(self.batch, NONE), ""
        bad = np.asarray(faulty.any(-1))
        kind = np.where(np.isfinite(values).all(-1), Reason.LIMIT, Reason.NOT_FINITE)
        terms = np.flatnonzero(faulty.reshape(-1, len(self.names)).any(0))
        detail = ", ".join(self.names[term] for term in terms)
        return np.where(bad[..., None], self.obs, values), np.where(bad, kind, NONE), detail

    def _infer(self, obs: np.ndarray, good: np.ndarray, steady: bool) -> _Inferred:
        """Tell the estimator what the last command did, and ask it for the context."""
        if self.estimator is None or self.context is None:
            return _Inferred(self.context, np.zeros(self.batch, dtype=bool))
        if steady:
            self.estimator.update(self.obs, self.command, obs, self.good & good)
        candidate = self.bundle.act(obs, self.context) if self.estimator.needs_action else None
        z = np.asarray(self.estimator.context(obs, candidate), dtype=np.float64).reshape(self.context.shape)
        usable = np.asarray(((z >= self.context_low) & (z <= self.context_high)).all(-1))
        z = np.where(usable[..., None], z, self.nominal)
        return _Inferred(np.where(good[..., None], z, self.context), good & ~usable)

    def _move_on(self, reason: np.ndarray) -> None:
        """Move the state machine: a bad step holds, too many in a row stop."""
        bad = (reason != NONE) & (reason != CONTEXT)
        self.bad_steps = np.where(bad, self.bad_steps + 1, 0)
        too_long = (self.bad_steps >= self.max_hold) & (self.latch == NONE)
        self.latch = np.where(too_long, Reason.TOO_LONG, self.latch)
        self.state = np.where(self.latch != NONE, STOPPED, np.where(bad, HOLD, RUNNING))

    def _bound(self, action: np.ndarray, obs: np.ndarray, good: np.ndarray) -> None:
        """Set the command: the policy's for robots that run, the safe one for the others, within limits."""
        running = self.state == RUNNING
        if self.held_terms is not None:
            first = good & ~self.seen
            position = np.clip(obs[..., self.held_terms], self.low, self.high)
            self.rest = np.where((running | first)[..., None], position, self.rest)
            self.command = np.where(first[..., None], self.rest, self.command)
            self.seen = self.seen | good
        target = np.where(running[..., None], action, self.rest)
        self.command = limit_command(target, self.command, self.low, self.high, self.max_step)
