"""Which messages make an observation, and which observations a control step."""

from __future__ import annotations

from itertools import pairwise

import leg
import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped

from deploy.ros2.fields import ObservationReader
from deploy.ros2.inputs import Inputs, Observed
from deploy.ros2.messages import ObservationWriter, stamp

PITCH = {"pitch": "imu.orientation.pitch"}
DT, TIMEOUT = 0.1, 0.3
VALUES = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
WRITER = ObservationWriter(leg.robot(), field_map=PITCH)


def make(simulated: bool = False, sync_tolerance: float = 0.0) -> Inputs:
    return Inputs(ObservationReader(leg.robot(), field_map=PITCH), DT, TIMEOUT, sync_tolerance, simulated)


def send(inputs: Inputs, time: float, now: float | None = None) -> Observed | None:
    """Send a whole set; return what came of its last message."""
    messages = WRITER.write(time, VALUES)
    assert inputs.receive("joint_states", messages["joint_states"], time if now is None else now) is None
    return inputs.receive("imu", messages["imu"], time if now is None else now)


def test_a_set_is_whole_when_all_messages_of_one_stamp_are_there() -> None:
    inputs, first, second = make(), WRITER.write(1.0, VALUES), WRITER.write(1.1, -VALUES)
    assert inputs.lacking == ["joint_states", "imu"]
    assert inputs.receive("imu", first["imu"], 1.0) is None
    assert inputs.lacking == ["joint_states"]
    assert inputs.receive("joint_states", second["joint_states"], 1.1) is None  # the first is lost
    observed = inputs.receive("imu", second["imu"], 1.1)
    assert observed is not None and observed.time == 1.1
    np.testing.assert_array_equal(observed.values, -VALUES)
    assert inputs.receive("imu", second["imu"], 1.1) is None  # a message is used once


def test_stamps_may_differ_as_far_as_is_allowed_and_the_oldest_counts() -> None:
    for tolerance, taken in ((0.01, True), (0.009, False)):
        inputs = make(sync_tolerance=tolerance)
        inputs.receive("joint_states", WRITER.write(1.01, VALUES)["joint_states"], 1.01)
        observed = inputs.receive("imu", WRITER.write(1.0, VALUES)["imu"], 1.01)
        assert (observed is not None and observed.time == 1.0) == taken


@pytest.mark.parametrize(
    ("time", "now", "fault"),
    [
        (5.0, 5.05, "the message came before"),
        (4.9, 5.05, "a later message came before this one"),
        (5.2, 5.1, "the stamp lies in the future"),
        (5.1, 5.5, "the latest good message is too old"),
        (4.0, 4.0, "the receiver's clock was set back"),
    ],
)
def test_an_old_a_repeated_and_a_future_set_are_counted_and_left_out(time: float, now: float, fault: str) -> None:
    inputs = make()
    assert send(inputs, 5.0) is not None
    assert send(inputs, time, now) is None
    assert inputs.faults == {fault: 1}


def test_messages_that_cannot_be_read_say_why() -> None:
    complaints: list[str] = []
    reader = ObservationReader(leg.robot(), {"hip": "left_hip"}, PITCH)
    inputs = Inputs(reader, DT, TIMEOUT, complain=complaints.append)
    observed = send(inputs, 1.0)
    assert observed is not None and observed.values is None
    assert complaints == [observed.fault] == ["joint_states lacks left_hip; it has hip, knee"]
    assert inputs.faults == {"joints are missing or have other names": 1}


@pytest.mark.parametrize("share", [0.1, 0.25, 0.34, 0.5])
def test_a_robot_that_observes_too_often_is_answered_once_in_a_period(share: float) -> None:
    inputs = make()
    sets = round(20 / share)
    taken = [k * share * DT for k in range(sets) if send(inputs, k * share * DT)]
    assert len(taken) == pytest.approx(20, abs=1)
    assert inputs.skipped == sets - len(taken)
    # A set may be early by a fifth of a period, and the one after it as late as the sets are apart.
    assert all(0.8 - share < (after - before) / DT < 1.2 + share for before, after in pairwise(taken))


def test_no_step_comes_right_behind_a_late_one() -> None:
    inputs, gap = make(), (0.21, 0.39)
    stamps = [0.01 * k for k in range(100) if not gap[0] <= 0.01 * k < gap[1]]
    taken = [time for time in stamps if send(inputs, time)]
    assert 0.39 in taken
    assert min(after - before for before, after in pairwise(taken)) > 0.3 * DT - 1e-9


@pytest.mark.parametrize("period", [0.9 * DT, DT, 1.1 * DT, 2.5 * DT])
def test_a_robot_of_about_the_right_rate_is_answered(period: float) -> None:
    inputs, generator = make(), np.random.default_rng(0)
    stamps = [k * period + generator.uniform(0, 0.1 * DT) for k in range(100)]
    taken = sum(send(inputs, time) is not None for time in stamps)
    # One that is fast by a tenth observes 100 times in 90 periods; of the others nothing is left out.
    assert taken == pytest.approx(90 if period < DT else 100, abs=2 if period < DT else 0)


def test_silence_counts_from_the_last_good_set() -> None:
    inputs = make()
    assert not inputs.silent(1.0)  # there is nobody yet to be silent
    send(inputs, 1.0)
    assert not inputs.silent(1.29)
    assert inputs.silent(1.31)
    send(inputs, 1.0, now=1.32)
    assert inputs.silent(1.32)
    inputs.forget()
    assert not inputs.silent(1.32)


def test_simulated_time_is_never_behind_an_observation() -> None:
    inputs = make(simulated=True)
    assert all(send(inputs, 1.0 + k * DT, now=0.0) for k in range(5))  # a simulator without /clock
    assert send(inputs, 1.2, now=0.0) is None
    assert inputs.faults == {"a later message came before this one": 1}
    assert not inputs.silent(0.0)
    assert inputs.silent(2.0)


def test_simulated_time_may_be_set_back() -> None:
    inputs = make(simulated=True)
    assert send(inputs, 50.0)
    assert send(inputs, 0.0) is None
    assert inputs.faults == {"the receiver's clock was set back": 1}
    assert send(inputs, DT)


def test_a_command_input_holds_for_half_a_second() -> None:
    term = {"name": "speed", "source": "other", "unit": "m/s"}
    base = leg.robot()
    robot = type(base).model_validate({**base.model_dump(), "observations": [*base.model_dump()["observations"], term]})
    reader = ObservationReader(robot, field_map={**PITCH, "speed": "cmd_vel.twist.linear.x"})
    inputs = Inputs(reader, DT, TIMEOUT)
    wish = TwistStamped()
    wish.header.stamp = stamp(0.0)  # when it was sent is of no matter: whoever drives may have another clock
    wish.twist.linear.x = 1.5
    assert inputs.receive("cmd_vel", wish, 10.0) is None
    speeds = [send(inputs, 10.0 + k * DT).values[-1] for k in range(8)]
    assert speeds == [1.5] * 6 + [0.0] * 2
    # One from before the clock was set back is none, also once the clock is there again.
    inputs.receive("cmd_vel", wish, 11.0)
    assert send(inputs, 5.0) is None
    assert [send(inputs, 5.0 + k * DT).values[-1] for k in range(1, 70)] == [0.0] * 69
