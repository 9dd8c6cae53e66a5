"""Faults in a stack of real processes over real transports: the robot gets no bad command, and is safe in time."""

from __future__ import annotations

import contextlib
import io
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deploy.bundle import Bundle
from sim.fault_injection import (
    FAULTS,
    Fault,
    Row,
    _longest_hold,
    delayed,
    doubled,
    dropped,
    fault_table,
    inject,
    inject_all,
    reordered,
    swapped,
)
from sim.fault_judge import DRIVER_TIMEOUT, MARGIN, TIMEOUT, Input, Judge
from sim.fault_plant import Leg, describe_leg, write_leg
from sim.fault_rig import Rig

# A slow robot: its timeouts are long enough that a busy machine is hardly mistaken for a fault.
HZ = 10.0
# s by which a command may be older than it should be, and ms within which a robot is safe, on the busiest machine.
SLACK, GENEROUS = 2.0, 5000.0
BY_NAME = {fault.name: fault for fault in FAULTS}
LCM_SAFE = ["policy killed", "robot's clock 5 s ahead", "NaN in observations", "observations of other joints"]
LCM_SAFE += ["e-stop in the soft start", "commands altered: beyond limits", "plant killed"]
# The last two have the policy's commands take a detour, for which it is started again.
ROS2_SAFE = ["policy killed", "observations delayed", "values beyond limits in observations"]
ROS2_SAFE += ["commands delayed", "commands altered: NaN"]
# What it takes to go on, where that does not depend on how busy the machine is.
RECOVERY = {
    "policy killed": "after a restart",
    "plant killed": "after a restart",
    "e-stop in the soft start": "after clear",
}


@pytest.fixture(scope="module")
def ros2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    pytest.importorskip("rclpy")
    with Rig("ros2", tmp_path_factory.mktemp("ros2"), HZ, SLACK) as rig:
        yield rig


@pytest.fixture(scope="module")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    pytest.importorskip("lcm")
    with Rig("lcm", tmp_path_factory.mktemp("lcm"), HZ, SLACK) as rig:
        yield rig


def check_safe(rig: Rig, name: str) -> None:
    row = inject(rig, BY_NAME[name])
    assert (row.bad, row.transport) == (0, rig.transport)
    assert row.commands > 0
    assert row.safe_ms is not None and row.safe_ms < GENEROUS
    assert row.held_ms < GENEROUS
    assert row.recovery.startswith(RECOVERY.get(name, ""))


def check_unharmed(rig: Rig, name: str) -> None:
    row = inject(rig, BY_NAME[name])
    assert (row.bad, row.recovery) == (0, "by itself")
    # The policy drove the robot all along, as nearly as a busy machine lets it.
    assert row.commands >= 10


@pytest.mark.parametrize("name", LCM_SAFE)
def test_lcm_robot_gets_the_safe_command(lcm: Rig, name: str) -> None:
    check_safe(lcm, name)


@pytest.mark.parametrize("name", ["second source: good commands", "bundle swapped on disk"])
def test_lcm_robot_is_unharmed(lcm: Rig, name: str) -> None:
    check_unharmed(lcm, name)


@pytest.mark.parametrize("name", ["second source: infinity"])
def test_ros2_robot_is_unharmed(ros2: Rig, name: str) -> None:
    check_unharmed(ros2, name)


def test_killed_safety_node_leaves_the_robots_own_driver(ros2: Rig) -> None:
    row = inject(ros2, BY_NAME["safety killed"])
    assert (row.bad, row.recovery) == (0, "after a restart")
    # Nobody sends the safe command; the driver lets go when it has heard nothing for six periods.
    assert row.held_ms >= 1e3 * DRIVER_TIMEOUT / HZ
    assert row.safe_ms is not None and row.safe_ms < GENEROUS


@pytest.mark.parametrize("name", ROS2_SAFE)
def test_ros2_robot_gets_the_safe_command(ros2: Rig, name: str) -> None:
    check_safe(ros2, name)


def test_bad_commands_are_noticed(lcm: Rig) -> None:
    @contextlib.contextmanager
    def replaced(rig: Rig) -> Iterator[None]:
        with swapped(rig):
            rig.children.signal("policy", signal.SIGKILL)
            rig.start("policy")
            yield
        rig.children.signal("policy", signal.SIGKILL)

    row = inject(lcm, Fault("another policy drives", act=replaced, periods=40))
    assert row.bad >= 5
    assert row.recovery == "after a restart"


def test_every_fault_of_a_transport_has_a_row() -> None:
    pytest.importorskip("lcm")
    moves: list[tuple[int, str]] = []
    chosen = [BY_NAME[name] for name in ("second source: NaN", "safety killed", "commands reordered")]
    rows = inject_all(["lcm"], lambda *move: moves.append(move), chosen)
    # Over LCM there is no safety node.
    assert [row.fault for row in rows] == ["second source: NaN", "commands reordered"]
    assert moves == [(0, "lcm: second source: NaN"), (1, "lcm: commands reordered")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundle") / "leg.bundle"
    write_leg(path, hz=50.0)
    return Bundle.load(path)


OBSERVED = np.array([0.1, 0.5, -0.4, 0.2, 0.0])
# 2 tanh(obs GAIN): hip -0.05 - 0.40 - 0.02 = -0.47, knee 0.02 + 0.28 = 0.30.
ANSWER = np.array([2 * math.tanh(-0.47), 2 * math.tanh(0.3)])


@pytest.mark.parametrize(
    ("numbers", "age", "kind"),
    [
        (ANSWER, 0.02, "running"),
        (0.3 * ANSWER, 0.02, "starting"),
        (np.zeros(2), 0.02, "safe"),
        (np.zeros(2), 9.0, "safe"),
        # Two timeouts of three control periods and two periods are 0.16 s.
        (ANSWER, 0.159, "running"),
        (ANSWER, 0.161, "bad"),
        (ANSWER, -0.01, "bad"),
        (1.01 * ANSWER, 0.02, "bad"),
        (-ANSWER, 0.02, "bad"),
        (np.array([ANSWER[0], 0.0]), 0.02, "bad"),
        (ANSWER[:1], 0.02, "bad"),
        (np.array([np.nan, 0.0]), 0.02, "bad"),
        (np.array([np.inf, 0.0]), 0.02, "bad"),
    ],
)
def test_judge(bundle: Bundle, numbers: np.ndarray, age: float, kind: str) -> None:
    judge = Judge(bundle)
    judge.observed(100.0, OBSERVED)
    judge.observed(1000.0, OBSERVED)
    assert judge.kind(Input(100.0 + age, numbers)) == kind


def test_judge_allows_a_busy_machine_its_slack(bundle: Bundle) -> None:
    judge = Judge(bundle, slack=2.0)
    judge.observed(100.0, OBSERVED)
    assert [judge.kind(Input(100.0 + age, ANSWER)) for age in (2.159, 2.161)] == ["running", "bad"]


def test_longest_hold_counts_one_command_that_comes_again() -> None:
    one, other, safe = np.array([1.0, 0.0]), np.array([2.0, 0.0]), np.zeros(2)
    times = [(0.0, one), (0.1, other), (0.2, other), (0.5, safe), (2.0, safe), (2.5, one), (2.6, other)]
    inputs = [Input(time, numbers) for time, numbers in times]
    kinds = ["safe" if numbers is safe else "running" for _, numbers in times]
    # The other one stood from 0.1 to 0.5.
    assert _longest_hold(inputs, kinds) == pytest.approx(0.4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("delays", "sent"),
    [(dropped, 12), (delayed, 36), (doubled, 72), (reordered, 36)],
)
def test_what_becomes_of_36_messages(delays: Callable[[int], list[float]], sent: int) -> None:
    assert sum(len(delays(number)) for number in range(36)) == sent


def test_delays_do_what_they_are_called() -> None:
    lost = "".join("." if dropped(number) else "x" for number in range(36))
    assert max(map(len, lost.split("."))) > TIMEOUT + MARGIN
    # Later than both timeouts of policy and safety filter.
    assert delayed(0)[0] > 2 * TIMEOUT + MARGIN
    arrivals = [number + delay for number in range(10) for delay in reordered(number)]
    assert arrivals != sorted(arrivals)


def test_leg_keeps_moving_within_its_limits() -> None:
    robot = describe_leg(50.0)
    leg = Leg(robot)
    seen = []
    for _ in range(2000):
        leg.step(np.clip(np.random.default_rng(leg.steps).normal(size=2), -2, 2))
        seen.append(leg.observe())
    assert np.abs(np.array(seen)[:, 1:3]).max() < 3.0
    assert len(np.unique(seen, axis=0)) == 2000


def test_table_shows_a_miss() -> None:
    row = Row("safety killed", "ros2", None, None, 1600.0, 8, 1, "after a restart", False)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(fault_table([asdict(row)]))
    text = console.export_text()
    assert "1,600 LATE" in text and "1 of 8" in text and "after a restart" in text


def test_every_fault_has_its_own_name() -> None:
    assert len(BY_NAME) == len(FAULTS)


def test_rig_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("lcm")
    rig = Rig("lcm", tmp_path, HZ)
    (rig.bundle / "policy.onnx").unlink()
    with pytest.raises(Exception, match=r"the policy process ended with exit code 2 .*policy.onnx"), rig:
        raise AssertionError("it started")
    assert not rig.children.alive("policy")
