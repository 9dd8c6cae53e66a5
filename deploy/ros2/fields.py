"""Where the numbers of an observation stand in ROS 2's standard messages, and how they are read, by name.

Reading imports no ROS 2: the messages of rclpy and those of a recorded bag have the same attributes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Any

import numpy as np

from adapters.errors import UserError
from deploy.spec import ObservationTerm, RobotDescription

JOINT_STATES, IMU, ODOM, CMD_VEL = TOPICS = ("joint_states", "imu", "odom", "cmd_vel")

# An angle about one axis of the base, and the part of the orientation's quaternion that it is read from.
ANGLES = {"orientation.roll": "x", "orientation.pitch": "y", "orientation.yaw": "z"}
VECTORS = (
    "imu.angular_velocity",
    "imu.linear_acceleration",
    "odom.pose.pose.position",
    "odom.twist.twist.linear",
    "odom.twist.twist.angular",
    "cmd_vel.twist.linear",
    "cmd_vel.twist.angular",
)
FIELDS = (*(f"{IMU}.{angle}" for angle in ANGLES), *(f"{vector}.{axis}" for vector in VECTORS for axis in "xyz"))

# The base of a robot that moves in the plane of x and z, its joints named as gymnasium's MuJoCo robots name them.
# Its velocity is that of odom's frame, not of the base's, which turns.
PLANAR_BASE = {
    ("base_position", "rootx"): "odom.pose.pose.position.x",
    ("base_position", "rootz"): "odom.pose.pose.position.z",
    ("base_velocity", "rootx"): "odom.twist.twist.linear.x",
    ("base_velocity", "rootz"): "odom.twist.twist.linear.z",
    ("base_velocity", "rooty"): "imu.angular_velocity.y",
    ("tilt", "rooty"): "imu.orientation.pitch",
}
JOINT_SOURCES = {"joint_position": "position", "joint_velocity": "velocity", "joint_effort": "effort"}

# How far the square of an orientation's norm may be from 1; drivers that send single precision are within it.
NORM_TOLERANCE = 1e-3


class Fault(Enum):
    """What is wrong with a message."""

    JOINTS = "joints are missing or have other names"
    TWICE = "a joint is named twice"
    SIZE = "an array has not one number for each joint"
    ORIENTATION = "there is no orientation"
    FRAME = "velocities are of another frame"


class MessageError(ValueError):
    """A message that holds no observation.

    Attributes:
        fault: of what kind.
    """

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(frozen=True)
class Field:
    """Where one number stands.

    Attributes:
        topic: name of the topic.
        path: attributes that lead to it in the message; of joint_states the name of the array.
        joint: the robot's own name of the joint, empty on other topics.
        fixed: whether it is a velocity that is needed in odom's own frame, not in the base's.
    """

    topic: str
    path: str
    joint: str = ""
    fixed: bool = False


def parse_map(name: str, entries: Iterable[str]) -> dict[str, str]:
    """Read the entries "policy_name:robot_name" of a parameter; an empty entry says nothing.

    Raises:
        UserError: an entry is no such pair, or a name stands twice on one side.
    """
    pairs = [entry.partition(":") for entry in entries if entry]
    for policy_name, colon, robot_name in pairs:
        if not (policy_name and colon and robot_name):
            raise UserError(f"{name} has the entry '{policy_name}{colon}{robot_name}'; write POLICY_NAME:ROBOT_NAME.")
    for side in ([left for left, _, _ in pairs], [right for _, _, right in pairs]):
        if twice := [entry for entry in side if side.count(entry) > 1]:
            raise UserError(f"{name} names '{twice[0]}' twice; give each name one counterpart.")
    return {left: right for left, _, right in pairs}


def find_fields(
    robot: RobotDescription, joint_map: Mapping[str, str] | None = None, field_map: Mapping[str, str] | None = None
) -> tuple[Field, ...]:
    """Return where each term of the observation stands.

    Args:
        robot: its terms.
        joint_map: the robot's own joint names by the description's, where they differ.
        field_map: one of `FIELDS` by the name of a term, where the term is not a joint's or a planar base's.

    Raises:
        UserError: a map names what there is not, a term has no place, or there are two angles.
    """
    joints = {joint for term in robot.observations for joint in term.joints} | set(robot.action.joints)
    _require_known("joint_map", joint_map or {}, joints, robot)
    _require_known("field_map", field_map or {}, set(robot.observation_names), robot)
    fields = tuple(_find_field(term, joint_map or {}, field_map or {}) for term in robot.observations)
    if len(angles := {field.path for field in fields if field.path in ANGLES}) > 1:
        raise UserError(f"{robot.name} observes {', '.join(sorted(angles))}; one angle alone can be read, in a plane.")
    return fields


def _require_known(name: str, given: Mapping[str, str], known: set[str], robot: RobotDescription) -> None:
    if unknown := sorted(set(given) - known):
        raise UserError(f"{name} names '{unknown[0]}', but {robot.name} has {', '.join(sorted(known))}.")


def _find_field(term: ObservationTerm, joint_map: Mapping[str, str], field_map: Mapping[str, str]) -> Field:
    joint = term.joints[0] if term.joints else ""
    if joint and term.source in JOINT_SOURCES:
        return Field(JOINT_STATES, JOINT_SOURCES[term.source], joint_map.get(joint, joint))
    place = field_map.get(term.name) or PLANAR_BASE.get((term.source, joint), "")
    if place not in FIELDS:
        fault = f"'{place}' is no field" if place else "no standard message has a place for it"
        raise UserError(
            f"the observation term '{term.name}' ({term.source}) cannot be read, {fault}; give field_map the entry "
            f"{term.name}:FIELD with one of {', '.join(FIELDS)}."
        )
    topic, _, path = place.partition(".")
    # A place that the user names is read as the robot gives it.
    return Field(topic, path, fixed=path.startswith("twist") and term.name not in field_map)


def nanoseconds(stamp: Any) -> int:
    """Return a message's stamp as a number."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


class ObservationReader:
    """Reads observations out of messages.

    An angle is the turn about its axis that the orientation's quaternion holds, which is exact for a robot in the
    plane. It is continued beyond half a turn from one message to the next.

    Args:
        robot: what is observed.
        joint_map: the robot's own joint names by the description's, where they differ.
        field_map: fields by term where the term's source does not tell.

    Attributes:
        topics: those that are needed.

    Raises:
        UserError: a map names what there is not, or a term has no place.
    """

    def __init__(
        self,
        robot: RobotDescription,
        joint_map: Mapping[str, str] | None = None,
        field_map: Mapping[str, str] | None = None,
    ) -> None:
        self._fields = find_fields(robot, joint_map, field_map)
        self._fixed = any(field.fixed for field in self._fields)
        used = {field.topic for field in self._fields}
        self.topics = tuple(topic for topic in TOPICS if topic in used)
        self._scale = np.array([term.scale for term in robot.observations])
        clip = [term.clip or (-np.inf, np.inf) for term in robot.observations]
        self._low, self._high = np.array(clip).T
        self._names: list[str] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget how often the robot has turned round."""
        self._turned = {field: 0.0 for field in self._fields if field.path in ANGLES}

    def read(self, messages: Mapping[str, Any]) -> np.ndarray:
        """Read an observation.

        Args:
            messages: one for each of `topics`; where there is none on cmd_vel, no motion is commanded.

        Returns:
            `(obs_dim,)` in the description's order and units, scaled and clipped; what is not a number in the messages
            is none here.

        Raises:
            MessageError: the messages lack something.
        """
        if JOINT_STATES in self.topics:
            self._check_joints(messages[JOINT_STATES])
        if self._fixed:
            _check_frame(messages[ODOM])
        if self._turned:
            self._turn(messages[IMU])
        values = np.array([self._value(field, messages) for field in self._fields])
        scaled = values * self._scale
        # A reading that is infinite is a broken sensor's, and no large number to be cut down to a plausible one.
        return np.where(np.isfinite(scaled), np.clip(scaled, self._low, self._high), np.nan)

    def _value(self, field: Field, messages: Mapping[str, Any]) -> float:
        if field.path in ANGLES:
            return self._turned[field]
        if field.topic == CMD_VEL and CMD_VEL not in messages:
            return 0.0
        value = attrgetter(field.path)(messages[field.topic])
        return value[self._index[field.joint]] if field.joint else value

    def _check_joints(self, message: Any) -> None:
        """Learn the order of the joints, and refuse a message that lacks some."""
        names = list(message.name)
        if names != self._names:
            self._index = _find_joints(names, [field.joint for field in self._fields if field.joint])
            self._names = names
        for quantity in {field.path for field in self._fields if field.joint}:
            _check_size(message, quantity)

    def _turn(self, imu: Any) -> None:
        """Follow the orientation."""
        q = imu.orientation
        norm = q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w
        # Written so that a NaN is refused.
        if imu.orientation_covariance[0] == -1 or not abs(norm - 1.0) <= NORM_TOLERANCE:
            raise MessageError(Fault.ORIENTATION, f"imu has no orientation: ({q.x}, {q.y}, {q.z}, {q.w})")
        for field, turned in self._turned.items():
            self._turned[field] = angle_near(getattr(q, ANGLES[field.path]), q.w, turned)


def _check_frame(odom: Any) -> None:
    """Refuse velocities of the base's frame, as many drivers give them, where those of odom's are needed."""
    given, needed = odom.child_frame_id, odom.header.frame_id
    if given and given != needed:
        raise MessageError(
            Fault.FRAME,
            f"odom gives velocities in {given}, and the policy reads them in {needed or 'the frame of the positions'}; "
            "publish them in that, with it as the child_frame_id",
        )


def angle_near(axis: float, w: float, near: float) -> float:
    """Return the angle, in rad and nearest `near`, of a rotation with the quaternion's parts `axis` and `w`."""
    angle = 2.0 * math.atan2(axis, w)
    return angle + math.tau * round((near - angle) / math.tau)


def read_positions(message: Any, joints: Sequence[str]) -> np.ndarray:
    """Return the positions of some joints, by the robot's own names, out of joint_states.

    Raises:
        MessageError: there is not a position of each.
    """
    places = _find_joints(list(message.name), joints)
    _check_size(message, "position")
    return np.array([message.position[places[joint]] for joint in joints])


def _find_joints(names: Sequence[str], wanted: Iterable[str]) -> dict[str, int]:
    """Return where each joint stands in a message."""
    index = {name: place for place, name in enumerate(names)}
    if len(index) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise MessageError(Fault.TWICE, f"joint_states names '{twice}' twice")
    if missing := [name for name in dict.fromkeys(wanted) if name not in index]:
        raise MessageError(
            Fault.JOINTS, f"joint_states lacks {', '.join(missing)}; it has {', '.join(names) or 'no joint'}"
        )
    return index


def _check_size(message: Any, quantity: str) -> None:
    joints, numbers = len(message.name), len(getattr(message, quantity))
    if joints != numbers:
        raise MessageError(Fault.SIZE, f"joint_states names {joints} joints, but {quantity} has {numbers} numbers")
