"""The filter between a policy and the robot, in a process of its own: it trusts nothing that it is sent.

Commands pass only while they are fresh, finite, of the robot's size and range, and from one source; otherwise the robot
gets the safe command. A command that is wrong is refused and never repaired, because what is behind it is not known;
only its change is limited to the robot's rate, and after the safe command its share in what is sent rises evenly.
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
# s of silence after which another source may take the command: longer than a busy machine keeps a process waiting.
HANDOVER = 1.0


class Output(NamedTuple):
    """What the robot is to get.

    Attributes:
        command: `(act_dim,)`, finite, within range and rate; None where there is nothing safe to send: under a position
            law before a pose is known.
        passing: whether it comes from the policy.
        reason: why not.
        share: of the policy's command in it, 0 to 1; below 1 where it does not pass, or passes in a soft start.
    """

    command: np.ndarray | None
    passing: bool
    reason: Verdict
    share: float


class SafetyFilter:
    """Passes on the commands of one source while they are good.

    The safe command is 0, under a position law the pose that was last observed while commands passed; before one was
    observed nothing passes, for where the robot stands is not known. A refused command of the source in command, for
    what is in it, ends the passing at once; one for its stamp does not, as it may only have been late.

    Args:
        robot: size, range, law and rate limit of commands.
        timeout: s after which a command is too old to pass.
        soft_start: s in which commands that pass again take over from the safe one; 0: at once.
        future_tolerance: s by which a stamp may be ahead of this clock.

    Attributes:
        counts: how many commands got each verdict.
        source: the source in command, or the last that was.

    Raises:
        UserError: the timeout is shorter than the control period, or a time makes no sense.
    """

    def __init__(
        self, robot: RobotDescription, timeout: float, soft_start: float = 0.0, future_tolerance: float = 0.01
    ) -> None:
        if timeout < robot.control_dt:
            raise UserError(
                f"timeout={timeout} s is shorter than the control period; give {robot.control_dt} s or more."
            )
        if not (math.isfinite(soft_start) and soft_start >= 0):
            raise UserError(f"soft_start={soft_start} is no duration; give seconds, 0 for at once.")
        self.low, self.high = np.array(robot.action.low), np.array(robot.action.high)
        self._slack = ROUNDING * np.maximum(np.abs(self.low), np.abs(self.high))
        self._control_dt, self._rate, self._soft_start = robot.control_dt, robot.limits.rate, soft_start
        self._watchdog, self._handover = Watchdog(timeout, future_tolerance), max(timeout, HANDOVER)
        self.counts: Counter[Verdict] = Counter()
        self.source: Hashable = None
        self._stopped = self._passing = self._passed = self._moved = False
        self._fault = Verdict.MISSING
        self._by_position = robot.action.law == "position"
        self._rest = None if self._by_position else np.clip(np.zeros(robot.act_dim), self.low, self.high)
        self._wanted = self._sent = self._rest
        self._heard = -math.inf
        self._time: float | None = None
        self._credit, self._share = BURST * self._control_dt, 0.0

    def accept(self, now: float, stamp: float, command: Any, source: Hashable = None) -> Verdict:
        """Take in a command.

        Args:
            now: s, this process's clock.
            stamp: s, when the sender made the command, on the same clock.
            command: `(act_dim,)` in command units.
            source: whose it is, where there may be several: the first keeps the command until it has been silent for
                `HANDOVER` s, or for the timeout where that is longer.

        Returns:
            GOOD, or why it was refused.
        """
        verdict = self._judge(now, stamp, command, source)
        self.counts[verdict] += 1
        return verdict

    def _judge(self, now: float, stamp: float, command: Any, source: Hashable) -> Verdict:
        # From both sides, so that a clock that was set back keeps nobody out for as long as it was set back by.
        if source != self.source and 0 <= seconds(now) - self._heard < self._handover:
            return Verdict.SOURCE
        values, verdict = self._read(command)
        if verdict == Verdict.GOOD and ((values < self.low - self._slack) | (values > self.high + self._slack)).any():
            verdict = Verdict.RANGE
        if verdict != Verdict.GOOD:
            self._fault = verdict
            return verdict
        verdict = self._watchdog.check(now, stamp)
        if verdict == Verdict.GOOD:
            self.source, self._heard = source, seconds(now)
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
        would let it sag. After `clear` it is taken once, as somebody may have moved the robot; a rate limit goes on
        from the command that the robot has.
        """
        values, verdict = self._read(pose)
        if self._by_position and verdict == Verdict.GOOD and (self._passing or not self._passed or self._moved):
            self._rest, self._moved = np.clip(values, self.low, self.high), False

    def stop(self) -> None:
        """Let nothing pass until `clear`."""
        self._stopped = True

    def clear(self) -> None:
        """Let commands pass again."""
        self._moved = self._moved or self._stopped
        self._stopped = False

    def output(self, now: float) -> Output:
        """Return what to send to the robot at `now`; to be asked at least once in a control period."""
        reason, elapsed = self._reason(now), self._elapse(now)
        self._passing = reason == Verdict.GOOD
        self._share = self._risen(elapsed) if self._passing else 0.0
        target = self._target()
        if target is None:
            return Output(None, False, reason, 0.0)
        self._sent = self._limit(target, elapsed)
        self._passed = self._passed or self._passing
        return Output(self._sent.copy(), self._passing, reason, self._share)

    def _elapse(self, now: float) -> float:
        """Return the time in s since the last output; a clock that was set back has not moved."""
        time = seconds(now)
        if not math.isfinite(time):
            return 0.0
        elapsed = 0.0 if self._time is None else max(time - self._time, 0.0)
        self._time = time
        return elapsed

    def _risen(self, elapsed: float) -> float:
        """Return the share of the command's after so many s; a clock that jumps is worth no more than a late call."""
        if self._soft_start == 0:
            return 1.0
        return min(self._share + min(elapsed, BURST * self._control_dt) / self._soft_start, 1.0)

    def _target(self) -> np.ndarray | None:
        """Return what the robot should get, whatever its rate."""
        if not self._passing or self._wanted is None or self._rest is None:
            return self._rest
        # Written so that a share of 1 leaves the command as it is, to the bit.
        return self._wanted if self._share == 1 else self._rest + self._share * (self._wanted - self._rest)

    def _reason(self, now: float) -> Verdict:
        if self._stopped:
            return Verdict.STOPPED
        if self._fault == Verdict.GOOD and self._watchdog.expired(now):
            return Verdict.STALE
        if self._fault == Verdict.GOOD and self._rest is None:
            return Verdict.POSE
        return self._fault

    def _limit(self, target: np.ndarray, elapsed: float) -> np.ndarray:
        """Limit the change since the last output; over T s it adds up to at most rate * (T + BURST control periods)."""
        previous = next(known for known in (self._sent, self._rest, target) if known is not None)
        if self._rate is None:
            return limit_command(target, previous, self.low, self.high, None)
        self._credit = min(self._credit + elapsed, BURST * self._control_dt)
        command = limit_command(target, previous, self.low, self.high, self._rate * self._credit)
        self._credit = max(self._credit - float(np.abs(command - previous).max()) / self._rate, 0.0)
        return command
