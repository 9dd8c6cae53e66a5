"""A toy robot and every form in which it can be logged, written message by message."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from adapters.datasets import LogLayout
from deploy.lcm.generated.surefoot import command_t, observation_t
from deploy.ros2.fields import ObservationReader
from deploy.ros2.inputs import Inputs
from deploy.spec import RobotDescription

DT, NS = 0.02, 1_000_000_000
TYPES = get_typestore(Stores.ROS2_KILTED)

ROBOT = RobotDescription.model_validate(
    {
        "name": "toy",
        "observations": [
            {"name": "height", "source": "base_position", "joints": ["rootz"], "unit": "m"},
            {"name": "hip", "source": "joint_position", "joints": ["hip"], "unit": "rad"},
            {"name": "knee", "source": "joint_velocity", "joints": ["knee"], "unit": "rad/s"},
        ],
        "action": {"law": "effort", "joints": ["hip", "knee"], "low": [-1, -1], "high": [1, 1], "unit": "1"},
        "control_dt": DT,
    }
)


class Step(NamedTuple):
    """A control period: when it began, what was seen, what was commanded, and whether the controller ran."""

    time: float
    observation: np.ndarray
    action: np.ndarray
    running: bool = True


def layout(task: Any = None) -> LogLayout:
    """How the toy robot's logs are to be read."""
    inputs = Inputs(ObservationReader(ROBOT), DT, 3 * DT)
    return LogLayout(ROBOT.observation_names, ROBOT.action.joints, inputs, task)


class LogForm(ABC):
    """One form of a log."""

    name = ""

    @abstractmethod
    def write(self, steps: list[Step], folder: Path) -> Path:
        """Write a log and return the path to load."""

    def main_file(self, path: Path) -> Path:
        """Return the file that holds the numbers."""
        return path


def event(number: int, channel: str, data: bytes) -> bytes:
    """Return an event of an LCM log."""
    head = struct.pack(">IqqII", 0xEDA1DA01, number, number * 1000, len(channel), len(data))
    return head + channel.encode() + data


def observation(time: float, sequence: int, applied: int, values: np.ndarray) -> bytes:
    """Return an observation_t."""
    message = observation_t()
    message.stamp, message.sequence, message.applied = round(time * NS), sequence, applied
    message.names, message.values, message.size = list(ROBOT.observation_names), list(values), len(values)
    return message.encode()


def command(sequence: int, action: np.ndarray, state: int = 2) -> bytes:
    """Return a command_t, its joints in another order than the robot's."""
    message = command_t()
    message.sequence, message.source, message.state = sequence, "runner", state
    message.joints, message.action, message.size = ["knee", "hip"], [action[1], action[0]], 2
    return message.encode()


def lcm_events(steps: list[Step]) -> list[bytes]:
    """Return the events of a robot that is answered at once."""
    events = []
    for number, step in enumerate(steps):
        seen = observation(step.time, number, 100 + number - 1 if number else -1, step.observation)
        answer = command(100 + number, step.action, 2 if step.running else 3)
        events += [event(2 * number, "SUREFOOT_OBSERVATION", seen), event(2 * number + 1, "SUREFOOT_COMMAND", answer)]
    return events


class LcmLog(LogForm):
    """What lcm-logger writes."""

    name = "lcm"

    def write(self, steps: list[Step], folder: Path) -> Path:
        path = folder / "log.lcm"
        path.write_bytes(b"".join(lcm_events(steps)))
        return path


def message(kind: str, **fields: Any) -> Any:
    """Return a ROS 2 message of a type, with zeros where nothing is given."""
    base, definition = TYPES.types[kind], TYPES.fielddefs[kind][1]
    return base(**{name: fields.get(name, _zero(form)) for name, form in definition})


def _zero(form: Any) -> Any:
    kind, detail = form
    if kind == 1:  # a scalar
        return {"string": "", "bool": False}.get(detail[0], 0)
    if kind == 2:  # a message
        return message(detail)
    (inner, content), length = detail  # an array, of fixed length or a sequence
    if inner == 1 and content[0] != "string":
        return np.zeros(length if kind == 3 else 0, content[0])
    return []


def header(time: float) -> Any:
    """Return a header with a stamp."""
    sec, nanosec = divmod(round(time * NS), NS)
    return message("std_msgs/msg/Header", stamp=message("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec))


def observed(step: Step) -> dict[str, tuple[str, Any]]:
    """Return the messages of an observation, by topic."""
    height, hip, knee = (float(value) for value in step.observation)
    point = message("geometry_msgs/msg/Point", z=height)
    pose = message("geometry_msgs/msg/PoseWithCovariance", pose=message("geometry_msgs/msg/Pose", position=point))
    joints = {"name": ["knee", "hip"], "position": np.array([0.0, hip]), "velocity": np.array([knee, 0.0])}
    return {
        "/joint_states": ("sensor_msgs/msg/JointState", {"header": header(step.time), **joints}),
        "/odom": ("nav_msgs/msg/Odometry", {"header": header(step.time), "pose": pose}),
    }


def commanded(action: np.ndarray) -> tuple[str, Any]:
    """Return the message of a command."""
    return "std_msgs/msg/Float64MultiArray", {"data": np.array(action, float)}


def diagnosed(state: str) -> tuple[str, Any]:
    """Return the diagnostics of two nodes, the policy among them."""
    value = message("diagnostic_msgs/msg/KeyValue", key="state", value=state)
    status = [
        message("diagnostic_msgs/msg/DiagnosticStatus", name="safety", values=[]),
        message("diagnostic_msgs/msg/DiagnosticStatus", name="robot/policy", values=[value]),
    ]
    return "diagnostic_msgs/msg/DiagnosticArray", {"header": header(0.0), "status": status}


Entry = tuple[float, str, tuple[str, Any]]
"""When a message was sent in s, its topic, and its type and fields."""


def bag_entries(steps: list[Step]) -> list[Entry]:
    """Return the messages of a robot that is answered 1 ms after it was observed."""
    entries: list[Entry] = []
    for step in steps:
        entries += [(step.time, topic, content) for topic, content in observed(step).items()]
        entries.append((step.time + 0.001, "/policy/commands", commanded(-step.action)))
        entries.append((step.time + 0.002, "/commands", commanded(step.action)))
        entries.append((step.time + 0.003, "/diagnostics", diagnosed("running" if step.running else "hold")))
    return entries


def write_bag(entries: list[Entry], path: Path, plugin: StoragePlugin) -> Path:
    """Write a bag."""
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        topics: dict[str, Any] = {}
        for time, topic, (kind, fields) in entries:
            if topic not in topics:
                topics[topic] = writer.add_connection(topic, kind, typestore=TYPES)
            data = TYPES.serialize_cdr(message(kind, **fields), kind)
            writer.write(topics[topic], round(time * NS), data)
    return path


class McapBag(LogForm):
    """A bag in MCAP."""

    name, plugin = "mcap", StoragePlugin.MCAP

    def write(self, steps: list[Step], folder: Path) -> Path:
        return write_bag(bag_entries(steps), folder / "log", self.plugin)

    def main_file(self, path: Path) -> Path:
        return next(file for file in path.iterdir() if file.suffix in (".mcap", ".db3"))


class Sqlite3Bag(McapBag):
    """A bag in sqlite3."""

    name, plugin = "sqlite3", StoragePlugin.SQLITE3


LOG_FORMS = {form.name: form for form in (LcmLog(), McapBag(), Sqlite3Bag())}
