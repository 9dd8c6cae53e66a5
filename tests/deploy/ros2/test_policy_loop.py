"""What the policy node does with messages, without processes: a fault of any kind ends in a safe command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hardware import FIELD_MAP, PERIOD, START, move, robot, write_leg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import Imu, JointState

from adapters.errors import UserError
from deploy.controller import State
from deploy.ros2.messages import ObservationWriter, stamp
from deploy.ros2.policy_loop import PolicyLoop, Settings

WRITER = ObservationWriter(robot(), field_map=FIELD_MAP)
REST = np.zeros(2)


def make(bundle: Path, /, **changes: Any) -> PolicyLoop:
    plain = Settings(
        bundle=str(bundle),
        public_key="",
        rate=0.0,
        stale_timeout=0.0,
        sync_tolerance=0.0,
        soft_start=0.0,
        stop_time=0.0,
        low_confidence="run",
        least_confidence=0.5,
        adapt=True,
        joint_map=[""],
        field_map=["pitch:imu.orientation.pitch"],
        command_interface="",
    )
    return PolicyLoop(dataclasses.replace(plain, **changes), simulated=False, complain=lambda fault: None)


def send(loop: PolicyLoop, time: float, values: np.ndarray = START) -> Any:
    messages = WRITER.write(time, values)
    assert loop.receive("joint_states", messages["joint_states"], time) is None
    return loop.receive("imu", messages["imu"], time)


def test_silence_holds_the_robot_and_at_last_stops_it(bundle: Path) -> None:
    loop = make(bundle)
    assert loop.tick(0.0) is None
    assert (send(loop, 1.0).action != REST).all()
    assert loop.tick(1.3) is None  # three periods
    held = [loop.tick(1.4 + PERIOD * step) for step in range(20)]
    assert all((command.action == REST).all() for command in held)
    assert [State(int(command.state)) for command in held] == [State.HOLD] * 19 + [State.STOPPED]
    assert loop.report().level == 2
    assert "too many bad steps in a row" in loop.report().text
    assert loop.faults["there was no fresh observation"] == 19


def test_the_report_says_what_is_waited_for_and_what_is_wrong(bundle: Path) -> None:
    loop = make(bundle)
    assert loop.report()[:2] == (1, "waiting for joint_states, imu")
    loop.receive("imu", WRITER.write(1.0, START)["imu"], 1.0)
    assert loop.report()[:2] == (1, "waiting for joint_states")
    send(loop, 1.1)
    assert loop.report()[:2] == (0, "running")
    send(loop, 1.2, START * np.array([1, np.nan, 1, 1, 1]))
    assert loop.report()[:2] == (1, "hold: the observation is not finite (hip_position)")
    values = loop.report().values
    assert values["fault: the observation is not finite"] == 1
    assert (values["state"], values["steps"], values["overruns"]) == ("hold", 2, 0)
    figures = ("step p50 (ms)", "step p99 (ms)", "step max (ms)", "context residual", "context confidence", "adapt")
    assert set(figures) <= values.keys()


def test_the_report_says_why_no_observation_is_good(bundle: Path) -> None:
    loop = make(bundle)
    messages = WRITER.write(1.0, START)
    loop.receive("joint_states", messages["joint_states"], 9.0)
    assert loop.receive("imu", messages["imu"], 9.0) is None
    assert loop.report()[:2] == (1, "no good observation yet: the latest good message is too old")


def test_a_soft_start_is_under_way_until_it_is_over(bundle: Path) -> None:
    loop = make(bundle, soft_start=3 * PERIOD)
    send(loop, 1.0)
    assert loop.report()[:2] == (0, "soft start")
    send(loop, 1.1)
    send(loop, 1.2)
    assert loop.report()[:2] == (0, "running")


def test_the_context_is_nominal_where_the_policy_is_not_to_adapt(bundle: Path) -> None:
    contexts = {}
    for adapt in (True, False):
        loop, values = make(bundle, adapt=adapt), START
        for step in range(12):
            command = send(loop, 1.0 + PERIOD * step, values)
            values = move(values, command.action)
        contexts[adapt] = command.context
    assert (contexts[True] != 1).any() and (contexts[False] == 1).all()


def test_settling_ends_an_episode_and_no_stop_on_request(bundle: Path) -> None:
    loop = make(bundle, stop_time=2 * PERIOD)
    send(loop, 1.0)
    full = send(loop, 1.1).action
    assert [command.action.tolist() for command in loop.settle()] == [(full / 2).tolist(), REST.tolist()]
    assert loop.state != State.STOPPED
    loop.controller.stop()
    assert [command.action.tolist() for command in loop.settle()] == [REST.tolist()]
    loop.begin()
    assert loop.state == State.STOPPED
    assert "stopped on request" in loop.report().text


def test_nothing_is_sent_that_could_move_a_robot_whose_pose_is_not_known(tmp_path: Path) -> None:
    loop = make(write_leg(tmp_path / "leg.bundle", law="position"))
    assert [command.sendable for command in loop.settle()] == [False]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bundle": ""}, "no bundle is given"),
        ({"rate": 5.0}, "rate=5 Hz, but the bundle acts at 10 Hz"),
        ({"command_interface": "velocity"}, "command_interface=velocity, but the bundle commands effort"),
        ({"stale_timeout": 0.05}, "shorter than the control period; give 0.1 s or more"),
        ({"joint_map": ["ankle:a"]}, "joint_map names 'ankle'"),
        ({"field_map": [""]}, "'pitch' .* cannot be read"),
        ({"soft_start": -1.0}, "soft_start=-1.0"),
        ({"low_confidence": "hold"}, "no prior that tells its confidence; leave hold out"),
        ({"low_confidence": "panic"}, "choose run, slow, hold or hand_over"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(bundle: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        make(bundle, **changes)


def test_a_part_of_a_bundle_is_refused(bundle: Path) -> None:
    with pytest.raises(UserError, match="lone file"):
        make(bundle / "policy.onnx")


def test_the_rate_may_be_rounded(bundle: Path) -> None:
    make(bundle, rate=10.0001, command_interface="effort")


NUMBERS = st.floats(width=64)
NAMES = st.lists(st.sampled_from(["hip", "knee", "ankle", ""]), max_size=3)
ARRAYS = st.lists(NUMBERS, max_size=3)
STAMPS = st.one_of(st.floats(0.0, 2.0), st.sampled_from([0.0, 0.1, 0.1, 0.2, 0.3, 0.4]))


@st.composite
def joint_states(draw: st.DrawFn) -> JointState:
    whole = draw(st.booleans())
    names, position, velocity = (
        (["knee", "hip"], *(draw(st.lists(NUMBERS, min_size=2, max_size=2)) for _ in range(2)))
        if whole
        else (draw(NAMES), draw(ARRAYS), draw(ARRAYS))
    )
    message = JointState(name=names, position=position, velocity=velocity)
    message.header.stamp = stamp(draw(STAMPS))
    return message


@st.composite
def imus(draw: st.DrawFn) -> Imu:
    message = Imu()
    message.header.stamp = stamp(draw(STAMPS))
    if draw(st.booleans()):
        message.orientation.y, message.orientation.w = draw(NUMBERS), draw(NUMBERS)
    return message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(st.one_of(joint_states(), imus(), st.floats(0.0, 2.0)), max_size=20))
def test_whatever_comes_in_the_command_is_finite_and_within_its_range(loop: PolicyLoop, messages: list[Any]) -> None:
    loop.controller.clear()
    loop.begin()
    for message in messages:
        if isinstance(message, float):
            command = loop.tick(message)
        else:
            topic = "imu" if isinstance(message, Imu) else "joint_states"
            command = loop.receive(topic, message, message.header.stamp.sec + message.header.stamp.nanosec * 1e-9)
        if command is not None:
            assert ((command.action >= [-2, -1]) & (command.action <= [2, 3])).all()
        assert loop.report().level in (0, 1, 2)


@pytest.fixture(scope="module")
def loop(bundle: Path) -> PolicyLoop:
    return make(bundle)
