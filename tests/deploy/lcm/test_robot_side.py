"""The robot's end of the channels: it drives on what is good, and is safe whatever else comes, or does not."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from leg import DT, robot

from deploy.lcm.channels import COMMAND, NS, OBSERVATION, ORDER, connect, decode, handle
from deploy.lcm.generated.surefoot import command_t, observation_t, order_t
from deploy.lcm.robot import RobotSide
from deploy.watchdog import Verdict

if TYPE_CHECKING:
    from conftest import Process

OBSERVED = np.array([0.1, -0.2, 0.3, -0.4, 0.5])
TIMEOUT = 3 * DT


class Driver:
    """A robot's side with a clock that the test sets, and whatever sends it commands."""

    def __init__(self, url: str, law: str = "effort") -> None:
        self.now = 100 * NS
        self.side = RobotSide(robot(law), connect(url), TIMEOUT, lambda: self.now)
        self.sender = connect(url)
        self.seen: list[Any] = []
        self.sender.subscribe(OBSERVATION, lambda _, data: self.seen.append(decode(observation_t, data)))

    def command(self, action: list[float], sequence: int = 0, **changes: Any) -> None:
        """Send a command, by default one made now, and let the robot's side take it."""
        message = command_t()
        message.stamp, message.sequence, message.observation, message.source = self.now, sequence, -1, "runner"
        message.joints, message.action, message.size = ["hip", "knee"][: len(action)], action, len(action)
        for name, value in changes.items():
            setattr(message, name, value)
        self.publish(COMMAND, message.encode())

    def publish(self, channel: str, data: bytes) -> None:
        """Send bytes and let the robot's side take them."""
        self.sender.publish(channel, data)
        assert handle(self.side.link, 30.0)

    def observation(self) -> Any:
        """Send an observation and return it as it arrives."""
        self.side.send(OBSERVED)
        assert handle(self.sender, 30.0)
        return self.seen.pop()


@pytest.fixture
def driver(url: str) -> Driver:
    return Driver(url)


def test_good_command_acts_and_the_next_observation_says_so(driver: Driver) -> None:
    first = driver.observation()
    assert first.applied == -1
    driver.command([0.5, -0.7], sequence=11, joints=["knee", "hip"])
    output = driver.side.output()
    assert (output.passing, output.command.tolist()) == (True, [-0.7, 0.5])
    message = driver.observation()
    assert (message.stamp, message.sequence, message.applied) == (100 * NS, first.sequence + 1, 11)
    assert dict(zip(message.names, message.values, strict=True)) == dict(
        zip(robot().observation_names, OBSERVED, strict=True)
    )


def test_robot_that_starts_again_counts_on(url: str) -> None:
    assert Driver(url).observation().sequence < Driver(url).observation().sequence


def test_answer_is_told_from_other_commands(driver: Driver) -> None:
    sequence = driver.observation().sequence
    driver.command([0.1, 0.1], observation=-1)
    assert not driver.side.answered
    driver.now += NS // 100
    driver.command([0.1, 0.1], observation=sequence)
    assert driver.side.answered
    driver.observation()
    assert not driver.side.answered


def test_command_acts_until_it_is_too_old(driver: Driver) -> None:
    driver.command([0.5, 0.5])
    driver.now += round(0.99 * TIMEOUT * NS)
    assert driver.side.output().passing
    driver.now += round(0.02 * TIMEOUT * NS)
    output = driver.side.output()
    assert (output.passing, output.reason, output.command.tolist()) == (False, Verdict.STALE, [0.0, 0.0])
    assert driver.observation().applied == -1


@pytest.mark.parametrize(
    ("action", "changes", "verdict"),
    [
        ([np.nan, 0.5], {}, Verdict.NOT_FINITE),
        ([np.inf, 0.5], {}, Verdict.NOT_FINITE),
        ([0.5], {}, Verdict.NOT_FINITE),
        ([0.5, 0.5], {"joints": ["hip", "ankle"]}, Verdict.NOT_FINITE),
        ([0.5, 3.5], {}, Verdict.RANGE),
        ([0.5, 0.5], {"source": "somebody else"}, Verdict.SOURCE),
        ([0.9, 0.9], {"stamp": 100 * NS}, Verdict.REPEATED),
        ([0.9, 0.9], {"stamp": 99 * NS}, Verdict.REORDERED),
        ([0.9, 0.9], {"stamp": 200 * NS}, Verdict.FUTURE),
    ],
)
def test_bad_command_never_acts(driver: Driver, action: list[float], changes: dict[str, Any], verdict: Verdict) -> None:
    driver.command([0.2, 0.2])
    assert driver.side.output().command.tolist() == [0.2, 0.2]
    driver.now += NS // 100
    driver.command(action, sequence=1, **changes)
    assert driver.side.filter.counts[verdict] == 1
    assert driver.side.output().command.tolist() in ([0.0, 0.0], [0.2, 0.2])
    driver.now += NS // 100
    driver.command([0.3, 0.3], sequence=2)
    assert driver.side.output().command.tolist() == [0.3, 0.3]


@pytest.mark.parametrize("data", [b"", b"no command", b"\x00" * 200, order_t().encode()])
def test_bytes_that_are_no_command_change_nothing(driver: Driver, data: bytes) -> None:
    driver.command([0.2, 0.2])
    driver.publish(COMMAND, data)
    driver.publish(ORDER, data if len(data) != len(order_t().encode()) else b"")
    assert driver.side.output().command.tolist() == [0.2, 0.2]


def test_orders_reach_the_robots_side_itself(driver: Driver) -> None:
    message = order_t()
    driver.command([0.2, 0.2])
    for what, passing in ((order_t.STOP, False), (order_t.START, False), (order_t.CLEAR, True)):
        message.what = what
        driver.publish(ORDER, message.encode())
        assert driver.side.output().passing is passing


def test_under_a_position_law_the_safe_command_is_the_pose_last_seen(url: str) -> None:
    driver = Driver(url, law="position")
    assert driver.side.output().command is None
    driver.observation()
    assert driver.side.output().command.tolist() == [-0.2, 0.3]


def test_killed_runner_leaves_the_robot_with_the_safe_command(
    write: Callable[..., Path], url: str, start_runner: Callable[..., Process]
) -> None:
    side = RobotSide(robot(), connect(url), timeout=0.2)
    runner = start_runner(write(), "--timeout", "30")
    end = time.monotonic() + 60
    while not side.output().passing and time.monotonic() < end:
        side.send(OBSERVED)
        side.listen(DT, until_answered=True)
    assert np.any(side.output().command)
    runner.stop(signal.SIGKILL)
    side.listen(0.21)
    output = side.output()
    assert (output.reason, output.command.tolist()) == (Verdict.STALE, [0.0, 0.0])
    # Another one takes its place, from another process.
    start_runner(write(), "--timeout", "30")
    while not side.output().passing and time.monotonic() < end:
        side.send(OBSERVED)
        side.listen(DT, until_answered=True)
    assert side.output().passing
