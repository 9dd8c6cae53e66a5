"""Logs of a robot behind LCM, as lcm-logger writes them.

The format of the event log and the two message types in it (deploy/lcm/types) are read here without LCM, which only a
robot needs. All numbers are big-endian.
"""

from __future__ import annotations

import mmap
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adapters.datasets.robot_log import LogLayout, Moment, transitions
from adapters.datasets.transitions import Metadata
from adapters.errors import UserError

# Of every event: sync word, number, time of arrival in microseconds, lengths of the channel's name and of the data.
EVENT = struct.Struct(">IqqII")
SYNC = bytes.fromhex("EDA1DA01")
OBSERVATION, COMMAND = b"SUREFOOT_OBSERVATION", b"SUREFOOT_COMMAND"
# lcm-gen's hashes of the types' fields: types that are changed have others.
FINGERPRINTS = {OBSERVATION: 0xD346B6A0EF87330B, COMMAND: 0x3A350FADD4D60FC2}
RUNNING = 2


class Observation(NamedTuple):
    """What is read of an `observation_t`."""

    stamp: int
    sequence: int
    applied: int
    names: tuple[str, ...]
    values: tuple[float, ...]


class Command(NamedTuple):
    """What is read of a `command_t`."""

    sequence: int
    joints: tuple[str, ...]
    action: tuple[float, ...]
    state: int


def is_lcm_log(path: Path) -> bool:
    """Whether a file is named as an LCM log."""
    return path.is_file() and (path.suffix == ".lcm" or path.name.startswith("lcmlog"))


def read_lcm_log(
    path: Path, control_dt: float, layout: LogLayout | None = None
) -> tuple[dict[str, np.ndarray], Metadata]:
    """Read the transitions of a robot's log; `robot_log.transitions` says which they are.

    A transition's command is the one that acted by the robot's own account, while the controller ran. A log whose last
    event is cut short, as a crash leaves it, is read up to there, with a warning.

    Args:
        path: the log.
        control_dt: s.
        layout: the terms and their order, by default those of the first messages.

    Raises:
        UserError: it is no LCM log, it is damaged, or it holds no transition.
    """
    seen: list[Observation] = []
    acted: list[Command | None] = []
    commands: dict[int, Command] = {}
    for channel, data in read_events(path):
        message = _decode(channel, data, path)
        if isinstance(message, Command):
            commands[message.sequence] = message
        # A robot that waits for its answer sends the same observation again.
        elif message is not None and not (seen and message.sequence == seen[-1].sequence):
            seen.append(message)
            acted.append(commands.get(message.applied))
    names = layout.observation_names if layout else seen[0].names if seen else ()
    joints = layout.action_names if layout else next((c.joints for c in commands.values()), ())
    moments = [
        Moment(
            observation.stamp,
            _arrange(observation.names, observation.values, names, path),
            _arrange(command.joints, command.action, joints, path) if command and command.state == RUNNING else None,
        )
        # What acted after an observation is told by the one that follows it.
        for observation, command in zip(seen, [*acted[1:], None], strict=False)
    ]
    arrays = transitions(moments, control_dt, layout.task if layout else None, path)
    return arrays, Metadata(observation_names=names, action_names=joints, source=path.name)


def read_events(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield channel and data of every event.

    Raises:
        UserError: the file is empty, damaged, or no LCM log.
    """
    if not path.stat().st_size:
        raise UserError(f"{path} is empty; record it again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = 0
        while start < len(content):
            if not SYNC.startswith(content[start : start + len(SYNC)]):
                what = f"is damaged at byte {start}" if start else "is no LCM log"
                raise UserError(f"{path} {what}; copy or record it again.")
            body = start + EVENT.size
            channel, data = EVENT.unpack_from(content, start)[3:] if body <= len(content) else (0, len(content))
            if body + channel + data > len(content):
                _warn_of_end(path, len(content) - start)
                return
            start = body + channel + data
            yield content[body : body + channel], content[body + channel : start]


def _warn_of_end(path: Path, left: int) -> None:
    warnings.warn(f"{path} was cut short: its last {left} bytes are part of an event and were left out.", stacklevel=2)


def _decode(channel: bytes, data: bytes, path: Path) -> Observation | Command | None:
    """Return the message of an event, None where it is none of the two.

    Anyone may send anything on a channel: what cannot be read was no message to the robot either.
    """
    if channel not in FINGERPRINTS or len(data) < 8:
        return None
    fields = _Fields(data)
    if fields.take("Q") != (FINGERPRINTS[channel],):
        raise UserError(
            f"{path}: the messages on {channel.decode()} are of another type than this Surefoot's; read the log with "
            "the version that recorded it."
        )
    try:
        return fields.observation() if channel == OBSERVATION else fields.command()
    except (struct.error, ValueError):
        return None


class _Fields:
    """Takes a message's fields off its front; struct.error where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """Return the numbers of a form of `struct`."""
        values = struct.unpack_from(f">{form}", self._data, self._at)
        self._at += struct.calcsize(f">{form}")
        return values

    def string(self) -> str:
        """Return a string, which has its length before it and a zero behind."""
        (text,) = self.take(f"{self.take('I')[0]}s")
        return text[:-1].decode()

    def named(self) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Return names and numbers, as many of both."""
        (size,) = self.take("i")
        return tuple(self.string() for _ in range(size)), self.take(f"{size}d")

    def observation(self) -> Observation:
        """Return the fields after the fingerprint of an observation_t."""
        stamp, sequence, applied = self.take("qqq")
        return Observation(stamp, sequence, applied, *self.named())

    def command(self) -> Command:
        """Return the fields after the fingerprint of a command_t."""
        _, sequence, _ = self.take("qqq")
        self.string()
        joints, action = self.named()
        return Command(sequence, joints, action, *self.take("b"))


def _arrange(names: Sequence[str], values: Sequence[float], wanted: Sequence[str], path: Path) -> np.ndarray:
    """Return the values in the order of `wanted`."""
    if tuple(names) == tuple(wanted):
        return np.array(values)
    by_name = dict(zip(names, values, strict=True))
    if missing := [name for name in wanted if name not in by_name]:
        raise UserError(f"{path} has no '{missing[0]}', only {', '.join(names)}; give the robot that it is from.")
    return np.array([by_name[name] for name in wanted])
