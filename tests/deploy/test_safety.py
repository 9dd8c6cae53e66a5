"""The safety filter on the leg: what it lets pass, what it sends instead, and how fast it moves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leg import DT, HIGH, LOW, robot

from adapters.errors import UserError
from deploy.safety import Output, SafetyFilter
from deploy.watchdog import Verdict

GOOD, TIMEOUT = Verdict.GOOD, 0.1


def guard(law: str = "effort", **limits: Any) -> SafetyFilter:
    return SafetyFilter(robot(law, **limits), TIMEOUT)


def sent(output: Output) -> list[float] | None:
    return None if output.command is None else output.command.tolist()


def test_nothing_passes_before_a_command_came() -> None:
    assert guard().output(0.0)[1:] == (False, Verdict.MISSING, 0)
    assert sent(guard().output(0.0)) == [0.0, 0.0]


def test_good_command_passes_until_it_is_too_old() -> None:
    safety = guard()
    assert safety.accept(1.02, 1.0, [0.5, -0.5]) == GOOD
    for now in (1.02, 1.06, 1.09):
        output = safety.output(now)
        assert (sent(output), output.passing, output.reason) == ([0.5, -0.5], True, GOOD)
    late = safety.output(1.11)
    assert (sent(late), late.passing, late.reason) == ([0.0, 0.0], False, Verdict.STALE)
    assert safety.accept(1.12, 1.12, [0.1, 0.1]) == GOOD
    assert sent(safety.output(1.12)) == [0.1, 0.1]


def test_commands_lie_in_their_own_range() -> None:
    # 0 is not in the range of a robot that pushes with 1 to 3.
    pushing = robot().model_copy(update={"action": robot().action.model_copy(update={"low": (1.0, -1.0)})})
    assert sent(SafetyFilter(pushing, TIMEOUT).output(0.0)) == [1.0, 0.0]


WRONG = {
    "nan": ([0.0, math.nan], Verdict.NOT_FINITE),
    "inf": ([math.inf, 0.0], Verdict.NOT_FINITE),
    "short": ([0.0], Verdict.SIZE),
    "column": ([[0.0], [0.0]], Verdict.SIZE),
    "nothing": (None, Verdict.SIZE),
    "text": ("push", Verdict.SIZE),
    "too low": ([-2.01, 0.0], Verdict.RANGE),
    "too high": ([0.0, 3.01], Verdict.RANGE),
}


@pytest.mark.parametrize(("command", "verdict"), WRONG.values(), ids=WRONG.keys())
def test_wrong_command_is_refused_at_once_and_never_repaired(command: Any, verdict: Verdict) -> None:
    safety = guard()
    safety.accept(0.0, 0.0, [1.0, 1.0])
    assert safety.accept(DT, DT, command) == verdict
    output = safety.output(DT)
    assert (sent(output), output.passing, output.reason) == ([0.0, 0.0], False, verdict)
    assert safety.accept(2 * DT, 2 * DT, [1.0, 1.0]) == GOOD
    assert sent(safety.output(2 * DT)) == [1.0, 1.0]
    assert safety.counts == {GOOD: 2, verdict: 1}


def test_single_precision_at_the_edge_of_the_range_passes() -> None:
    narrow = robot().model_copy(update={"action": robot().action.model_copy(update={"high": (0.1, 3.0)})})
    safety = SafetyFilter(narrow, TIMEOUT)
    on_the_wire = np.array([0.1, 0.0], np.float32)
    assert float(on_the_wire[0]) > 0.1
    assert safety.accept(0.0, 0.0, on_the_wire) == GOOD
    assert sent(safety.output(0.0)) == [0.1, 0.0]


def test_message_that_came_late_ends_nothing() -> None:
    safety = guard()
    safety.accept(1.0, 1.0, [1.0, 1.0])
    for stamp, verdict in ((1.0, Verdict.REPEATED), (0.98, Verdict.REORDERED), (1.5, Verdict.FUTURE)):
        assert safety.accept(1.02, stamp, [2.0, 2.0]) == verdict
        assert sent(safety.output(1.02)) == [1.0, 1.0]


def test_clock_that_is_set_back_ends_the_passing_once() -> None:
    safety = guard()
    safety.accept(50.0, 50.0, [1.0, 1.0])
    assert sent(safety.output(50.0)) == [1.0, 1.0]
    assert sent(safety.output(20.0)) == [0.0, 0.0]
    assert safety.accept(20.0, 20.0, [1.0, 1.0]) == Verdict.CLOCK_BACK
    assert safety.accept(20.02, 20.02, [1.0, 1.0]) == GOOD
    assert sent(safety.output(20.02)) == [1.0, 1.0]


def test_first_source_keeps_the_command_while_it_is_fresh() -> None:
    safety = guard()
    assert safety.accept(0.0, 0.0, [1.0, 0.0], source="policy") == GOOD
    # Not even what is wrong with the other's command counts.
    assert safety.accept(0.02, 0.02, [math.nan, 0.0], source="teleop") == Verdict.SOURCE
    assert safety.accept(0.04, 0.04, [-1.0, 0.0], source="teleop") == Verdict.SOURCE
    assert sent(safety.output(0.04)) == [1.0, 0.0]
    # The policy falls silent: 0.1 s later the robot is safe, but only 1 s later the other takes over.
    assert safety.accept(0.12, 0.12, [-1.0, 0.0], source="teleop") == Verdict.SOURCE
    assert safety.accept(0.99, 0.99, [-1.0, 0.0], source="teleop") == Verdict.SOURCE
    assert sent(safety.output(0.99)) == [0.0, 0.0]
    assert safety.accept(1.0, 1.0, [-1.0, 0.0], source="teleop") == GOOD
    assert sent(safety.output(1.0)) == [-1.0, 0.0]
    assert safety.accept(1.02, 1.02, [1.0, 0.0], source="policy") == Verdict.SOURCE
    assert safety.source == "teleop"


def test_source_with_an_old_stamp_does_not_take_over() -> None:
    safety = guard()
    assert safety.accept(5.0, 4.0, [1.0, 0.0], source="relay") == Verdict.STALE
    assert safety.accept(5.0, 5.0, [1.0, 0.0], source="policy") == GOOD


def test_clock_that_is_set_back_keeps_no_source_out() -> None:
    safety = guard()
    safety.accept(500.0, 500.0, [1.0, 0.0], source="policy")
    assert safety.accept(20.0, 20.0, [1.0, 0.0], source="restarted") == Verdict.CLOCK_BACK
    assert safety.accept(20.02, 20.02, [1.0, 0.0], source="restarted") == GOOD


def drive(safety: SafetyFilter, step: int) -> list[float] | None:
    """Give the command (1, -0.5) and return what the robot gets."""
    safety.accept(step * DT, step * DT, [1.0, -0.5])
    return sent(safety.output(step * DT))


def test_commands_take_over_evenly_after_every_safe_one() -> None:
    safety = SafetyFilter(robot(), TIMEOUT, soft_start=4 * DT)
    safety.output(-DT)
    # A quarter more of the command in each period.
    expected = [[0.25, -0.125], [0.5, -0.25], [0.75, -0.375], [1.0, -0.5], [1.0, -0.5]]
    np.testing.assert_allclose([drive(safety, step) for step in range(5)], expected)
    assert safety.output(4 * DT).share == 1
    safety.stop()
    assert (drive(safety, 5), safety.output(5 * DT).share) == ([0.0, 0.0], 0)
    safety.clear()
    np.testing.assert_allclose([drive(safety, step) for step in range(6, 11)], expected)
    # A command that is too old ends the passing as well: 20 periods later all begins anew.
    assert sent(safety.output(20 * DT)) == [0.0, 0.0]
    np.testing.assert_allclose([drive(safety, step) for step in range(21, 26)], expected)


def test_clock_that_jumps_ahead_does_not_end_a_soft_start() -> None:
    safety = SafetyFilter(robot(), 60.0, soft_start=10 * DT)
    safety.output(0.0)
    safety.accept(DT, DT, [1.0, 0.0])
    assert sent(safety.output(DT)) == pytest.approx([0.1, 0.0])
    # A minute counts as two periods.
    assert sent(safety.output(50.0)) == pytest.approx([0.3, 0.0])


def test_soft_start_from_a_pose() -> None:
    safety = SafetyFilter(robot("position"), TIMEOUT, soft_start=4 * DT)
    safety.observe([0.2, 0.1])
    safety.output(-DT)
    # 0.2 + (1.0 - 0.2) / 4 and 0.1 + (-0.5 - 0.1) / 4
    assert drive(safety, 0) == pytest.approx([0.4, -0.05])


def test_rate_is_limited_smoothly_with_one_period_to_spare() -> None:
    safety = guard(rate=10.0)
    found = []
    for step in range(5):
        safety.accept(step * DT, step * DT, [1.0, -0.1])
        found.append(sent(safety.output(step * DT)))
    # 10 N m/s over 0.02 s is 0.2; the first output may use two periods' worth.
    np.testing.assert_allclose(found, [[0.4, -0.1], [0.6, -0.1], [0.8, -0.1], [1.0, -0.1], [1.0, -0.1]])


def test_rate_holds_on_the_way_to_the_safe_command() -> None:
    safety = guard(rate=10.0)
    for step in range(10):
        safety.accept(step * DT, step * DT, [1.0, 1.0])
        safety.output(step * DT)
    safety.stop()
    found = [safety.output((10 + step) * DT).command[0] for step in range(4)]
    np.testing.assert_allclose(found, [0.6, 0.4, 0.2, 0.0], atol=1e-12)


def test_late_messages_pass_whole() -> None:
    # A policy at its full rate of 0.2 a step; outputs come 8 ms late or early, the command is never held back.
    safety = guard(rate=10.0)
    for step, jitter in enumerate([0.0, 0.008, -0.008, 0.008, -0.008, 0.0, 0.008]):
        now, command = step * DT + jitter, [0.2 * (step + 1), 0.0]
        assert safety.accept(now, step * DT - 0.01, command) == GOOD
        np.testing.assert_allclose(sent(safety.output(now)), command)


def test_asking_more_often_allows_no_more() -> None:
    safety = guard(rate=10.0)
    safety.accept(0.0, 0.0, [2.0, 0.0])
    found = [safety.output(0.001 * step).command[0] for step in range(21)]
    # 0.4 at once, then 10 N m/s: 0.6 after 20 ms.
    assert found[0] == pytest.approx(0.4)
    assert found[-1] == pytest.approx(0.6)


def test_clock_that_is_set_back_allows_no_change() -> None:
    safety = guard(rate=10.0)
    for now in (10.0, 10.02):
        safety.accept(now, now, [2.0, 0.0])
        safety.output(now)
    # 0.4 and 0.2 so far; no time goes by until the clock moves on by 10 ms.
    assert safety.output(3.0).command[0] == pytest.approx(0.6)
    assert safety.output(3.01).command[0] == pytest.approx(0.5)


def test_position_law_has_nothing_to_send_before_anything_is_known() -> None:
    safety = guard("position")
    assert safety.output(0.0) == (None, False, Verdict.MISSING, 0)


def test_position_law_holds_the_pose_seen_while_commands_passed() -> None:
    safety = guard("position")
    safety.observe([0.3, -0.2])
    assert sent(safety.output(0.0)) == [0.3, -0.2]
    safety.observe([0.4, -0.2])
    assert sent(safety.output(0.01)) == [0.4, -0.2]
    safety.accept(0.02, 0.02, [1.0, 1.0])
    assert sent(safety.output(0.02)) == [1.0, 1.0]
    safety.observe([0.9, 0.8])
    assert sent(safety.output(0.2)) == [0.9, 0.8]
    # The robot sags and is not followed.
    safety.observe([0.5, 0.5])
    assert sent(safety.output(0.22)) == [0.9, 0.8]


def test_position_law_lets_nothing_pass_before_a_pose_is_seen() -> None:
    safety = SafetyFilter(robot("position", rate=5.0), TIMEOUT, soft_start=4 * DT)
    for step in range(5):
        assert drive(safety, step) is None
    assert safety.output(5 * DT) == (None, False, Verdict.POSE, 0)
    # From the pose it begins as ever: a quarter of the way from 0.2 to 1.0 at once, and 5 rad/s allow 0.2 for that.
    safety.observe([0.2, -0.5])
    assert drive(safety, 6) == pytest.approx([0.4, -0.5])


def test_position_law_begins_after_a_clear_from_where_the_robot_is_then() -> None:
    safety = SafetyFilter(robot("position"), TIMEOUT, soft_start=4 * DT)
    safety.observe([0.3, -0.5])
    drive(safety, 0)
    safety.stop()
    assert drive(safety, 1) == pytest.approx([0.3, -0.5])
    safety.observe([0.1, -0.5])  # it is not followed while it holds
    assert drive(safety, 2) == pytest.approx([0.3, -0.5])
    safety.clear()
    safety.observe([-0.6, -0.5])
    # -0.6 + (1.0 + 0.6) / 4, where the robot is, and not 0.3 + (1.0 - 0.3) / 4, where it was.
    assert drive(safety, 3) == pytest.approx([-0.2, -0.5])


def test_position_law_moves_from_the_pose_at_its_rate() -> None:
    safety = guard("position", rate=5.0)
    safety.observe([0.3, -0.2])
    safety.accept(0.0, 0.0, [1.5, -0.2])
    # 5 rad/s over two periods of 0.02 s is 0.2 rad.
    np.testing.assert_allclose(sent(safety.output(0.0)), [0.5, -0.2])


@pytest.mark.parametrize("pose", [[math.nan, 0.0], [0.0], None, "pose"])
def test_pose_that_makes_no_sense_is_not_held(pose: Any) -> None:
    safety = guard("position")
    safety.observe([0.3, -0.2])
    safety.observe(pose)
    assert sent(safety.output(0.0)) == [0.3, -0.2]


def test_pose_out_of_range_is_held_at_its_edge() -> None:
    safety = guard("position")
    safety.observe([-2.5, 0.0])
    assert sent(safety.output(0.0)) == [-2.0, 0.0]


def test_stop_lasts_until_clear() -> None:
    safety = guard()
    safety.accept(0.0, 0.0, [1.0, 1.0])
    safety.stop()
    safety.accept(0.02, 0.02, [1.0, 1.0])
    output = safety.output(0.02)
    assert (sent(output), output.reason) == ([0.0, 0.0], Verdict.STOPPED)
    safety.clear()
    assert sent(safety.output(0.03)) == [1.0, 1.0]


def test_output_belongs_to_the_caller() -> None:
    safety, command = guard(rate=10.0), np.array([0.1, 0.1])
    safety.accept(0.0, 0.0, command)
    command[:] = 9.0
    first = safety.output(0.0)
    assert sent(first) == [0.1, 0.1]
    assert first.command is not None
    first.command[:] = math.nan
    assert sent(safety.output(0.01)) == [0.1, 0.1]


@pytest.mark.parametrize("soft_start", [-1.0, math.nan, math.inf])
def test_soft_start_that_makes_no_sense_is_refused(soft_start: float) -> None:
    with pytest.raises(UserError, match="soft_start"):
        SafetyFilter(robot(), TIMEOUT, soft_start)


@pytest.mark.parametrize("timeout", [0.01, 0.0, -1.0, math.nan])
def test_timeout_that_makes_no_sense_is_refused(timeout: float) -> None:
    with pytest.raises(UserError, match="timeout"):
        SafetyFilter(robot(), timeout)


numbers = st.floats(-3, 4) | st.floats(allow_nan=True, allow_infinity=True)
commands = st.lists(numbers, min_size=2, max_size=2) | st.none() | st.text(max_size=2) | st.lists(numbers, max_size=4)
times = st.floats(0, 0.4) | st.floats(allow_nan=True, allow_infinity=True) | st.none()
calls = st.one_of(
    st.tuples(st.just("accept"), times, times, commands, st.sampled_from([None, "a", "b"])),
    st.tuples(st.just("output"), times),
    st.tuples(st.just("observe"), commands),
    st.tuples(st.sampled_from(["stop", "clear"])),
)


@settings(max_examples=150)
@given(
    calls=st.lists(calls, max_size=40),
    law=st.sampled_from(["effort", "velocity", "position"]),
    rate=st.sampled_from([None, 10.0]),
    soft_start=st.sampled_from([0.0, 0.1]),
)
def test_garbage_gives_safe_outputs(
    calls: list[tuple[Any, ...]], law: str, rate: float | None, soft_start: float
) -> None:
    safety, stopped = SafetyFilter(robot(law, rate=rate), TIMEOUT, soft_start), False
    previous: np.ndarray | None = None
    with np.errstate(all="ignore"):
        for name, *arguments in [*calls, ("output", 0.4)]:
            found = getattr(safety, name)(*arguments)
            stopped = (stopped or name == "stop") and name != "clear"
            if name != "output":
                continue
            assert found.passing == (found.reason == GOOD)
            assert not (stopped and found.passing)
            if found.command is None:
                assert law == "position" and previous is None
                continue
            assert np.isfinite(found.command).all()
            assert (found.command >= LOW).all() and (found.command <= HIGH).all()
            if previous is not None and rate is not None:
                assert np.abs(found.command - previous).max() <= 2 * DT * rate + 1e-9
            previous = found.command


@settings(max_examples=60)
@given(
    targets=st.lists(st.tuples(st.floats(-2, 2), st.floats(-1, 3)), min_size=1, max_size=40),
    gaps=st.lists(st.floats(0, 0.05), min_size=40, max_size=40),
)
def test_change_over_any_stretch_keeps_to_the_rate(targets: list[tuple[float, float]], gaps: list[float]) -> None:
    safety, now = guard(rate=10.0), 0.0
    times, outputs = [], []
    for target, gap in zip(targets, gaps, strict=False):
        now += gap
        safety.accept(now, now, target)
        output = safety.output(now)
        times.append(now)
        outputs.append(output.command)
    for begin in range(len(outputs)):
        for end in range(begin, len(outputs)):
            change = np.abs(outputs[end] - outputs[begin]).max()
            assert change <= 10.0 * (times[end] - times[begin] + 2 * DT) + 1e-9
