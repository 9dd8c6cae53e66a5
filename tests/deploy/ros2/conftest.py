"""What the tests of the ROS 2 package share: a ROS domain of their own, the leg's bundle, and its hardware."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hardware import Hardware, write_leg

from deploy.ros2.node import ENVIRONMENT


def free_domain() -> int:
    """A ROS domain that nobody on this host is in; the search begins at a place of this process's own."""
    for domain in (1 + (os.getpid() + offset) % 100 for offset in range(100)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
            try:
                # By the RTPS standard the first participant of a domain listens there.
                port.bind(("", 7410 + 250 * domain))
            except OSError:
                continue
            return domain
    raise RuntimeError("no ROS domain is free")


@pytest.fixture(scope="module", autouse=True)
def ros_environment() -> Iterator[None]:
    """Nodes of this process and of its children see one another and nobody else."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "ROS_DOMAIN_ID": str(free_domain())}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_leg(tmp_path_factory.mktemp("bundle") / "leg.bundle")


@pytest.fixture(scope="module")
def hardware(ros_environment: None) -> Iterator[Hardware]:
    with Hardware() as made:
        yield made
