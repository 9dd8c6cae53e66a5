"""A bag that is written a second at a time and stays readable whatever ends it."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from adapters.datasets.rosbag import MCAP_END
from adapters.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)


class Bag:
    """A rosbag2 folder under way.

    What was added is on the disk after `flush`, in the order of its times. Where the disk does not take it, the bag
    ends with what it took before.

    Args:
        path: the folder, which must not be there yet.
        storage: form of the file in it.
        topics: message type of each topic, such as sensor_msgs/msg/Imu.

    Attributes:
        count: messages on the disk.

    Raises:
        UserError: rosbags is not installed, does not know a type, or the folder cannot be made.
    """

    def __init__(self, path: Path, storage: Literal["mcap", "sqlite3"], topics: Mapping[str, str]) -> None:
        try:
            from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise UserError("recording needs rosbags; install it with: pip install 'surefoot[logs]'.") from error
        types = get_typestore(Stores.ROS2_KILTED)
        if unknown := sorted(set(topics.values()) - set(types.fielddefs)):
            raise UserError(f"the message type {unknown[0]} cannot be recorded; leave its topic out.")
        self.path, self.count = path, 0
        self._waiting: list[tuple[int, str, bytes]] = []
        self._latest = self._size = 0
        try:
            self._writer: Any = Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
            self._writer.open()
            self._topics = {
                topic: self._writer.add_connection(topic, kind, typestore=types) for topic, kind in topics.items()
            }
            self._sync()
        except (WriterError, OSError, sqlite3.Error) as error:
            raise UserError(f"cannot record in {path}: {error}; give a new folder.") from error

    def add(self, time: int, topic: str, data: bytes) -> None:
        """Add a serialised message that was sent at `time` ns."""
        self._waiting.append((time, topic, data))

    def flush(self) -> None:
        """Write what was added.

        Raises:
            UserError: the disk does not take it; the bag is closed.
        """
        try:
            self._write()
        except (OSError, sqlite3.Error) as error:
            raise self._end(error) from error

    def close(self) -> None:
        """Write what was added, and the bag's index; nothing where the bag is closed.

        Raises:
            UserError: the disk does not take it.
        """
        if self._writer is None:
            return
        try:
            self._write()
            self._writer.close()
            self._writer = None
        except (OSError, sqlite3.Error) as error:
            raise self._end(error) from error

    def _write(self) -> None:
        """Write what waits, in order."""
        waiting, self._waiting = sorted(self._waiting, key=lambda message: message[0]), []
        for time, topic, data in waiting:
            # One that was sent before those on the disk comes after them: files in order can be read without an index.
            self._latest = max(time, self._latest)
            self._writer.write(self._topics[topic], self._latest, data)
        if waiting:
            self._sync()
            self.count += len(waiting)

    def _sync(self) -> None:
        """Bring what was written to the disk; rosbags by itself does so when a bag is closed."""
        storage = self._writer.storage
        if isinstance(getattr(storage, "conn", None), sqlite3.Connection):
            storage.conn.commit()
            return
        if storage.chunk.msgs:
            storage.close_chunk()
        storage.bio.flush()
        os.fsync(storage.bio.fileno())
        self._size = storage.bio.tell()

    def _end(self, error: Exception) -> UserError:
        """Close the bag with what is on the disk, and return what to tell a person."""
        storage, self._writer = self._writer.storage, None
        with contextlib.suppress(OSError, sqlite3.Error, ValueError):
            if isinstance(getattr(storage, "conn", None), sqlite3.Connection):
                storage.abort()
            else:
                storage.bio.raw.close()  # what the buffer still holds must not follow
                os.truncate(storage.path, self._size)
                with storage.path.open("ab") as file:
                    file.write(MCAP_END)
        full = getattr(error, "errno", None) in FULL or "disk is full" in str(error)
        reason = "the disk is full" if full else str(error)
        return UserError(f"recording in {self.path} ended: {reason}; the {self.count} messages before that are kept.")
