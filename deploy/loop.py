"""The loop around a controller: fixed-rate timing with its statistics, and the closed loop over the Robot interface.

This is the only place of the runtime that reads a clock.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from adapters.errors import UserError
from adapters.robots.robot import Robot
from deploy.controller import Command, Controller
from deploy.watchdog import Watchdog

# Bins of a duration's histogram: their edges grow by 4.7 %, from 0.1 microseconds over 9 decades to 100 s.
FINEST, PER_DECADE, DECADES = 1e-7, 50, 9


class Durations:
    """Quantiles of durations in constant memory, at most 4.7 % above the true ones.

    Attributes:
        count: how many there were.
        longest: s.
    """

    def __init__(self) -> None:
        self._bins = [0] * (PER_DECADE * DECADES + 1)
        self.count, self.longest = 0, 0.0

    def add(self, duration: float) -> None:
        """Take in a duration in s."""
        place = math.ceil(PER_DECADE * math.log10(max(duration, FINEST) / FINEST))
        self._bins[min(place, len(self._bins) - 1)] += 1
        self.count += 1
        self.longest = max(self.longest, duration)

    def quantile(self, share: float) -> float:
        """Return the duration in s that a share of all, 0 to 1, do not exceed; 0 where there were none."""
        below = 0
        for place, count in enumerate(self._bins):
            below += count
            if count and below >= share * self.count:
                return min(FINEST * 10 ** (place / PER_DECADE), self.longest)
        return self.longest

    def as_dict(self) -> dict[str, float]:
        """Return p50, p99 and max in s."""
        return {"p50": self.quantile(0.5), "p99": self.quantile(0.99), "max": self.longest}


class LoopStatistics:
    """How well a loop kept its rate, in constant memory.

    Attributes:
        period: s, what it should be.
        step: from a wake-up to the end of its work.
        lateness: from the time for which a wake-up was due to the wake-up.
        overruns: steps that did not end within their period.
        skipped: periods in which for that reason no step began.
    """

    def __init__(self, period: float) -> None:
        self.period, self.step, self.lateness = period, Durations(), Durations()
        self.overruns = self.skipped = 0

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, times in s."""
        return {
            "period": self.period,
            "steps": self.step.count,
            "overruns": self.overruns,
            "skipped": self.skipped,
            "step": self.step.as_dict(),
            "lateness": self.lateness.as_dict(),
        }

    def describe(self) -> str:
        """Return one line for a person."""
        step, late = (
            " / ".join(f"{1e3 * value:.2f}" for value in durations.as_dict().values())
            for durations in (self.step, self.lateness)
        )
        return (
            f"{self.step.count} steps of {1e3 * self.period:g} ms, {self.overruns} overruns, {self.skipped} periods "
            f"skipped; p50 / p99 / max in ms: step {step}, wake-up late by {late}"
        )


class FixedRateLoop:
    """Keeps a loop at a fixed rate: do the work of a period, then `wait` for the next.

    Periods begin at fixed times from the first on, so that the rate does not drift. Work that takes longer than its
    period costs the periods that it runs into; the next step begins with a period, never at once, so that the robot
    does not get a burst of commands.

    Args:
        period: s.
        clock: time in s that never goes back.
        sleep: waits for s.

    Attributes:
        statistics: how well the rate is kept.
    """

    def __init__(
        self, period: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], Any] = time.sleep
    ) -> None:
        self.period, self.statistics = period, LoopStatistics(period)
        self._clock, self._sleep = clock, sleep
        self.restart()

    def restart(self) -> None:
        """Let the first period begin now."""
        self._start = self._woke = self._clock()
        self._periods = 0

    def wait(self) -> None:
        """End the work of a period and sleep until the next begins."""
        now = self._clock()
        self.statistics.step.add(now - self._woke)
        self._periods += 1
        late = now - self._due
        if late > 0:
            skipped = math.ceil(late / self.period)
            self.statistics.overruns += 1
            self.statistics.skipped += skipped
            self._periods += skipped
        self._sleep(max(self._due - now, 0.0))
        self._woke = self._clock()
        self.statistics.lateness.add(max(self._woke - self._due, 0.0))

    @property
    def _due(self) -> float:
        """When the period begins that is waited for."""
        return self._start + self._periods * self.period


@dataclass(frozen=True, eq=False)
class Outcome:
    """What happened.

    Attributes:
        steps: control periods that got a command, with `dry_run` those that would have.
        last: the last command of them.
        faults: how many steps each fault took, in words.
        statistics: how well the rate was kept, None where it was the robot that set it.
    """

    steps: int
    last: Command
    faults: dict[str, int]
    statistics: LoopStatistics | None


def drive(
    robot: Robot,
    controller: Controller,
    steps: int,
    move: Callable[[int], Any] = lambda completed: None,
    *,
    realtime: bool = False,
    stale_timeout: float | None = None,
    dry_run: bool = False,
    settle: bool = True,
) -> Outcome:
    """Close the loop for `steps` control periods, or until the robot has nothing more to say.

    At the end, and also where an exception or Ctrl-C ends the loop, the robot is brought to the safe command in the
    controller's stop time, and the controller stays stopped until `clear`.

    Args:
        robot: what is driven; it keeps the time that the controller reads.
        controller: for one robot.
        steps: control periods.
        move: called with the number of commands so far.
        realtime: whether to begin a step at every control period; otherwise as soon as the robot can be observed.
        stale_timeout: s for which a robot may say nothing new: so long its last command stands, then the controller
            holds. None: a robot that says nothing new has come to its end, as a simulated one does.
        dry_run: compute everything and send nothing. What the estimator learns is then of no use.
        settle: whether to bring the robot to the safe command; one in simulated time stands still without.

    Raises:
        UserError: the robot never gave a fresh observation.
    """
    pace, faults = FixedRateLoop(controller.control_dt), Counter[str]()
    last, done = None, 0

    def send(command: Command) -> None:
        if command.sendable and not dry_run:
            robot.command(command.action)

    try:
        for command in _answers(robot, controller, stale_timeout):
            if command is not None:
                send(command)
                last, done = command, done + 1
                if command.explanation:
                    faults[command.explanation] += 1
                move(done)
            if realtime:
                pace.wait()
            if done == steps:
                break
    finally:
        if settle and done and not dry_run:
            _settle(controller, send)
    if last is None:
        raise UserError("the robot gave no observation; check that it is there and switched on.")
    return Outcome(done, last, dict(faults), pace.statistics if realtime else None)


def _answers(robot: Robot, controller: Controller, stale_timeout: float | None) -> Iterator[Command | None]:
    """Answer the robot once in a control period until it has come to its end; None while it has not yet spoken."""
    # Robots keep their own time, so what is watched is when observations arrive; this clock does not jump.
    watchdog = None if stale_timeout is None else Watchdog(stale_timeout, jump=math.inf)
    last, start = None, time.monotonic()
    if watchdog is not None:
        watchdog.check(start, start)
    while True:
        observation, now = robot.observe(), time.monotonic()
        if observation.fresh:
            last = controller.step(observation.time, observation.values)
            if watchdog is not None:
                watchdog.check(now, now)
        elif watchdog is None or (last is None and watchdog.expired(now)):
            return
        elif watchdog.expired(now):
            last = controller.hold()
        yield last


def _settle(controller: Controller, send: Callable[[Command], None]) -> None:
    """Bring the robot to the safe command."""
    controller.stop()
    pace = FixedRateLoop(controller.control_dt)
    while True:
        send(controller.hold())
        if controller.at_rest:
            return
        pace.wait()
