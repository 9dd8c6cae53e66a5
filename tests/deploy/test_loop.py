"""Timing of the loop, on a clock of its own and on the real one, and the loop over the Robot interface."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from leg import DT, OBS, stand_in

from adapters.errors import UserError
from adapters.robots.robot import Observation
from deploy.controller import Controller, State
from deploy.loop import Durations, FixedRateLoop, drive

GOOD = np.full(OBS, 0.1)


class Clock:
    """Time that passes only by sleep and work; sleep is too long by `lateness`."""

    def __init__(self, lateness: float = 0.0) -> None:
        self.now, self.lateness = 100.0, lateness
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, duration: float) -> None:
        self.slept.append(duration)
        self.now += duration + self.lateness

    def loop(self) -> FixedRateLoop:
        """A loop of 0.25 s."""
        return FixedRateLoop(0.25, clock=self, sleep=self.sleep)


def test_loop_sleeps_to_absolute_deadlines() -> None:
    clock = Clock(lateness=0.0625)
    loop, woke = clock.loop(), []
    for _ in range(3):
        clock.now += 0.125
        loop.wait()
        woke.append(clock.now)
    # Always 0.0625 s late and never later: what is lost in one period is not lost for the next.
    assert woke == [100.3125, 100.5625, 100.8125]
    assert clock.slept == [0.125, 0.0625, 0.0625]
    assert loop.statistics.as_dict() == {
        "period": 0.25,
        "steps": 3,
        "overruns": 0,
        "skipped": 0,
        "step": {"p50": 0.125, "p99": 0.125, "max": 0.125},
        "lateness": {"p50": 0.0625, "p99": 0.0625, "max": 0.0625},
    }


def test_loop_skips_the_periods_that_a_long_step_runs_into() -> None:
    clock = Clock()
    loop, woke = clock.loop(), []
    for work in (0.125, 0.625, 0.125, 0.25):
        clock.now += work
        loop.wait()
        woke.append(clock.now)
    # The second step goes from 100.25 to 100.875, past the periods at 100.5 and 100.75; the next is at 101. A step that
    # takes its period whole is no overrun.
    assert woke == [100.25, 101.0, 101.25, 101.5]
    assert (loop.statistics.overruns, loop.statistics.skipped) == (1, 2)
    assert min(clock.slept) >= 0


def test_loop_can_begin_anew() -> None:
    clock = Clock()
    loop = clock.loop()
    clock.now += 7.0
    loop.restart()
    loop.wait()
    assert (clock.now, loop.statistics.overruns, loop.statistics.step.longest) == (107.25, 0, 0.0)


@given(st.lists(st.floats(0, 2), max_size=50))
def test_steps_begin_with_periods_and_never_in_a_burst(work: list[float]) -> None:
    clock = Clock()
    loop, woke = clock.loop(), [100.0]
    for duration in work:
        clock.now += duration
        loop.wait()
        woke.append(clock.now)
    periods = (np.array(woke) - 100.0) / 0.25
    np.testing.assert_allclose(periods, np.round(periods), atol=1e-9)
    assert (np.diff(periods) > 0.99).all()
    # Every period has begun a step or was skipped.
    assert round(periods[-1]) == len(work) + loop.statistics.skipped


def test_loop_keeps_its_rate_on_the_real_clock() -> None:
    start, loop = time.monotonic(), FixedRateLoop(0.005)
    for _ in range(40):
        loop.wait()
    elapsed = time.monotonic() - start
    # 40 periods of 5 ms; a busy machine may skip some, and then they are counted, and wake up late at the end.
    assert 0.0 <= elapsed - (40 + loop.statistics.skipped) * 0.005 <= 1.0
    assert loop.statistics.step.count == loop.statistics.lateness.count == 40


def test_description_is_one_line_in_ms() -> None:
    clock = Clock()
    loop = clock.loop()
    clock.now += 0.125
    loop.wait()
    assert loop.statistics.describe() == (
        "1 steps of 250 ms, 0 overruns, 0 periods skipped; p50 / p99 / max in ms: step 125.00 / 125.00 / 125.00, "
        "wake-up late by 0.00 / 0.00 / 0.00"
    )


def test_quantiles_of_known_durations() -> None:
    durations = Durations()
    assert durations.as_dict() == {"p50": 0.0, "p99": 0.0, "max": 0.0}
    for milliseconds in range(1, 101):
        durations.add(1e-3 * milliseconds)
    # The 50th of 100 is 50 ms and the 99th 99 ms; bins are 4.7 % wide.
    assert 0.05 <= durations.quantile(0.5) <= 0.05 * 1.048
    assert 0.099 <= durations.quantile(0.99) <= 0.1
    assert durations.longest == 0.1
    assert json.loads(json.dumps(durations.as_dict())) == durations.as_dict()


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=100), st.floats(0.01, 1))
def test_quantile_is_at_most_a_bin_above(values: list[float], share: float) -> None:
    durations = Durations()
    for value in values:
        durations.add(value)
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    found = durations.quantile(share)
    # 0.1 microseconds to 100 s are told apart; what is beyond goes to the ends.
    assert found <= max(exact * 1.048, 1e-7)
    assert found >= min(exact * (1 - 1e-9), 99.99)


class Tape:
    """A robot that says what it is given, one entry at a time; None is nothing new."""

    def __init__(self, values: list[Any], hook: Callable[[int], Any] = lambda observed: None) -> None:
        self.values, self.hook, self.observed = values, hook, 0
        self.commands: list[np.ndarray] = []

    def observe(self) -> Observation:
        self.hook(self.observed)
        value = self.values[self.observed] if self.observed < len(self.values) else None
        self.observed += 1
        return Observation(self.observed * DT, GOOD if value is None else value, value is not None)

    def command(self, action: np.ndarray) -> None:
        self.commands.append(action)

    def close(self) -> None:
        pass


def controller(law: str = "effort", **settings: Any) -> Controller:
    """The policy always wants 1 and 1."""
    return Controller(stand_in(lambda obs, z: np.ones(2), law=law), **settings)


def first_joint(robot: Tape) -> list[float]:
    return [float(command[0]) for command in robot.commands]


def test_loop_leaves_the_robot_with_the_safe_command() -> None:
    robot, driver = Tape([GOOD] * 9), controller()
    outcome = drive(robot, driver, 3)
    assert first_joint(robot) == [1.0, 1.0, 1.0, 0.0]
    assert (outcome.steps, int(outcome.last.state), outcome.faults) == (3, State.RUNNING, {})
    assert outcome.statistics is None
    assert int(driver.state) == State.STOPPED


def test_loop_starts_and_stops_softly() -> None:
    # 0.08 s are four periods of 0.02 s, 0.04 s are two.
    robot = Tape([GOOD] * 5)
    drive(robot, controller(soft_start=0.08, stop_time=0.04), 5)
    np.testing.assert_allclose(first_joint(robot), [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0])


def test_stop_takes_its_time() -> None:
    robot, start = Tape([GOOD] * 2), time.monotonic()
    drive(robot, controller(stop_time=0.1), 2)
    # Five commands lead to the safe one, with four periods of 0.02 s between them.
    assert len(robot.commands) == 7
    assert time.monotonic() - start >= 0.08


def test_robot_without_need_to_settle_gets_no_more() -> None:
    robot, driver = Tape([GOOD] * 9), controller()
    drive(robot, driver, 3, settle=False)
    assert first_joint(robot) == [1.0, 1.0, 1.0]
    assert int(driver.state) == State.RUNNING


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_exception_ends_in_the_safe_command(error: type[BaseException]) -> None:
    def fail(observed: int) -> None:
        if observed == 3:
            raise error

    robot = Tape([GOOD] * 9, fail)
    with pytest.raises(error):
        drive(robot, controller(stop_time=0.04), 9)
    assert first_joint(robot) == [1.0, 1.0, 1.0, 0.5, 0.0]


def test_dry_run_computes_everything_and_sends_nothing() -> None:
    bad = np.full(OBS, np.nan)
    robot = Tape([GOOD, bad, GOOD, GOOD])
    outcome = drive(robot, controller(), 4, dry_run=True)
    assert (robot.commands, outcome.steps) == ([], 4)
    assert outcome.last.action.tolist() == [1.0, 1.0]
    assert list(outcome.faults.values()) == [1]


def test_silence_is_the_end_of_a_simulated_robot() -> None:
    robot = Tape([GOOD, GOOD, None, GOOD])
    assert drive(robot, controller(), 9, settle=False).steps == 2


def test_short_silence_repeats_the_command_and_long_silence_holds() -> None:
    # 20 periods of 20 ms without news and a patience of 250 ms: the first twelve repeat, then the controller holds.
    robot = Tape([*[GOOD] * 15, *[None] * 20, GOOD])
    outcome = drive(robot, controller(), 36, realtime=True, stale_timeout=0.25, settle=False)
    assert outcome.steps == 36
    sent = first_joint(robot)
    held = outcome.faults["there was no fresh observation"]
    # Another number of repeats where the machine was busy; the order stands.
    assert sent == [1.0] * (35 - held) + [0.0] * held + [1.0]
    assert 1 <= held <= 19


def test_first_observation_may_take_as_long_as_the_timeout() -> None:
    robot = Tape([None, None, GOOD, GOOD])
    outcome = drive(robot, controller(), 2, realtime=True, stale_timeout=1.0, settle=False)
    assert (outcome.steps, first_joint(robot)) == (2, [1.0, 1.0])


@pytest.mark.parametrize("stale_timeout", [None, 0.05])
def test_robot_that_never_speaks_is_refused(stale_timeout: float | None) -> None:
    robot = Tape([])
    with pytest.raises(UserError, match="gave no observation"):
        drive(robot, controller(), 9, realtime=True, stale_timeout=stale_timeout)
    assert robot.commands == []


def test_position_of_a_robot_not_yet_seen_well_is_not_sent() -> None:
    robot = Tape([np.full(OBS, np.nan), np.array([0, 0.3, -0.2, 0, 0]), GOOD])
    outcome = drive(robot, controller("position"), 3, settle=False)
    assert (outcome.steps, first_joint(robot)) == (3, [1.0, 1.0])


def test_realtime_keeps_the_control_period() -> None:
    robot, moves, start = Tape([GOOD] * 9), [], time.monotonic()
    outcome = drive(robot, controller(), 5, moves.append, realtime=True, settle=False)
    assert time.monotonic() - start >= 5 * DT
    assert moves == [1, 2, 3, 4, 5]
    assert outcome.statistics is not None
    assert outcome.statistics.step.count == 5
