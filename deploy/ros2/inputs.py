"""From single messages to observations: which messages belong together, and whether they are fit to be used.

It is pure: messages and the receiver's time come in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.ros2.fields import CMD_VEL, MessageError, ObservationReader, nanoseconds
from deploy.watchdog import VERDICTS, Verdict, Watchdog

# Share of the control period by which a set may be early and still begin the next control step.
EARLY = 0.2

# s for which a command input holds, as it does in ros2_controllers.
CMD_VEL_TIMEOUT = 0.5


@dataclass(frozen=True, eq=False)
class Observed:
    """What one control step is made of.

    Attributes:
        time: s, the stamp.
        values: `(obs_dim,)`, None where the messages could not be read.
        fault: why not.
    """

    time: float
    values: np.ndarray | None
    fault: str = ""


class Inputs:
    """Puts messages of one stamp together to a set, and takes one good set in a control period.

    A set is used once. Where the stamps of a set differ, the oldest counts.

    Args:
        reader: reads the sets.
        control_dt: s; sets that come more often are left out.
        stale_timeout: s after which a set is stale.
        sync_tolerance: s by which the stamps of a set may differ.
        simulated: whether the robot's time is simulated. It is then never behind a stamp, as no observation comes from
            the future; otherwise a stamp that is ahead of the clock is a fault.
        complain: called with each fault, in words.

    Attributes:
        topics: those that messages are needed from.
        faults: how often what was found wrong, in words.
        skipped: how many sets were left out because they came too early.
    """

    def __init__(
        self,
        reader: ObservationReader,
        control_dt: float,
        stale_timeout: float,
        sync_tolerance: float = 0.0,
        simulated: bool = False,
        complain: Callable[[str], object] = lambda fault: None,
    ) -> None:
        self.topics = reader.topics
        self.faults: Counter[str] = Counter()
        self.skipped = 0
        self._reader, self._control_dt, self._simulated = reader, control_dt, simulated
        self._tolerance = round(sync_tolerance * 1e9)
        self._stale_timeout, self._complain = stale_timeout, complain
        self.forget()

    def forget(self) -> None:
        """Forget all messages, so that another episode can begin."""
        self._waiting: dict[str, Any] = {}
        self._command_input: tuple[float, Any] | None = None
        self._due: float | None = None
        self._clock = self._latest = -math.inf
        self._reader.reset()
        self._watchdog = Watchdog(self._stale_timeout)

    def silent(self, now: float) -> bool:
        """Whether there was a good set, and since then none for longer than the timeout."""
        return self._due is not None and self._watchdog.expired(self._time(now))

    def receive(self, topic: str, message: Any, now: float) -> Observed | None:
        """Take in a message.

        Args:
            topic: one of `topics`.
            message: what came.
            now: s, on the clock of the stamps.

        Returns:
            What the control step that is due now is made of, None where none is.
        """
        if topic == CMD_VEL:
            self._command_input = self._time(now), message
            return None
        self._waiting[topic] = message
        stamps = [nanoseconds(waiting.header.stamp) for waiting in self._waiting.values()]
        if self.lacking or max(stamps) - min(stamps) > self._tolerance:
            return None
        messages, self._waiting = self._waiting, {}
        return self._take(messages, min(stamps) * 1e-9, now)

    @property
    def lacking(self) -> list[str]:
        """The topics of which there is no message that waits for the others."""
        return [topic for topic in self.topics if topic not in self._waiting and topic != CMD_VEL]

    def _time(self, now: float) -> float:
        """The receiver's time."""
        if not self._simulated:
            return now
        if now < self._clock:
            self._latest = now  # the simulator has set its time back
        self._clock, self._latest = now, max(now, self._latest)
        return self._latest

    def _take(self, messages: dict[str, Any], time: float, now: float) -> Observed | None:
        if self._simulated:
            now = self._latest = max(self._time(now), time)
        verdict = self._watchdog.check(now, time)
        if verdict != Verdict.GOOD:
            self._count(VERDICTS[verdict], f"observations are refused: {VERDICTS[verdict]}")
            return None
        if not self._is_due(time):
            self.skipped += 1
            return None
        if self._command_input is not None and now < self._command_input[0]:
            self._command_input = None  # the clock was set back: how old it is cannot be known
        if self._command_input is not None and now - self._command_input[0] <= CMD_VEL_TIMEOUT:
            messages[CMD_VEL] = self._command_input[1]
        return self._read(messages, time)

    def _read(self, messages: Mapping[str, Any], time: float) -> Observed:
        try:
            return Observed(time, self._reader.read(messages))
        except MessageError as error:
            self._count(error.fault.value, str(error))
            return Observed(time, None, str(error))

    def _count(self, fault: str, text: str) -> None:
        self.faults[fault] += 1
        self._complain(text)

    def _is_due(self, time: float) -> bool:
        """Whether a set begins a control step; steps keep to the period on average and go on after a gap."""
        period, due = self._control_dt, self._due
        if due is None or time < due - 1.5 * period:
            due = time  # the first set, or one of a clock that was set back
        if time < due - EARLY * period:
            return False
        # A late set moves those after it only as far as it has to, so that none comes right behind it.
        self._due = max(due + period, time + 0.5 * period)
        return True
