"""A network of the test's own, a runner as a real process, and the robot's end of the channels in the test's hands."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leg import robot

from deploy.lcm.channels import COMMAND, OBSERVATION, connect, decode, handle
from deploy.lcm.generated.surefoot import command_t, observation_t

# Longest wait for anything that has to happen; a machine may be busy.
PATIENCE = 60.0


@pytest.fixture
def url() -> str:
    """Return a network that no other test and no other process uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        return f"udpm://239.255.76.67:{free.getsockname()[1]}?ttl=0"


class Peer:
    """Whoever talks to a runner: sends any observation and keeps every command."""

    def __init__(self, url: str) -> None:
        self.link = connect(url)
        self.commands: list[Any] = []
        self.link.subscribe(COMMAND, lambda _, data: self.commands.append(decode(command_t, data)))
        self.names = list(robot().observation_names)

    def send(
        self, sequence: int, values: Sequence[float] | np.ndarray, stamp: int | None = None, names: Sequence[str] = ()
    ) -> None:
        """Send an observation; `stamp` in ns, by default now."""
        message = observation_t()
        message.stamp, message.sequence = time.time_ns() if stamp is None else stamp, sequence
        message.names, message.values = list(names or self.names), list(values)
        message.size = len(message.values)
        self.link.publish(OBSERVATION, message.encode())

    def answer(self, sequence: int) -> Any:
        """Return the command that answers an observation."""
        return self.wait_for(lambda command: command.observation == sequence)

    def wait_for(self, condition: Callable[[Any], bool]) -> Any:
        """Return the next command that fulfils a condition; the ones before it are left out."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            while self.commands:
                command = self.commands.pop(0)
                if condition(command):
                    return command
            handle(self.link, 0.1)
        raise AssertionError(f"no such command within {PATIENCE} s")

    def listen(self, seconds: float) -> list[Any]:
        """Return the commands of the next so many seconds, and those that were left."""
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            handle(self.link, rest)
        commands, self.commands = self.commands, []
        return commands


class Process:
    """A runner process and what it says."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "deploy.lcm.runner", *arguments], stdout=output, stderr=subprocess.STDOUT
            )

    def says(self, text: str) -> str:
        """Wait until it has said something, and return all it said."""
        end = time.monotonic() + PATIENCE
        while text not in (said := self.log.read_text()):
            assert time.monotonic() < end, f"it did not say '{text}' but: {said}"
            assert self.child.poll() is None or text in self.log.read_text(), f"it ended and said: {said}"
            time.sleep(0.01)
        return said

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        self.child.send_signal(how)
        return self.child.wait(PATIENCE)


@pytest.fixture
def peer(url: str) -> Peer:
    """Return the test's own end of the channels."""
    return Peer(url)


@pytest.fixture
def start_runner(url: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that starts a runner and waits until it listens: `start_runner(bundle, "--timeout", "5")`."""
    processes: list[Process] = []

    def start(bundle: Path, *arguments: str) -> Process:
        log = tmp_path / f"runner{len(processes)}.log"
        processes.append(Process([str(bundle), "--url", url, *arguments], log))
        processes[-1].says("runner: ready")
        return processes[-1]

    yield start
    for process in processes:
        process.child.kill()
        process.child.wait()
