"""A bag under way: in order, on the disk after each flush, and readable where the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from rosbags.rosbag2 import Reader

from adapters.datasets.rosbag import bag_in, whole_bag
from adapters.errors import UserError
from deploy.ros2.bag import Bag

TOPICS = {"/commands": "std_msgs/msg/Float64MultiArray", "/imu": "sensor_msgs/msg/Imu"}
STORAGES = ("mcap", "sqlite3")


def messages(path: Path) -> list[tuple[int, str, bytes]]:
    """Read a bag's messages, of one without its end those before."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was not closed")
        with whole_bag(bag_in(path) or path) as bag, Reader(bag) as reader:
            return [(time, connection.topic, bytes(data)) for connection, time, data in reader.messages()]


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("storage", STORAGES)
def test_messages_are_written_in_the_order_of_their_times(tmp_path: Path, storage: str) -> None:
    bag = Bag(tmp_path / "bag", storage, TOPICS)
    for time, data in ((30, b"c"), (10, b"a"), (20, b"b")):
        bag.add(time, "/imu", data)
    bag.flush()
    bag.add(40, "/commands", b"e")
    bag.add(25, "/imu", b"d")  # sent before what is already written, so it comes right after that
    bag.close()
    bag.close()
    expected = [(10, "/imu", b"a"), (20, "/imu", b"b"), (30, "/imu", b"c"), (30, "/imu", b"d"), (40, "/commands", b"e")]
    assert messages(tmp_path / "bag") == expected
    assert bag.count == 5
    assert (tmp_path / "bag" / "metadata.yaml").exists()


@pytest.mark.parametrize("storage", STORAGES)
def test_bag_without_a_message_is_whole(tmp_path: Path, storage: str) -> None:
    bag = Bag(tmp_path / "bag", storage, TOPICS)
    bag.flush()
    bag.close()
    assert messages(tmp_path / "bag") == []


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("spare", [0, 60, 500, 9_000])
def test_full_disk_ends_the_bag_with_what_it_took_before(tmp_path: Path, storage: str, spare: int) -> None:
    bag = Bag(tmp_path / "bag", storage, TOPICS)
    written = [(k, "/imu", bytes([k]) * 3000) for k in range(60)]
    for message in written[:20]:
        bag.add(*message)
    bag.flush()
    file = next(file for file in (tmp_path / "bag").iterdir() if file.suffix in (".mcap", ".db3"))
    with file_size_limit(file.stat().st_size + spare), pytest.raises(UserError) as caught:
        for k, message in enumerate(written[20:], start=1):
            bag.add(*message)
            if k % 10 == 0:
                bag.flush()
    assert str(caught.value).startswith(f"recording in {tmp_path / 'bag'} ended: ")
    assert str(caught.value).endswith("; the 20 messages before that are kept.")
    assert messages(tmp_path / "bag") == written[:20]
    bag.close()  # nothing is left to do


@pytest.mark.parametrize("storage", STORAGES)
def test_disk_that_is_full_at_the_end_costs_the_index_alone(tmp_path: Path, storage: str) -> None:
    bag = Bag(tmp_path / "bag", storage, TOPICS)
    for k in range(20):
        bag.add(k, "/imu", b"x" * 100)
    bag.flush()
    with file_size_limit(100), pytest.raises(UserError, match="the 20 messages before that are kept"):
        bag.close()
    assert len(messages(tmp_path / "bag")) == 20


def test_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = Bag(tmp_path / "bag", "mcap", TOPICS)
    bag.add(1, "/imu", b"x")
    bag.flush()
    bag.add(2, "/imu", b"y")
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match="ended: the disk is full; the 1 messages before that are kept"):
        bag.flush()
    monkeypatch.undo()
    assert [data for _, _, data in messages(tmp_path / "bag")] == [b"x"]


def test_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot record in .*exists already.*; give a new folder\."):
        Bag(tmp_path, "mcap", TOPICS)
    assert not list(tmp_path.iterdir())


def test_type_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the message type my_msgs/msg/Whisker cannot be recorded"):
        Bag(tmp_path / "bag", "mcap", {"/whiskers": "my_msgs/msg/Whisker"})
    assert not (tmp_path / "bag").exists()
