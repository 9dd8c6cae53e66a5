"""Logs of a robot behind ROS 2: rosbag2's sqlite3 and MCAP files, recorded by Surefoot's recorder or `ros2 bag`.

No ROS 2 is needed to read them; the package `rosbags` knows the formats.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import struct
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adapters.datasets.robot_log import NS, LogLayout, Moment, Observed, transitions
from adapters.datasets.transitions import Metadata
from adapters.errors import UserError

SUFFIXES = (".mcap", ".db3")
COMMANDS, DIAGNOSTICS = "commands", "diagnostics"
TYPES = {
    "joint_states": "sensor_msgs/msg/JointState",
    "imu": "sensor_msgs/msg/Imu",
    "odom": "nav_msgs/msg/Odometry",
    "cmd_vel": "geometry_msgs/msg/TwistStamped",
    COMMANDS: "std_msgs/msg/Float64MultiArray",
    DIAGNOSTICS: "diagnostic_msgs/msg/DiagnosticArray",
}
OPTIONAL = ("cmd_vel", DIAGNOSTICS)
# The policy's node, the value in its diagnostics that is the controller's state, and the state in which it acts.
POLICY, STATE, RUNNING = "policy", "state", "running"

# What an MCAP file needs behind its last whole record: the end of the data, a footer that tells of no summary, the end.
MCAP_RECORD = struct.Struct("<BQ")
MCAP_MAGIC = b"\x89MCAP0\r\n"
MCAP_END = MCAP_RECORD.pack(0x0F, 4) + bytes(4) + MCAP_RECORD.pack(0x02, 20) + bytes(20) + MCAP_MAGIC


class Message(NamedTuple):
    """A message of a bag: its kind, a key of `TYPES`, and its content with the attributes of ROS 2's own."""

    kind: str
    content: Any


def bag_in(path: Path) -> Path | None:
    """Return the bag at a path, a file or a folder of files; None where there is none."""
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix in SUFFIXES]
        # The list of a bag's files is written when it is closed.
        return files[0] if len(files) == 1 and not (path / "metadata.yaml").exists() else path if files else None
    return path if path.suffix in SUFFIXES else None


def read_rosbag(path: Path, control_dt: float, layout: LogLayout | None) -> tuple[dict[str, np.ndarray], Metadata]:
    """Read the transitions of a robot's log; `robot_log.transitions` says which they are.

    An observation is what the policy's node read. Its command is the only one that the robot was sent before the next
    observation, while the controller ran by the policy's diagnostics; in a bag without those it is taken to have run.
    A file that a crash left without its end is read up to there, with a warning.

    Args:
        path: the bag, a file or its folder.
        control_dt: s.
        layout: what the messages' numbers are.

    Raises:
        UserError: rosbags is not installed, there is no layout, the bag is damaged or empty, lacks a topic, or holds no
            transition.
    """
    if layout is None or layout.inputs is None:
        raise UserError(
            f"{path} does not say which numbers make up an observation; make a data set of it with: "
            f"surefoot collect bag={path} robot=NAME output=FILE."
        )
    moments = _moments(_messages(path, layout.inputs.topics), layout, path)
    arrays = transitions(moments, control_dt, layout.task, path)
    return arrays, Metadata(
        observation_names=layout.observation_names, action_names=layout.action_names, source=path.name
    )


def _moments(messages: Iterable[Message], layout: LogLayout, path: Path) -> list[Moment]:
    """Put observations together, and find what was commanded after each."""
    assert layout.inputs is not None
    observed: list[Observed] = []
    between: list[tuple[set[tuple[float, ...]], str | None]] = []  # before each observation: commands, and the state
    commands, state, now = set(), None, 0.0
    for kind, content in messages:
        if kind == COMMANDS:
            commands.add(tuple(content.data))
        elif kind == DIAGNOSTICS:
            state = _state(content) or state
        else:
            now = max(now, content.header.stamp.sec + content.header.stamp.nanosec / NS)
            if (seen := layout.inputs.receive(kind, content, now)) is not None:
                observed.append(seen)
                between.append((commands, state))
                commands = set()
    if observed and all(seen.values is None for seen in observed):
        raise UserError(f"{path} holds no observation of this robot: {observed[0].fault}; give the robot it is from.")
    if state is None:
        warnings.warn(
            f"{path} holds no diagnostics of the policy, so its controller is taken to have run.", stacklevel=2
        )
        between = [(commands, RUNNING) for commands, _ in between]
    unknown = np.full(len(layout.observation_names), np.nan)
    return [
        Moment(round(seen.time * NS), unknown if seen.values is None else seen.values, _action(*after, layout, path))
        for seen, after in zip(observed, [*between[1:], (set(), None)], strict=False)
    ]


def _state(diagnostics: Any) -> str | None:
    """Return the controller's state, None where it is not the policy that reports."""
    for status in diagnostics.status:
        if status.name.rpartition("/")[2] == POLICY:
            return next((entry.value for entry in status.values if entry.key == STATE), None)
    return None


def _action(commands: set[tuple[float, ...]], state: str | None, layout: LogLayout, path: Path) -> np.ndarray | None:
    """Return the command that alone was sent in a control period, None where it is not the policy's."""
    if len(commands) != 1 or state != RUNNING:
        return None
    (action,) = commands
    if len(action) != len(layout.action_names):
        raise UserError(
            f"{path}: a command has {len(action)} numbers where the robot takes {len(layout.action_names)}; give the "
            "robot that it is from."
        )
    return np.array(action)


def _messages(path: Path, inputs: Sequence[str]) -> Iterator[Message]:
    """Yield what is read of a bag, in the order in which it was sent."""
    try:
        from rosbags.rosbag2 import Reader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise UserError(f"reading {path} needs rosbags; install it with: pip install 'surefoot[logs]'.") from error
    types = get_typestore(Stores.ROS2_KILTED)
    try:
        with whole_bag(bag_in(path) or path) as bag, Reader(bag) as reader:
            kinds = _find_topics(reader.connections, inputs, path)
            wanted = [connection for connection in reader.connections if connection.topic in kinds]
            for connection, _, data in reader.messages(connections=wanted):
                yield Message(kinds[connection.topic], types.deserialize_cdr(data, connection.msgtype))
    except UserError:
        raise
    except Exception as error:  # rosbags and the libraries under it raise all kinds, depending on where the damage is
        raise UserError(f"{path} was cut short or damaged ({error}); copy or record it again.") from error


def _find_topics(connections: Iterable[Any], inputs: Sequence[str], path: Path) -> dict[str, str]:
    """Return which kind of message stands under which topic, whatever the namespace."""
    found: dict[str, str] = {}
    # The recorder lists topics on which nobody spoke.
    topics = {connection.topic: connection.msgtype for connection in connections if connection.msgcount}
    for kind in (*inputs, COMMANDS, DIAGNOSTICS):
        fitting = [topic for topic, type_ in topics.items() if topic.endswith(f"/{kind}") and type_ == TYPES[kind]]
        if kind == COMMANDS:
            # What the safety node lets through is what acted; without it, what the policy wanted.
            passed = [topic for topic in fitting if not topic.endswith(f"/{POLICY}/{COMMANDS}")]
            if fitting and not passed:
                warnings.warn(
                    f"{path} holds {fitting[0]} alone: what the policy wanted counts as what the robot did, which is "
                    "wrong where a safety node stood between; record what the robot's controller listened to as well.",
                    stacklevel=2,
                )
            fitting = passed or fitting
        if len(fitting) > 1:
            raise UserError(f"{path} has several topics {kind}: {', '.join(fitting)}; record one robot in a bag.")
        if not fitting and kind not in OPTIONAL:
            raise UserError(f"{path} holds no messages {kind} of type {TYPES[kind]}; record them as well.")
        found |= dict.fromkeys(fitting, kind)
    return found


@contextlib.contextmanager
def whole_bag(bag: Path) -> Iterator[Path]:
    """Yield a bag that can be read: itself, or a copy of what is whole of a file that nobody closed."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / bag.name
        journal = Path(f"{bag}-journal")
        if bag.suffix == ".mcap" and bag.is_file() and not _ends(bag):
            _copy_whole_records(bag, copy)
        elif bag.suffix == ".db3" and journal.exists():
            shutil.copy(bag, copy)
            shutil.copy(journal, folder)
            with contextlib.closing(sqlite3.connect(copy)) as database:
                database.execute("SELECT count(*) FROM sqlite_master")  # takes back what was half written
        else:
            copy = bag
        if copy != bag:
            warnings.warn(f"{bag} was not closed, as after a crash; what is whole of it was read.", stacklevel=2)
        yield copy


def _ends(bag: Path) -> bool:
    """Whether an MCAP file has its end; one that does not even begin as such is left to the reader to refuse."""
    with bag.open("rb") as file:
        if file.read(len(MCAP_MAGIC)) != MCAP_MAGIC or bag.stat().st_size < 2 * len(MCAP_MAGIC):
            return True
        file.seek(-len(MCAP_MAGIC), 2)
        return file.read() == MCAP_MAGIC


def _copy_whole_records(bag: Path, copy: Path) -> None:
    """Copy an MCAP file up to its last whole record, and end it there."""
    size = bag.stat().st_size
    with bag.open("rb") as file, copy.open("wb") as whole:
        whole.write(file.read(len(MCAP_MAGIC)))
        while len(head := file.read(MCAP_RECORD.size)) == MCAP_RECORD.size:
            length = MCAP_RECORD.unpack(head)[1]
            if length > size - file.tell():
                break
            whole.write(head + file.read(length))
        whole.write(MCAP_END)
