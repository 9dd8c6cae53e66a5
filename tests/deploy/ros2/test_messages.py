"""Observations, commands and the rest in ROS 2's standard messages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import leg
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from omegaconf import OmegaConf
from sensor_msgs.msg import Imu, JointState

from adapters.errors import UserError
from deploy.ros2.fields import Fault, MessageError, ObservationReader, angle_near, find_fields, nanoseconds, parse_map
from deploy.ros2.messages import (
    ObservationWriter,
    command_message,
    context_message,
    diagnostics_message,
    half_turn,
    made_at,
    read_command,
    read_context,
    stamp,
)
from deploy.spec import RobotDescription

ROBOTS = Path(__file__).resolve().parents[3] / "configs" / "robot"
PITCH = {"pitch": "imu.orientation.pitch"}
NUMBERS = st.floats(-1e6, 1e6)
ANGLES = NUMBERS.filter(lambda angle: angle == 0 or abs(angle) > 1e-300)


def described(name: str) -> RobotDescription:
    return RobotDescription.model_validate(OmegaConf.to_container(OmegaConf.load(ROBOTS / f"{name}.yaml")))


def joint_robot(*terms: dict[str, Any], law: str = "effort") -> RobotDescription:
    """A robot of one joint, with the terms given."""
    action = {"law": law, "joints": ["hip"], "low": [-1], "high": [1], "unit": "N m"}
    return RobotDescription.model_validate({"name": "one", "observations": terms, "action": action, "control_dt": 0.1})


def term(name: str, source: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "source": source, "unit": "1", **more}


HIP = term("hip_position", "joint_position", joints=["hip"])


@pytest.mark.parametrize("name", ["halfcheetah", "hopper", "walker2d"])
@settings(max_examples=20)
@given(data=st.data())
def test_observations_pass_through_messages_to_the_bit(name: str, data: st.DataObject) -> None:
    robot = described(name)
    writer, reader = ObservationWriter(robot), ObservationReader(robot)
    assert writer.topics == reader.topics == ("joint_states", "imu", "odom")
    low, high = np.array([term.clip or (-np.inf, np.inf) for term in robot.observations]).T
    pitch = 0.0
    for _ in range(5):
        values = np.clip(data.draw(arrays(np.float64, robot.obs_dim, elements=NUMBERS)), low, high)
        # The base may turn round and round, by less than half a turn from one observation to the next.
        pitch += data.draw(st.integers(-3000, 3000)) / 1000
        values[robot.index("tilt", "rooty")] = pitch
        assert reader.read(writer.write(0.0, values)).tobytes() == values.tobytes()


@given(angle=ANGLES)
@example(angle=-78.6372129666111)  # corrected in full, it would swing to and fro for ever
@example(angle=0.21474547266443197)  # no sine leads to it, with the cosine as it is
def test_an_angle_is_read_from_its_quaternion_to_the_bit(angle: float) -> None:
    axis, w = half_turn(angle)
    assert angle_near(axis, w, near=angle) == angle
    assert math.isclose(axis * axis + w * w, 1.0, rel_tol=1e-9)


def test_quaternions_by_hand() -> None:
    # Half a right angle has sine and cosine 1/sqrt(2); a whole turn is none.
    assert half_turn(math.pi / 2) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))
    assert half_turn(math.pi / 3) == pytest.approx((0.5, math.sqrt(0.75)))
    assert angle_near(0.5, math.sqrt(0.75), near=0.0) == pytest.approx(math.pi / 3)
    assert angle_near(0.5, math.sqrt(0.75), near=7.0) == pytest.approx(math.pi / 3 + 2 * math.pi)
    assert angle_near(0.0, 1.0, near=-13.0) == pytest.approx(-4 * math.pi)


def test_an_observation_stands_where_it_belongs() -> None:
    robot = described("halfcheetah")
    values = np.arange(17) / 10
    messages = ObservationWriter(robot, {"bthigh": "rear_hip"}).write(12.25, values)
    joints, imu, odom = messages["joint_states"], messages["imu"], messages["odom"]
    assert joints.name == ["rear_hip", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
    assert list(joints.position) == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert list(joints.velocity) == [1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
    assert len(joints.effort) == 0
    assert (imu.orientation.y, imu.orientation.w) == pytest.approx((math.sin(0.05), math.cos(0.05)))
    assert imu.angular_velocity.y == 1.0
    assert (odom.pose.pose.position.z, odom.twist.twist.linear.x, odom.twist.twist.linear.z) == (0.0, 0.8, 0.9)
    assert odom.child_frame_id == odom.header.frame_id  # the velocity is that of the world's frame
    for message in messages.values():
        assert (message.header.stamp.sec, message.header.stamp.nanosec) == (12, 250_000_000)


def test_joints_are_found_by_name() -> None:
    robot = leg.robot()
    reader = ObservationReader(robot, {"hip": "left_hip"}, PITCH)
    joints = JointState(
        name=["tail", "knee", "left_hip"], position=[9.0, 0.2, 0.1], velocity=[9.0, 0.4, 0.3], effort=[1.0]
    )
    assert reader.read({"joint_states": joints, "imu": Imu()}).tolist() == [0.0, 0.1, 0.2, 0.3, 0.4]
    joints = JointState(name=["left_hip", "knee"], position=[0.5, 0.6], velocity=[0.7, 0.8])
    assert reader.read({"joint_states": joints, "imu": Imu()}).tolist() == [0.0, 0.5, 0.6, 0.7, 0.8]


@pytest.mark.parametrize(
    ("joints", "fault", "text"),
    [
        ({"name": ["hip", "ankle"]}, Fault.JOINTS, "joint_states lacks knee; it has hip, ankle"),
        ({"name": []}, Fault.JOINTS, "joint_states lacks hip, knee; it has no joint"),
        ({"name": ["hip", "knee", "hip"]}, Fault.TWICE, "joint_states names 'hip' twice"),
        ({"position": [0.1]}, Fault.SIZE, "joint_states names 2 joints, but position has 1 numbers"),
        ({"velocity": []}, Fault.SIZE, "joint_states names 2 joints, but velocity has 0 numbers"),
    ],
)
def test_a_message_without_the_joints_is_refused(joints: dict[str, Any], fault: Fault, text: str) -> None:
    whole = {"name": ["hip", "knee"], "position": [0.1, 0.2], "velocity": [0.3, 0.4]}
    reader = ObservationReader(leg.robot(), field_map=PITCH)
    with pytest.raises(MessageError, match=text) as refused:
        reader.read({"joint_states": JointState(**{**whole, **joints}), "imu": Imu()})
    assert refused.value.fault == fault
    reader.read({"joint_states": JointState(**whole), "imu": Imu()})


@pytest.mark.parametrize("parts", [(0.0, 0.0), (math.nan, 1.0), (1.0, 1.0)])
def test_an_imu_without_orientation_is_refused(parts: tuple[float, float]) -> None:
    imu = Imu()
    imu.orientation.y, imu.orientation.w = parts
    check_no_orientation(imu)


def test_an_imu_that_says_it_has_no_orientation_is_refused() -> None:
    imu = Imu()
    imu.orientation_covariance[0] = -1.0
    check_no_orientation(imu)


def check_no_orientation(imu: Imu) -> None:
    reader = ObservationReader(joint_robot(HIP, term("pitch", "tilt")), field_map=PITCH)
    with pytest.raises(MessageError, match="imu has no orientation") as refused:
        reader.read({"joint_states": JointState(name=["hip"], position=[0.0]), "imu": imu})
    assert refused.value.fault == Fault.ORIENTATION


def test_scale_comes_before_clip_and_is_undone_in_writing() -> None:
    robot = joint_robot({**HIP, "scale": 4.0, "clip": (-1.0, 1.0)})
    reader, writer = ObservationReader(robot), ObservationWriter(robot)
    # 0.125 * 4 = 0.5; 0.5 * 4 = 2, clipped to 1.
    assert reader.read({"joint_states": JointState(name=["hip"], position=[0.125])}).tolist() == [0.5]
    assert reader.read({"joint_states": JointState(name=["hip"], position=[0.5])}).tolist() == [1.0]
    assert list(writer.write(0.0, np.array([0.5]))["joint_states"].position) == [0.125]


@pytest.mark.parametrize("reading", [math.inf, -math.inf, math.nan])
def test_a_reading_that_is_not_finite_is_not_clipped_to_one_that_is(reading: float) -> None:
    reader = ObservationReader(joint_robot({**HIP, "clip": (-1.0, 1.0)}))
    assert np.isnan(reader.read({"joint_states": JointState(name=["hip"], position=[reading])})).all()


def test_velocities_of_another_frame_than_that_of_the_positions_are_refused() -> None:
    speed = {"name": "forward", "source": "base_velocity", "joints": ["rootx"], "unit": "m/s"}
    robot, values = joint_robot(HIP, speed), np.array([0.0, 1.5])
    messages = ObservationWriter(robot).write(0.0, values)
    assert ObservationReader(robot).read(messages).tolist() == [0.0, 1.5]
    messages["odom"].child_frame_id = "base_link"
    with pytest.raises(MessageError, match="odom gives velocities in base_link") as refused:
        ObservationReader(robot).read(messages)
    assert refused.value.fault == Fault.FRAME
    # Where the user names the place, it is read as the robot gives it.
    place = {"forward": "odom.twist.twist.linear.x"}
    assert ObservationReader(robot, field_map=place).read(messages).tolist() == [0.0, 1.5]


def test_what_is_not_observed_of_a_joint_is_no_number() -> None:
    robot = joint_robot(HIP, term("knee_velocity", "joint_velocity", joints=["knee"]))
    joints = ObservationWriter(robot).write(0.0, np.array([0.5, 0.7]))["joint_states"]
    np.testing.assert_array_equal(joints.position, [0.5, math.nan])
    np.testing.assert_array_equal(joints.velocity, [math.nan, 0.7])


def test_a_command_input_that_nobody_gives_is_zero() -> None:
    from geometry_msgs.msg import TwistStamped

    robot = joint_robot(HIP, term("speed", "other"))
    reader = ObservationReader(robot, field_map={"speed": "cmd_vel.twist.linear.x"})
    messages = ObservationWriter(robot, field_map={"speed": "cmd_vel.twist.linear.x"}).write(0.0, np.array([0.5, 0.7]))
    assert reader.topics == ("joint_states", "cmd_vel") and list(messages) == ["joint_states"]
    assert reader.read(messages).tolist() == [0.5, 0.0]
    wish = TwistStamped()
    wish.twist.linear.x = 1.5
    assert reader.read({**messages, "cmd_vel": wish}).tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("maps", "text"),
    [
        ({}, r"the observation term 'pitch' \(tilt\) cannot be read.*pitch:FIELD"),
        ({"field_map": {"pitch": "imu.pitch"}}, "'imu.pitch' is no field"),
        ({"field_map": {**PITCH, "yaw": "imu.orientation.yaw"}}, "field_map names 'yaw', but leg has hip_position"),
        ({"field_map": PITCH, "joint_map": {"ankle": "a"}}, "joint_map names 'ankle', but leg has hip, knee"),
    ],
)
def test_a_map_that_leads_nowhere_is_refused(maps: dict[str, dict[str, str]], text: str) -> None:
    with pytest.raises(UserError, match=text):
        find_fields(leg.robot(), **maps)


def test_two_angles_are_refused() -> None:
    robot = joint_robot(term("pitch", "tilt"), term("roll", "tilt"))
    with pytest.raises(UserError, match="one angle alone can be read"):
        find_fields(robot, field_map={**PITCH, "roll": "imu.orientation.roll"})


def test_maps_are_read_from_parameters() -> None:
    assert parse_map("joint_map", ["hip:left_hip", "", "knee:left_knee"]) == {"hip": "left_hip", "knee": "left_knee"}
    for entries in (["hip"], ["hip:"], [":left_hip"]):
        with pytest.raises(UserError, match="write POLICY_NAME:ROBOT_NAME"):
            parse_map("joint_map", entries)
    for entries in (["hip:a", "hip:b"], ["hip:a", "knee:a"]):
        with pytest.raises(UserError, match="twice"):
            parse_map("joint_map", entries)


@given(values=st.lists(st.floats(width=64), max_size=8))
def test_commands_pass_through_messages_to_the_bit(values: list[float]) -> None:
    action = np.array(values)
    message = command_message(action)
    assert read_command(message).tobytes() == action.tobytes()
    assert not message.layout.dim and message.layout.data_offset == 0


def test_commands_tell_when_they_were_made() -> None:
    message = command_message(np.array([0.5, 1.0]), made=1_795_000_000_123_456_789)
    assert list(message.data) == [0.5, 1.0]
    assert (message.layout.dim[0].size, message.layout.dim[0].stride) == (2, 2)
    assert made_at(message) == 1_795_000_000_123_456_789


@pytest.mark.parametrize("label", ["", "joints", "made at ", "made at -5", "made at 1.5", "made at " + "9" * 40])
def test_labels_that_tell_no_time(label: str) -> None:
    message = context_message([label], np.zeros(1))
    assert made_at(message) is None
    assert made_at(command_message(np.zeros(1))) is None


def test_contexts_are_labelled() -> None:
    message = context_message(["x", "z"], np.array([1.5, 0.5]))
    assert (message.layout.dim[0].label, message.layout.dim[0].size) == ("x,z", 2)
    assert read_context(message) == {"x": 1.5, "z": 0.5}


def test_stamps_are_whole_nanoseconds() -> None:
    assert nanoseconds(stamp(0.05 * 3)) == 150_000_000
    assert nanoseconds(stamp(1_700_000_000.5)) == 1_700_000_000_500_000_000


def test_diagnostics_hold_text() -> None:
    message = diagnostics_message(stamp(2.0), "policy", "leg", b"\x01", "hold", {"steps": 3, "adapt": True})
    (status,) = message.status
    assert (status.name, status.hardware_id, status.level, status.message) == ("policy", "leg", b"\x01", "hold")
    assert [(pair.key, pair.value) for pair in status.values] == [("steps", "3"), ("adapt", "True")]
    assert message.header.stamp.sec == 2
