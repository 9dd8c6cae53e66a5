"""Plant, policy and safety as processes that ROS 2 connects, against the same loop in one process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from described import describe

from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.controller import Controller
from sim import stack
from sim.environments import make_environment
from sim.mujoco_plant import find_world
from sim.rollout import run_episodes
from sim.stack import StackSettings, run_ros2

ROOT = Path(stack.__file__).resolve().parent.parent
# A busy machine takes its time to start three processes.
TIMEOUT = 120.0


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return describe(make_bundle())


def settings(bundle: Path, **changes: Any) -> StackSettings:
    return StackSettings(bundle=bundle, output=bundle.parent / "run", **{"steps": 40, **changes})


@pytest.mark.parametrize("adapt", [True, False])
def test_lock_step_is_the_loop_in_process_bit_for_bit(bundle: Path, adapt: bool) -> None:
    moves: list[int] = []
    outcome = run_ros2(
        settings(bundle, suite="joint-failure", world="dead-ffoot", at_step=25, seed=3, adapt=adapt), moves.append
    )
    expected = run_episodes(
        make_environment("halfcheetah"),
        [find_world("joint-failure:dead-ffoot", at_step=25)],
        lambda plant: Controller(Bundle.load(bundle), "inferred" if adapt else "nominal", batch=(len(plant),)),
        episodes=1,
        seed=3,
        steps=40,
    )
    assert (outcome.steps, outcome.episode_return) == (40, expected.returns[0, 0])
    with np.load(outcome.record) as record:
        np.testing.assert_array_equal(record["rewards"], expected.rewards[0, 0])
    assert moves == sorted(moves)
    assert "dead-ffoot" in (bundle.parent / "run" / "plant.log").read_text()


def test_adaptation_makes_a_difference(bundle: Path) -> None:
    # Otherwise the test above would hold of a policy that is never told its context.
    returns = [
        run_episodes(
            make_environment("halfcheetah"),
            [find_world("joint-failure:dead-ffoot", at_step=25)],
            lambda plant, context=context: Controller(Bundle.load(bundle), context, batch=(len(plant),)),
            episodes=1,
            seed=3,
            steps=40,
        ).returns.item()
        for context in ("inferred", "nominal")
    ]
    assert returns[0] != returns[1]


def test_messages_are_recorded_on_request(bundle: Path) -> None:
    pytest.importorskip("rosbags")
    for _ in range(2):  # a later run takes the place of an earlier one
        run_ros2(settings(bundle, log=True))
    output = bundle.parent / "run"
    assert (output / "bag" / "metadata.yaml").exists()
    recorded = re.findall(r"recorded (\d+) messages", (output / "recorder.log").read_text())
    # 40 steps of joint_states, imu, odom, policy/commands, policy/context and commands, and some diagnostics.
    assert int(recorded[0]) > 200


def test_real_time_keeps_to_the_clock(bundle: Path) -> None:
    outcome = run_ros2(settings(bundle, realtime=True, steps=20))
    assert outcome.steps == 20
    first, *_, last = [
        float(line.split()[0])
        for line in (bundle.parent / "run" / "plant.log").read_text().splitlines()
        if "ready" in line or "steps 20" in line
    ]
    # There are 19 control periods of 50 ms between the first step and the last; the first may have been late.
    assert last - first >= 0.85


def test_dry_run_sends_no_command_of_the_policy(bundle: Path) -> None:
    outcome = run_ros2(settings(bundle, realtime=True, dry_run=True, steps=10))
    with np.load(outcome.record) as record:
        # What the robot gets are the safe commands of the safety filter, which hears nothing.
        assert (record["actions"] == 0).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dry_run": True}, "add realtime=true"),
        ({"world": "dead-ffoot"}, "go together"),
        (
            {"suite": "joint-failure", "world": "dead-ffoot", "at_step": 5000, "steps": 100},
            "at_step 5000 is past the episode's 100 steps",
        ),
        ({"suite": "joint-failure", "world": "dead-tail"}, "has no world 'dead-tail'"),
    ],
)
def test_setting_that_makes_no_sense_is_refused_before_anything_starts(
    bundle: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        run_ros2(settings(bundle, **changes))
    assert not (bundle.parent / "run").exists()


def test_policy_that_cannot_read_the_robot_is_reported(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError, match=r"the policy process does not start; .*'rootz_position' \(other\) cannot be read"
    ):
        run_ros2(settings(make_bundle()))


class Running:
    """`run_ros2` for ever, in a process of its own, with a process id for each child."""

    def __init__(self, bundle: Path) -> None:
        self.output = bundle.parent / "run"
        code = (
            # Whoever runs the tests in the background has them, and what they start, ignore SIGINT.
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from pathlib import Path; from sim.stack import StackSettings, run_ros2\n"
            f"run_ros2(StackSettings(bundle=Path({str(bundle)!r}), output=Path({str(self.output)!r}), steps=10**9))"
        )
        self.parent = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.children: dict[str, int] = {}

    def __enter__(self) -> Running:
        try:
            self.wait_for(lambda: "commands refused" in self.log("plant") or self.parent.poll() is not None)
            self.children = {name: pid for pid, name in self.find().items()}
            assert set(self.children) == {"plant", "policy", "safety"}, self.log("plant")
        except AssertionError:
            self.parent.kill()
            raise
        return self

    def log(self, name: str) -> str:
        path = self.output / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def find(self) -> dict[int, str]:
        """The processes that were given this run's parameters."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has just ended
            if str(self.output / "parameters.yaml").encode() in words:
                module = words[words.index(b"-m") + 1].decode()
                found[int(process.name)] = next(name for name, (m, _) in stack.PROCESSES.items() if m == module)
        return found

    @staticmethod
    def wait_for(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the last line of what was said."""
        _, said = self.parent.communicate(timeout=TIMEOUT)
        return self.parent.returncode, said.strip().splitlines()[-1] if said.strip() else ""

    def __exit__(self, *_: Any) -> None:
        self.parent.kill()
        self.parent.wait()
        self.wait_for(lambda: not self.find())  # nobody is left behind


@pytest.mark.parametrize("name", ["policy", "safety", "plant"])
def test_child_that_is_killed_is_reported_and_nobody_left(bundle: Path, name: str) -> None:
    with Running(bundle) as running:
        os.kill(running.children[name], signal.SIGKILL)
        code, last = running.end()
        assert not running.find()
    assert code != 0
    assert f"the {name} process was ended by SIGKILL while it was needed; its log {running.output}/{name}.log" in last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_stops_policy_safety_and_plant_in_that_order(bundle: Path, number: signal.Signals) -> None:
    with Running(bundle) as running:
        running.parent.send_signal(number)
        code, last = running.end()
        assert not running.find()
    assert (code != 0, last) == (True, "KeyboardInterrupt")
    # Each says something when it ends; the plant's last word counts the steps.
    ends = [float(running.log(name).strip().splitlines()[-1].split()[0]) for name in ("policy", "safety", "plant")]
    assert ends == sorted(ends)
    assert (running.output / "episode.npz").exists()


def test_nobody_outlives_a_stack_that_is_killed(bundle: Path) -> None:
    with Running(bundle) as running:
        running.parent.kill()
        running.wait_for(lambda: not running.find())


def test_nodes_are_seen_on_this_host_alone_unless_asked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    closed, opened = (
        stack.ros_environment(settings(bundle, discovery=discovery, domain_id=domain))
        for discovery, domain in (("localhost", None), ("subnet", 42))
    )
    assert closed["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert 1 <= int(closed["ROS_DOMAIN_ID"]) <= 101
    assert (opened["ROS_AUTOMATIC_DISCOVERY_RANGE"], opened["ROS_DOMAIN_ID"]) == ("SUBNET", "42")
