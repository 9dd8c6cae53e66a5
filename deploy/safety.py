"""The filter between a policy and the robot, in a process of its own: it trusts nothing that it is sent.

Commands pass only while they are fresh, finite, of the robot's size and range, and from one source; otherwise the robot
gets the safe command. A command that is wrong is refused and never repaired, because what is behind it is not known;
only its change is limited to the robot's rate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from adapters.errors import UserError
from deploy.limits import limit_command
from deploy.spec import RobotDescription
from deploy.watchdog import Verdict, Watchdog, seconds

# Share of the range by which a command may be beyond it: single precision on the way rounds it that far.
ROUNDING = 1e-6
# Control periods' worth of change that may come at once: one is due, one makes up for a command that came late.
BURST = 2


class Output(NamedTuple):
    """What the robot is to get.

    Attributes:
        command: `(act_dim,)`, finite, within range and rate; None where there is nothing safe to send: under a position
            law before a pose or a command is known.
        passing: whether it comes from the policy.
        reason: why not.
    """

    command: np.ndarray | None
    passing: bool
    reason: Verdict


class SafetyFilter:
    """Passes on the commands of one source while they are good.

    The safe command is 0, under a position law the pose that was last observed while commands passed, without
    observations the last command that passed. A refused command of the source in command, for what is in it, ends the
    passing at once; one for its stamp does not, as it may only have been late.

    Args:
        robot: size, range, law and rate limit of commands.
        timeout: s after which a command is too old to pass.
        future_tolerance: s by which a stamp may be ahead of this clock.

    Attributes:
        counts: how many commands got each verdict.
        source: the source in command, or the last that was.

    Raises:
        UserError: the timeout is shorter than the control period, or a time makes no sense.
    """

    def __init__(self, robot: RobotDescription, timeout: float, future_tolerance: float = 0.01) -> None:
        if timeout < robot.control_dt:
            raise UserError(f"timeout={timeout} s is shorter than the control period of {robot.control_dt} s.")
        self.low, self.high = np.array(robot.action.low), np.array(robot.action.high)
        self._slack = ROUNDING * np.maximum(np.abs(self.low), np.abs(self.high))
        self._control_dt, self._rate = robot.control_dt, robot.limits.rate
        self._watchdog = Watchdog(timeout, future_tolerance)
        self.counts: Counter[Verdict] = Counter()
        self.source: Hashable = None
        self._stopped = self._passing = self._passed = self._observed = False
        self._fault = Verdict.MISSING
        self._by_position = robot.action.law == "position"
        self._rest = None if self._by_position else np.clip(np.zeros(robot.act_dim), self.low, self.high)
        self._wanted = self._sent = self._rest
        self._time: float | None = None
        self._credit = BURST * self._control_dt

    def accept(self, now: float, stamp: float, command: Any, source: Hashable = None) -> Verdict:
        """Take in a command.

        Args:
            now: s, this process's clock.
            stamp: s, when the sender made the command, on the same clock.
            command: `(act_dim,)` in command units.
            source: whose it is, where there may be several: the first keeps the command while it is fresh.

        Returns:
            GOOD, or why it was refused.
        """
        verdict = self._judge(now, stamp, command, source)
        self.counts[verdict] += 1
        return verdict

    def _judge(self, now: float, stamp: float, command: Any, source: Hashable) -> Verdict:
        if source != self.source and not self._watchdog.expired(now):
            return Verdict.SOURCE
        values, verdict = self._read(command)
        if verdict == Verdict.GOOD and ((values < self.low - self._slack) | (values > self.high + self._slack)).any():
            verdict = Verdict.RANGE
        if verdict != Verdict.GOOD:
            self._fault = verdict
            return verdict
        self.source = source
        verdict = self._watchdog.check(now, stamp)
        if verdict == Verdict.GOOD:
            self._wanted, self._fault = values, verdict
        return verdict

    def _read(self, values: Any) -> tuple[np.ndarray, Verdict]:
        """Return the numbers of a message, and what is wrong with them."""
        try:
            array = np.array(values, dtype=np.float64)
        except Exception:  # anything may stand where an array should
            return self.low, Verdict.SIZE
        if array.shape != self.low.shape:
            return self.low, Verdict.SIZE
        return array, Verdict.GOOD if np.isfinite(array).all() else Verdict.NOT_FINITE

    def observe(self, pose: Any) -> None:
        """Take in the observed positions `(act_dim,)` of the commanded joints; read under a position law alone.

        Once a command has passed, the pose is kept up only while commands pass: a safe command that followed the robot
        would let it sag.
        """
        values, verdict = self._read(pose)
        if self._by_position and verdict == Verdict.GOOD and (self._passing or not self._passed):
            self._rest, self._observed = np.clip(values, self.low, self.high), True

    def stop(self) -> None:
        """Let nothing pass until `clear`."""
        self._stopped = True

    def clear(self) -> None:
        """Let commands pass again."""
        self._stopped = False

    def output(self, now: float) -> Output:
        """Return what to send to the robot at `now`; to be asked at least once in a control period."""
        reason = self._reason(now)
        self._passing = reason == Verdict.GOOD
        target = self._wanted if self._passing else self._rest
        if target is None:
            return Output(None, False, reason)
        self._sent = self._limit(target, now)
        if self._passing:
            self._passed = True
            if self._by_position and not self._observed:
                self._rest = self._sent
        return Output(self._sent.copy(), self._passing, reason)

    def _reason(self, now: float) -> Verdict:
        if self._stopped:
            return Verdict.STOPPED
        if self._fault == Verdict.GOOD and self._watchdog.expired(now):
            return Verdict.STALE
        return self._fault

    def _limit(self, target: np.ndarray, now: float) -> np.ndarray:
        """Limit the change since the last output; over T s it adds up to at most rate * (T + BURST control periods)."""
        previous = next(known for known in (self._sent, self._rest, target) if known is not None)
        if self._rate is None:
            return limit_command(target, previous, self.low, self.high, None)
        time = seconds(now)
        if math.isfinite(time):
            elapsed = 0.0 if self._time is None else max(time - self._time, 0.0)
            self._credit = min(self._credit + elapsed, BURST * self._control_dt)
            self._time = time
        command = limit_command(target, previous, self.low, self.high, self._rate * self._credit)
        self._credit = max(self._credit - float(np.abs(command - previous).max()) / self._rate, 0.0)
        return command
