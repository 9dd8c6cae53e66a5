"""The controller: observation in, safe command out, at a fixed rate.

The same object runs one robot and, in validation, hundreds side by side: all state has the leading shape `batch`, `()`
for one robot. It reads no clock (time comes in), so that a recorded log replays to the same bits. It never raises in
the loop and never returns a command that is not finite or is beyond the limits: a fault becomes the safe command and a
reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.confidence import confidence as confidence_of
from deploy.limits import faulty_terms, limit_command, observation_bounds
from deploy.state_machine import IDLE, RUNNING, SOFT_START, STOPPED, State, StateMachine
from deploy.watchdog import seconds

if TYPE_CHECKING:
    from deploy.caution import Caution
    from deploy.context import ContextEstimator, Health
    from deploy.delay import DelayCompensator
    from deploy.spec import PriorSpec

__all__ = ["REASONS", "Command", "Controller", "Reason", "State"]

# Share of the control period by which an observation may be early or late and still teach the estimator.
PERIOD_TOLERANCE = 0.2


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
    SILENT = 10
    DOUBT = 11
    SLOWED = 12
    HANDED_OVER = 13


# Plain integers are faster to compare with.
NONE, CONTEXT, SLOWED = int(Reason.NONE), int(Reason.CONTEXT), int(Reason.SLOWED)

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
    Reason.SILENT: "there was no fresh observation",
    Reason.DOUBT: "the robot is too far from the demonstrations",
    Reason.SLOWED: "the robot is too far from the demonstrations, so its command was made smaller",
    Reason.HANDED_OVER: "the robot was too far from the demonstrations; it is yours until clear()",
}


@dataclass(frozen=True, eq=False)
class Command:
    """The answer to one observation; arrays with the leading shape `batch`.

    Attributes:
        action: `(*batch, act_dim)` in command units, finite and within limits.
        state: `State` as integers.
        reason: `Reason` as integers; CONTEXT and SLOWED do not keep a robot from running, every other one does.
        context: `(*batch, context_dim)` as the policy read it, or None where it reads none.
        health: of the context's estimate, or None where there is no estimator.
        delay: control periods that commands are late by, as the policy was asked, or None where that is not inferred.
        share: how much of the policy's command is given, `batch`; None where the bundle asks for the whole of it.
        confidence: `batch`, 1 next to the demonstrations and 0 far from them, or None where the bundle has no prior or
            the step was bad.
        detail: the observation terms at fault, or how the observation's shape is wrong.
        error: text of an exception of the estimator or the policy.
        sendable: `batch` bool; False where a robot under a position law was not yet seen well, so that no pose is
            known that it could hold. Such a command is not to be sent.
    """

    action: np.ndarray
    state: np.ndarray
    reason: np.ndarray
    context: np.ndarray | None
    health: Health | None
    sendable: np.ndarray
    delay: np.ndarray | None = None
    share: np.ndarray | None = None
    confidence: np.ndarray | None = None
    detail: str = ""
    error: str = ""

    @property
    def explanation(self) -> str:
        """Every reason that occurs, in words; empty where all is well."""
        texts = [REASONS[Reason(code)] for code in np.unique(self.reason) if code != Reason.NONE]
        notes = ", ".join(note for note in (self.detail, self.error) if note)
        return "; ".join(texts) + (f" ({notes})" if notes else "")


LowConfidence = Literal["run", "slow", "hold", "hand_over"]
"""What a controller does with a robot that is too far from the demonstrations."""


class _Inferred(NamedTuple):
    """The context to act on, `(*batch, context_dim)`, and where the estimator's own was refused, `batch`."""

    z: np.ndarray | None
    refused: np.ndarray


class Controller:
    """Runs a bundle.

    The safe command is 0, under a position law the pose in which the robot was last seen well while it ran or was
    idle. Idle and stopped robots get it; in a soft start the policy takes over evenly. A bad step leads back towards
    the safe command over `stop_time`, a good one onwards to the policy over `soft_start`, each from where the command
    stands: with both set, one bad step in a thousand is a dip and no fall.

    Args:
        bundle: the policy, its dynamics and limits.
        context: "inferred" by the bundle's estimator, or always the "nominal" one of the original environment; the
            delay of the loop is likewise inferred or taken to be none, and caution likewise shown or not.
        estimator: takes the place of the bundle's own estimator.
        batch: leading shape of all arrays; `()` is one robot.
        max_hold: bad steps in a row after which a robot is stopped until `clear`.
        soft_start: s in which the command goes from the safe one to the policy's, in control periods; 0: at once.
        stop_time: s in which it goes back; 0: at once, as fast as the rate limit lets it.
        autostart: whether to start at the first good step, also after `clear`; otherwise `start` does.
        low_confidence: what to do where the bundle's prior finds the robot too far from the demonstrations: "run" on,
            "slow" down (the command is the policy's and the safe one's mean, weighted by the confidence), "hold" as in
            a bad step, or "hand_over": stop at once, so that somebody else drives until `clear`.
        least_confidence: below which that is done, 0 to 1.

    Attributes:
        adapt: whether the policy gets the inferred context and delay; where not, it gets the nominal ones, while the
            estimators go on learning and reporting. Without effect where nothing is inferred.
        obeyed: whether the robot got the last command as it was given; where it did not, because a safety filter
            stands between, what the robot did tells nothing of its dynamics, and the estimator learns nothing.

    Raises:
        UserError: a setting makes no sense, or the bundle's estimator or its settings are not known.
    """

    def __init__(
        self,
        bundle: Bundle,
        context: Literal["inferred", "nominal"] = "inferred",
        estimator: ContextEstimator | None = None,
        batch: tuple[int, ...] = (),
        max_hold: int = 20,
        soft_start: float = 0.0,
        stop_time: float = 0.0,
        autostart: bool = True,
        low_confidence: LowConfidence = "run",
        least_confidence: float = 0.5,
    ) -> None:
        if low_confidence not in ("run", "slow", "hold", "hand_over"):
            raise UserError(f"there is no low_confidence '{low_confidence}'; choose run, slow, hold or hand_over.")
        if not 0 < least_confidence <= 1:
            raise UserError(f"least_confidence={least_confidence} is not above 0 and at most 1; 0.5 is half way.")
        self.prior = bundle.manifest.prior
        if self.prior is not None and bundle.predict_prior is None:
            self.prior = None  # a lone policy.onnx tells of a prior that it does not have with it
        if low_confidence != "run" and self.prior is None:
            raise UserError(f"the bundle has no prior that tells its confidence; leave {low_confidence} out.")
        if context not in ("inferred", "nominal"):
            raise UserError(f"there is no context '{context}'; choose inferred or nominal.")
        self.bundle, self.batch, self.adapt, self.obeyed = bundle, batch, True, True
        self.low_confidence, self.least_confidence = low_confidence, least_confidence
        self.handed_over = np.zeros(batch, dtype=bool)
        robot = bundle.manifest.robot
        self.control_dt, self.names = robot.control_dt, robot.observation_names
        self.machine = StateMachine(batch, robot.control_dt, soft_start, stop_time, max_hold, autostart)
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
        self.delay = self._own_delay() if context == "inferred" else None
        self.caution = self._own_caution() if context == "inferred" else None
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
            adapt=self.bundle.adapt,
            pushed=self.spec.pushed,
        )

    def _own_delay(self) -> DelayCompensator | None:
        from deploy.delay import DelayCompensator

        spec = self.bundle.manifest.delay
        if spec is None:
            return None
        return DelayCompensator(self.bundle.predict_change, self.act_shape[-1], spec, self.batch)

    def _own_caution(self) -> Caution | None:
        from deploy.caution import Caution

        spec = self.bundle.manifest.caution
        return None if spec is None else Caution(self.bundle.predict_change, spec, self.batch)

    @property
    def state(self) -> np.ndarray:
        """`batch`, `State` as integers."""
        return self.machine.state

    @property
    def at_rest(self) -> bool:
        """Whether the last command was the safe one, for every robot."""
        return bool((self.machine.weight == 0).all() and np.allclose(self.command, self.rest))

    def reset(self) -> None:
        """Start a new episode with nothing remembered; a robot that was stopped stays so until `clear`."""
        self.machine.reset()
        self.rest = np.clip(np.zeros(self.act_shape), self.low, self.high)
        self.command = self.policy = self.rest
        self.time: float | None = None
        self.obs = np.zeros(self.obs_shape)
        self.good = np.zeros(self.batch, dtype=bool)
        self.seen = np.full(self.batch, self.held_terms is None)
        self.moved = np.ones(self.batch, dtype=bool)
        self.context: np.ndarray | None = None
        if self.delay is not None:
            self.delay.reset(self.rest)
        self.reset_context()

    def reset_context(self) -> None:
        """Forget what was learned of the dynamics: context and delay are nominal until there is new evidence."""
        if self.spec is not None:
            self.context = np.broadcast_to(self.nominal, (*self.batch, self.spec.dim))
        if self.estimator is not None:
            self.estimator.reset()
        if self.delay is not None:
            self.delay.forget()
        if self.caution is not None:
            self.caution.reset()

    def start(self) -> None:
        """Start the robots that are idle, from their next good step on."""
        self.machine.start()

    def stop(self) -> None:
        """Stop every robot until `clear`."""
        self.handed_over = np.zeros(self.batch, dtype=bool)
        self.machine.stop()

    def clear(self) -> None:
        """Let stopped robots go to idle; with `autostart` they run again from their next good step on."""
        # In the meantime somebody may have lifted the robot or bent its legs.
        self.moved = self.moved | (self.machine.state == STOPPED)
        self.handed_over = np.zeros(self.batch, dtype=bool)
        self.machine.clear()

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
        if self.delay is not None and not (steady and self.obeyed):
            self.delay.interrupt()
        good = reason == NONE
        action, health, stage, caught = self.rest, None, Reason.ESTIMATOR, ""
        confidence = None
        try:
            if good.any():
                self._learn(values, good, steady)
                ahead = self._ahead(values)
                context = self._infer(ahead, good)
                health = None if self.estimator is None else self.estimator.health()
                stage = Reason.POLICY
                action = np.asarray(self.bundle.act(ahead, context.z), dtype=np.float64).reshape(self.act_shape)
                if self.caution is not None and self.adapt:
                    share = self.caution.share[..., None]
                    action = share * action + (1.0 - share) * self.rest
                self.context, reason = context.z, np.where(context.refused, CONTEXT, reason)
                if self.prior is not None:
                    confidence = self._confidence(values, self.prior)
                    action, reason = self._mind(confidence, action, reason, good)
        except Exception as error:  # whatever an estimator or a policy raises ends in the safe command
            action, reason = self.rest, np.where(good, stage, reason)
            caught = f"{type(error).__name__}: {error}"
        reason = np.where(good & ~np.isfinite(action).all(-1), Reason.POLICY, reason)
        return self._answer(action, values, good, reason, health, detail, caught, confidence)

    def hold(self) -> Command:
        """Answer a control period that brought no observation fit to use: a bad step for every robot."""
        nobody, reason = np.zeros(self.batch, dtype=bool), np.full(self.batch, Reason.SILENT)
        return self._answer(self.rest, self.obs, nobody, reason)

    def _answer(
        self,
        action: np.ndarray,
        obs: np.ndarray,
        good: np.ndarray,
        reason: np.ndarray,
        health: Health | None = None,
        detail: str = "",
        error: str = "",
        confidence: np.ndarray | None = None,
    ) -> Command:
        """Move the state machine, set the command and remember what the next step needs."""
        self.machine.step((reason == NONE) | (reason == CONTEXT) | (reason == SLOWED))
        state = self.machine.state
        self._bound(action, obs, good)
        if self.delay is not None:
            self.delay.record(self.command)
        # What a robot does that nobody drives, on its stand or in somebody's hands, tells nothing of its dynamics.
        self.obs, self.good = obs, good & (state != IDLE) & (state != STOPPED)
        latch = np.where(self.machine.held_too_long, Reason.TOO_LONG, Reason.STOP)
        latch = np.where(self.handed_over, Reason.HANDED_OVER, latch)
        return Command(
            action=self.command.copy(),
            state=state,
            reason=np.where(state == STOPPED, latch, reason),
            context=None if self.context is None else self.context.copy(),
            health=health,
            sendable=self.seen,
            delay=None if self.delay is None else self.delay.delay * self.adapt,
            share=None if self.caution is None else np.where(self.adapt, self.caution.share, 1.0),
            confidence=confidence,
            detail=detail,
            error=error,
        )

    def _advance(self, time: float) -> tuple[bool, bool]:
        """Take in the time; return whether it went forward, and whether by one control period."""
        now = seconds(time)
        if not math.isfinite(now):
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

    def _learn(self, obs: np.ndarray, good: np.ndarray, steady: bool) -> None:
        """Learn from what the last commands did to the robot."""
        if not (steady and self.obeyed):
            return
        valid, acting = self.good & good, self.command
        if self.delay is not None:
            self.delay.update(self.obs, obs, self._gains(), valid)
            acting = self.delay.acting
        if self.caution is not None:
            self.caution.update(self.obs, self._gains() * acting, obs, valid)
        if self.estimator is not None:
            self.estimator.update(self.obs, acting, obs, valid)

    def _ahead(self, obs: np.ndarray) -> np.ndarray:
        """Predict the observations at which the commands that answer `obs` will act."""
        return obs if self.delay is None or not self.adapt else self.delay.ahead(obs, self._gains())

    def _gains(self) -> np.ndarray | float:
        """How much of a command each actuator delivers, as far as it is known."""
        if self.spec is None or self.spec.kind != "actuator_gain" or self.context is None:
            return 1.0
        return self.context[..., len(self.spec.pushed) :]

    def _infer(self, obs: np.ndarray, good: np.ndarray) -> _Inferred:
        """Ask the estimator for the context to act on at `obs`."""
        if self.estimator is None or self.context is None:
            return _Inferred(self.context, np.zeros(self.batch, dtype=bool))
        candidate = self.bundle.act(obs, self.context) if self.estimator.needs_action else None
        z = np.asarray(self.estimator.context(obs, candidate), dtype=np.float64).reshape(self.context.shape)
        if not self.adapt:
            return _Inferred(np.broadcast_to(self.nominal, z.shape), np.zeros(self.batch, dtype=bool))
        usable = np.asarray(((z >= self.context_low) & (z <= self.context_high)).all(-1))
        z = np.where(usable[..., None], z, self.nominal)
        return _Inferred(np.where(good[..., None], z, self.context), good & ~usable)

    def _confidence(self, obs: np.ndarray, spec: PriorSpec) -> np.ndarray:
        """Return how near the demonstrations are, `batch`."""
        predict = self.bundle.predict_prior
        assert predict is not None, "a bundle whose description has a prior has its graph"
        return confidence_of(predict(obs)[1], spec)

    def _mind(
        self, confidence: np.ndarray, action: np.ndarray, reason: np.ndarray, good: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return command and reason of robots that may be too far from the demonstrations."""
        doubtful = good & (confidence < self.least_confidence)
        if self.low_confidence == "run" or not doubtful.any():
            return action, reason
        if self.low_confidence == "slow":
            share = np.where(doubtful, confidence / self.least_confidence, 1.0)[..., None]
            return share * action + (1.0 - share) * self.rest, np.where(doubtful, SLOWED, reason)
        if self.low_confidence == "hand_over":
            taken = doubtful & ((self.machine.state == RUNNING) | (self.machine.state == SOFT_START))
            self.handed_over = self.handed_over | taken
            self.machine.stop(taken)
        return action, np.where(doubtful, Reason.DOUBT, reason)

    def _bound(self, action: np.ndarray, obs: np.ndarray, good: np.ndarray) -> None:
        """Set the command: the policy's for robots that run, the safe one for the others, within limits."""
        state = self.machine.state
        if self.held_terms is not None:
            self._take_pose(np.clip(obs[..., self.held_terms], self.low, self.high), good)
        if self.machine.ramps:
            # Where the policy cannot be asked or is not to be, its last action fades out.
            asked = (state == RUNNING) | (state == SOFT_START)
            self.policy = np.where(asked[..., None], np.clip(action, self.low, self.high), self.policy)
            weight = self.machine.weight[..., None]
            target = weight * self.policy + (1 - weight) * self.rest
        else:
            target = np.where((state == RUNNING)[..., None], action, self.rest)
        self.command = limit_command(target, self.command, self.low, self.high, self.max_step)

    def _take_pose(self, pose: np.ndarray, good: np.ndarray) -> None:
        """Take the pose `(*batch, act_dim)` as the safe command where the robot may have left the one before."""
        state = self.machine.state
        # A soft start blends from the pose at its beginning: a pose that followed the robot would let it sag.
        left = (state == RUNNING) | (state == IDLE) | (good & self.moved)
        self.rest = np.where(left[..., None], pose, self.rest)
        # The rate limit counts from the pose where there was no command before.
        self.command = np.where((good & ~self.seen)[..., None], self.rest, self.command)
        self.seen, self.moved = self.seen | good, self.moved & ~good
