"""Policy and safety node side by side, and what becomes of the robot when a process ends."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import numpy as np
import pytest
from hardware import MAPS, PERIOD, ROOT, START, Hardware, Process, in_time, stood, write_leg
from lifecycle_msgs.msg import Transition
from std_msgs.msg import Float64MultiArray

from deploy.ros2.node import LATEST

REST = np.zeros(2)
TIMEOUT = 0.3
DEFAULTS = ROOT / "deploy" / "ros2" / "config" / "robot.yaml"


def test_a_killed_policy_is_followed_by_the_safe_command(bundle: Path, tmp_path: Path) -> None:
    assert in_time(lambda: kill_the_policy(bundle, tmp_path), TIMEOUT + 2 * PERIOD)


def kill_the_policy(bundle: Path, tmp_path: Path) -> float:
    """Return how long the last command of a policy stands that is killed, in s."""
    with (
        Hardware() as hardware,  # one of its own, because DDS takes a killed process for alive for a while
        Process(tmp_path / "policy", "policy_node", bundle=bundle, use_sim_time=True, **MAPS) as policy,
        Process(tmp_path / "safety", "safety_node", bundle=bundle, timeout=TIMEOUT),
    ):
        hardware.meet()
        hardware.wait(lambda: hardware.passed, "the safe command of a safety node that hears nothing")
        steps = itertools.count()

        def driven() -> bool:
            command = hardware.answer(PERIOD * next(steps), START)
            hardware.spin(0.01)
            return (hardware.passed[-1].action == command).all()

        hardware.wait(driven, "a command that passes")
        policy.end(signal.SIGKILL)
        hardware.wait_for_rest(hardware.passed)
        return stood(hardware.passed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_brings_the_robot_to_rest(hardware: Hardware, bundle: Path, tmp_path: Path, number: int) -> None:
    hardware.commands.clear()
    with Process(tmp_path / "log", "policy_node", bundle=bundle, use_sim_time=True, **MAPS) as policy:
        hardware.meet()
        assert (hardware.answer(0.0, START) != REST).all()
        assert policy.end(number) == 0
    hardware.wait(lambda: len(hardware.commands) == 2, "the safe command")
    assert (hardware.commands[-1].action == REST).all()


def test_a_safety_node_that_ends_stops_the_robot(hardware: Hardware, bundle: Path, tmp_path: Path) -> None:
    policy = hardware.node.create_publisher(Float64MultiArray, "policy/commands", LATEST)
    with Process(tmp_path / "log", "safety_node", bundle=bundle, timeout=60.0) as safety:
        hardware.wait(policy.get_subscription_count, "the safety node")
        hardware.passed.clear()
        hardware.spin(3 * PERIOD)  # so long it says nothing, lest it stops a robot that another one drives
        assert not hardware.passed

        def passed() -> bool:
            policy.publish(Float64MultiArray(data=[0.7, -0.3]))
            hardware.spin(0.02)
            return bool(hardware.passed)

        hardware.wait(passed, "the command")
        assert (hardware.passed[0].action != REST).all()
        assert safety.end() == 0
    hardware.wait(lambda: (hardware.passed[-1].action == REST).all(), "the safe command")
    hardware.node.destroy_publisher(policy)


def test_under_a_position_law_the_robot_stays_where_it_is(hardware: Hardware, tmp_path: Path) -> None:
    bundle, pose = write_leg(tmp_path / "leg.bundle", law="position"), np.array([0.2, -0.4])
    with Process(tmp_path / "log", "safety_node", bundle=bundle, joint_map=MAPS["joint_map"]):
        hardware.wait(lambda: hardware.outputs["joint_states"].get_subscription_count(), "the safety node")
        hardware.passed.clear()

        def held() -> bool:
            hardware.observe(0.0, np.array([0, *pose, 0, 0]))
            hardware.spin(0.05)
            return bool(hardware.passed)

        hardware.wait(held, "the safe command")
    assert all((command.action == pose).all() for command in hardware.passed)


def test_a_node_that_refuses_its_bundle_waits_for_a_better_one(
    hardware: Hardware, bundle: Path, tmp_path: Path
) -> None:
    options = ("--params-file", DEFAULTS)
    with Process(tmp_path / "log", "policy_node", *options, bundle=tmp_path / "nowhere", **MAPS) as policy:
        assert hardware.status("policy", text="there is no bundle").level == 2
        assert hardware.lifecycle() == "unconfigured"
        assert hardware.configure(bundle=str(bundle))
        assert hardware.transition(Transition.TRANSITION_ACTIVATE)
        assert policy.end() == 0


def test_a_safety_node_without_a_robot_ends_with_one_line(tmp_path: Path) -> None:
    with Process(tmp_path / "log", "safety_node") as safety:
        assert safety.wait() == 2
    assert (tmp_path / "log").read_text().splitlines() == [
        "the safety node has to know the robot; set the parameter bundle or robot."
    ]
