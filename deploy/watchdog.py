"""Judges the stamps of messages: is this one new, and is what came last still fresh?

It is pure: the receiver's time comes in with every call. A message's age is the receiver's time less the sender's
stamp, so both have to read the same clock: one machine, simulated time, or clocks kept together by PTP or NTP. Where
they do not, give the time of arrival as the stamp; the age is then the silence, and sequence numbers tell repeated
messages from new ones.
"""

from __future__ import annotations

import math
from collections import Counter
from enum import IntEnum
from typing import Any

from adapters.errors import UserError


class Verdict(IntEnum):
    """What a receiver finds about a message.

    Up to STALE it is what the stamp says, which is all that a watchdog judges; the others are `deploy.safety`'s.
    """

    GOOD = 0
    NO_TIME = 1
    CLOCK_BACK = 2
    CLOCK_AHEAD = 3
    FUTURE = 4
    REPEATED = 5
    REORDERED = 6
    STALE = 7
    MISSING = 8
    SOURCE = 9
    SIZE = 10
    NOT_FINITE = 11
    RANGE = 12
    STOPPED = 13
    POSE = 14


VERDICTS = {
    Verdict.GOOD: "",
    Verdict.NO_TIME: "the stamp or the receiver's time is not a finite number",
    Verdict.CLOCK_BACK: "the receiver's clock was set back",
    Verdict.CLOCK_AHEAD: "the receiver's clock jumped ahead, or nothing came for as long as that",
    Verdict.FUTURE: "the stamp lies in the future",
    Verdict.REPEATED: "the message came before",
    Verdict.REORDERED: "a later message came before this one",
    Verdict.STALE: "the latest good message is too old",
    Verdict.MISSING: "no good message has come yet",
    Verdict.SOURCE: "another source is in command",
    Verdict.SIZE: "the command is not an array of the robot's size",
    Verdict.NOT_FINITE: "the command is not finite",
    Verdict.RANGE: "the command is out of the robot's range",
    Verdict.STOPPED: "stopped on request until clear()",
    Verdict.POSE: "the robot's pose, from which it begins under a position law, has not been seen",
}


def seconds(value: Any) -> float:
    """Return a time in s as a float, NaN where it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


class Watchdog:
    """Judges one stream of messages.

    A clock that jumps makes one message bad; what counts from then on is the new time.

    Args:
        stale_timeout: s; an older message is stale.
        future_tolerance: s by which a stamp may be ahead of the receiver's clock.
        jump: s; a clock that moves on by more than this, and than stale_timeout, between two messages has jumped.

    Attributes:
        counts: how many messages got each verdict.

    Raises:
        UserError: a time makes no sense.
    """

    def __init__(self, stale_timeout: float, future_tolerance: float = 0.01, jump: float = 1.0) -> None:
        for name, value in (("stale_timeout", stale_timeout), ("jump", jump)):
            if not value > 0:
                raise UserError(f"{name}={value} is no time to wait; give seconds above 0.")
        if not future_tolerance >= 0:
            raise UserError(f"future_tolerance={future_tolerance} is no tolerance; give seconds, 0 for none.")
        self.stale_timeout, self.future_tolerance = stale_timeout, future_tolerance
        self.jump = max(jump, stale_timeout)
        self.counts: Counter[Verdict] = Counter()
        self._now: float | None = None
        self._stamp: float | None = None
        self._sequence: int | None = None

    def check(self, now: float, stamp: float, sequence: int | None = None) -> Verdict:
        """Judge a message.

        Args:
            now: s, the receiver's clock.
            stamp: s, when the sender made the message.
            sequence: the sender's count of messages, where it has one; a count that starts again is bad once.
        """
        verdict = self._judge(seconds(now), seconds(stamp), sequence)
        self.counts[verdict] += 1
        return verdict

    def _judge(self, now: float, stamp: float, sequence: int | None) -> Verdict:
        if not (math.isfinite(now) and math.isfinite(stamp)):
            return Verdict.NO_TIME
        last, self._now = self._now, now
        if last is not None and not last <= now <= last + self.jump:
            # Stamps of the old time say nothing about those of the new.
            self._stamp = self._sequence = None
            return Verdict.CLOCK_BACK if now < last else Verdict.CLOCK_AHEAD
        if stamp > now + self.future_tolerance:
            return Verdict.FUTURE
        if verdict := self._repeated(stamp, sequence):
            return verdict
        if now - stamp > self.stale_timeout:
            return Verdict.STALE
        self._stamp, self._sequence = stamp, sequence
        return Verdict.GOOD

    def _repeated(self, stamp: float, sequence: int | None) -> Verdict | None:
        """Compare a message with the latest good one."""
        if stamp == self._stamp or (sequence is not None and sequence == self._sequence):
            return Verdict.REPEATED
        if self._stamp is not None and stamp < self._stamp:
            return Verdict.REORDERED
        if sequence is not None and self._sequence is not None and sequence < self._sequence:
            self._sequence = sequence
            return Verdict.REORDERED
        return None

    def expired(self, now: float) -> bool:
        """Whether the latest good message is too old at `now`; so it is where there was none or the clock went back."""
        if self._stamp is None:
            return True
        # Written so that a NaN is expired.
        return not -self.future_tolerance <= seconds(now) - self._stamp <= self.stale_timeout
