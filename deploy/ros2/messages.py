"""ROS 2's standard messages from and to numpy arrays: observations, commands, contexts and diagnostics.

Observations are read by `deploy.ros2.fields.ObservationReader`, whose other direction is `ObservationWriter` here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import Imu, JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension

from deploy.ros2.fields import (
    ANGLES,
    CMD_VEL,
    IMU,
    JOINT_STATES,
    ODOM,
    Field,
    ObservationReader,
    angle_near,
    find_fields,
)
from deploy.spec import RobotDescription

__all__ = [
    "MESSAGES",
    "ObservationReader",
    "ObservationWriter",
    "command_message",
    "context_message",
    "diagnostics_message",
    "made_at",
    "read_command",
    "read_context",
    "stamp",
]

MESSAGES = {JOINT_STATES: JointState, IMU: Imu, ODOM: Odometry, CMD_VEL: TwistStamped}

# Names of the two ends of odom; the second turns with the robot, and velocities are given in the first.
WORLD_FRAME, BASE_FRAME = "odom", "base"


def stamp(time: float) -> Time:
    """Return a time in s as a message's stamp."""
    sec, nanosec = divmod(round(time * 1e9), 1_000_000_000)
    return Time(sec=sec, nanosec=nanosec)


class ObservationWriter:
    """Writes observations into messages, out of which `ObservationReader` reads the same numbers, bit for bit.

    What the observation does not tell is 0 or, of a joint, NaN. The messages are made anew each time.

    Args:
        robot: what is observed; its scales are undone, which is exact where they are powers of two.
        joint_map: the robot's own joint names by the description's, where they differ.
        field_map: fields by term where the term's source does not tell.

    Attributes:
        topics: those that are written; cmd_vel is not, because a robot does not measure its commands.

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
        self._scale = np.array([term.scale for term in robot.observations])
        self._joints = list(dict.fromkeys(field.joint for field in self._fields if field.joint))
        used = {field.topic for field in self._fields}
        self.topics = tuple(topic for topic in MESSAGES if topic in used and topic != CMD_VEL)

    def write(self, time: float, values: np.ndarray) -> dict[str, Any]:
        """Write an observation.

        Args:
            time: s, the stamp of every message.
            values: `(obs_dim,)` in the description's order and units.

        Returns:
            One message for each of `topics`.
        """
        messages: dict[str, Any] = {topic: MESSAGES[topic]() for topic in self.topics}
        for message in messages.values():
            message.header.stamp = stamp(time)
            message.header.frame_id = BASE_FRAME
        if ODOM in messages:
            # The twist is told in the frame that child_frame_id names, by the message's definition.
            messages[ODOM].header.frame_id = messages[ODOM].child_frame_id = WORLD_FRAME
        if JOINT_STATES in messages:
            messages[JOINT_STATES].name = list(self._joints)
        for field, value in zip(self._fields, (values / self._scale).tolist(), strict=True):
            if field.topic in messages:
                self._set(messages[field.topic], field, value)
        return messages

    def _set(self, message: Any, field: Field, value: float) -> None:
        if field.joint:
            if not getattr(message, field.path):
                setattr(message, field.path, [math.nan] * len(self._joints))
            getattr(message, field.path)[self._joints.index(field.joint)] = value
        elif field.path in ANGLES:
            part, message.orientation.w = half_turn(value)
            setattr(message.orientation, ANGLES[field.path], part)
        else:
            parent, _, attribute = field.path.rpartition(".")
            setattr(attrgetter(parent)(message), attribute, value)


def half_turn(angle: float) -> tuple[float, float]:
    """Return the parts of a quaternion, about an axis and w, that `angle_near` reads as this very angle in rad.

    Sine and cosine of half the angle are rounded, and so is what is read from them. Both are moved in turn, the smaller
    one first, which has the finer steps, until nothing is left of that. Below 1e-300 rad a rest may stay.
    """
    if not math.isfinite(angle):
        return math.nan, math.nan
    half = math.remainder(angle, math.tau) / 2.0
    axis, w = math.sin(half), math.cos(half)
    of_axis = abs(axis) <= abs(w)
    for _ in range(8):
        error = angle - angle_near(axis, w, angle)
        if error == 0.0:
            break
        # Half the error would be the whole correction; less of it cannot swing to and fro between two neighbours.
        if of_axis:
            axis = _moved(axis, error / 3.0 * w)
        else:
            w = _moved(w, -error / 3.0 * axis)
        of_axis = not of_axis
    return axis, w


def _moved(value: float, by: float) -> float:
    """Return value + by, or where that is too little to matter the next number in that direction."""
    return value + by if value + by != value else math.nextafter(value, math.copysign(math.inf, by))


# How the label of a command's only dimension begins, which goes on with ns of the host's clock.
MADE = "made at "


def command_message(action: np.ndarray, made: int | None = None) -> Float64MultiArray:
    """Return a command `(act_dim,)` as ros2_control's ForwardCommandController takes it: it reads the data alone.

    Args:
        action: the numbers.
        made: ns of the host's clock, when the command was made; it stands in the label of the only dimension.
    """
    message = Float64MultiArray(data=action.tolist())
    if made is not None:
        message.layout.dim = [MultiArrayDimension(label=f"{MADE}{made}", size=len(action), stride=len(action))]
    return message


def made_at(message: Float64MultiArray) -> int | None:
    """Return when a command was made, in ns of its host's clock, None where it does not tell."""
    label = message.layout.dim[0].label if message.layout.dim else ""
    number = label.removeprefix(MADE)
    return int(number) if label.startswith(MADE) and number.isdecimal() and len(number) < 20 else None


def read_command(message: Float64MultiArray) -> np.ndarray:
    """Return the numbers of a command, however many there are."""
    return np.array(message.data, dtype=np.float64)


def context_message(names: Sequence[str], context: np.ndarray) -> Float64MultiArray:
    """Return a context `(context_dim,)`, its only dimension labelled with the comma-separated names of its numbers."""
    message = Float64MultiArray(data=context.tolist())
    message.layout.dim = [MultiArrayDimension(label=",".join(names), size=len(names), stride=len(names))]
    return message


def read_context(message: Float64MultiArray) -> dict[str, float]:
    """Return the numbers of a context by name."""
    return dict(zip(message.layout.dim[0].label.split(","), message.data, strict=True))


def diagnostics_message(
    time: Time, name: str, hardware: str, level: bytes, text: str, values: Mapping[str, object]
) -> DiagnosticArray:
    """Return the state of one node.

    Args:
        time: the stamp.
        name: of the node.
        hardware: the robot's name.
        level: one of DiagnosticStatus's OK, WARN, ERROR and STALE.
        text: the state in words.
        values: what else there is to know.
    """
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    status = DiagnosticStatus(level=level, name=name, message=text, hardware_id=hardware, values=pairs)
    message = DiagnosticArray(status=[status])
    message.header.stamp = time
    return message
