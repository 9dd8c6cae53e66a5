"""The simulated robot as a process of its own, driven over real topics."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from deploy.ros2.fields import nanoseconds  # noqa: E402
from deploy.ros2.messages import MESSAGES, ObservationReader, command_message  # noqa: E402
from deploy.ros2.node import ENVIRONMENT, LATEST  # noqa: E402
from sim.environments import make_environment  # noqa: E402
from sim.mujoco_plant import MujocoPlant, find_world, load_robot  # noqa: E402

TIMEOUT = 60.0
CHEETAH = make_environment("halfcheetah")
COMMANDS = np.random.default_rng(0).uniform(-1, 1, (60, 6))
WORLD = "joint-failure:dead-ffoot"


class Driver:
    """The other end of the plant's topics."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("driver", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.reader = ObservationReader(load_robot("halfcheetah"))
        self.messages: dict[str, Any] = {}
        self.observations: list[np.ndarray] = []
        self.stamps: list[int] = []
        self.output = self.node.create_publisher(Float64MultiArray, "commands", LATEST)
        for topic in self.reader.topics:
            self.node.create_subscription(MESSAGES[topic], topic, lambda m, t=topic: self.receive(t, m), LATEST)
        self.status: dict[str, str] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.take_status, 10)

    def take_status(self, message: DiagnosticArray) -> None:
        (status,) = message.status
        self.status = {"name": status.name, "": status.message, **{pair.key: pair.value for pair in status.values}}

    def receive(self, topic: str, message: Any) -> None:
        self.messages[topic] = message
        stamps = {nanoseconds(message.header.stamp) for message in self.messages.values()}
        if len(self.messages) == len(self.reader.topics) and len(stamps) == 1:
            self.stamps += stamps
            self.observations.append(self.reader.read(self.messages))
            self.messages = {}

    def spin_until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, "nothing came"
            self.executor.spin_once(timeout_sec=0.02)

    def spin_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.spin_until(lambda: time.monotonic() >= end)

    def send(self, command: np.ndarray) -> None:
        self.output.publish(command_message(command))

    def drive(self, commands: np.ndarray) -> None:
        """Answer one observation after another."""
        for command in commands:
            expected = len(self.observations) + 1
            self.send(command)
            self.spin_until(lambda expected=expected: len(self.observations) >= expected)

    def call(self, kind: Any, name: str, request: Any) -> Any:
        client = self.node.create_client(kind, name)
        self.spin_until(client.service_is_ready)
        future = client.call_async(request)
        self.spin_until(future.done)
        return future.result()

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    for name, value in {**ENVIRONMENT, "ROS_DOMAIN_ID": str(1 + os.getpid() % 100)}.items():
        monkeypatch.setenv(name, value)
    made = Driver()
    yield made
    made.close()


@contextmanager
def plant(**parameters: Any) -> Iterator[subprocess.Popen[str]]:
    """The plant's process; it is killed if it does not end by itself."""
    arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    command = [sys.executable, "-m", "sim.ros2_plant", "--ros-args", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def end(process: subprocess.Popen[str], number: signal.Signals | None = None) -> str:
    """Wait for the end, after a signal where one is given, and return the last line that was printed."""
    if number is not None:
        process.send_signal(number)
    text, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, text
    return text.splitlines()[-1]


def in_process(commands: np.ndarray, world: str = "none", at_step: int = 0, seed: int = 0) -> list[np.ndarray]:
    """What the same robot shows without a middleware, from its start to where the commands lead."""
    robot = MujocoPlant(CHEETAH, find_world(world, at_step), seed)
    seen = [robot.observe()]
    for command in commands:
        robot.step(command)
        seen.append(robot.observe())
    return seen


def test_lock_step_is_the_robot_in_process_bit_for_bit(driver: Driver) -> None:
    with plant(steps=60, seed=2, perturbation=WORLD, at_step=40) as process:
        driver.spin_until(lambda: driver.observations)
        driver.drive(COMMANDS[:-1])
        driver.send(COMMANDS[-1])
        last_line = end(process)
    # The observation after the last step is nobody's to answer, so it is not sent.
    expected = in_process(COMMANDS[:-1], WORLD, at_step=40, seed=2)
    np.testing.assert_array_equal(driver.observations, expected)
    assert re.search(r"steps 60, return -?[0-9.]+, world dead-ffoot, commands refused 0", last_line)
    # Time is simulated: a control period of 50 ms for each step.
    assert driver.stamps == [50_000_000 * (step + 1) for step in range(60)]


def test_lock_step_waits_and_takes_nothing_that_is_no_command(driver: Driver) -> None:
    with plant() as process:
        driver.spin_until(lambda: driver.observations)
        for wrong in (np.zeros(5), np.full(6, np.nan)):
            driver.send(wrong)
        driver.spin_for(0.3)
        assert len(driver.observations) == 1
        driver.drive(COMMANDS[:2])
        assert "steps 2, " in (line := end(process, signal.SIGINT))
        assert line.endswith("commands refused 2") or line.endswith("commands refused 1")  # depth 1 keeps the latest
    np.testing.assert_array_equal(driver.observations, in_process(COMMANDS[:2]))


def test_diagnostics_tell_the_return(driver: Driver) -> None:
    robot = MujocoPlant(CHEETAH)
    for command in COMMANDS[:10]:
        robot.step(command)
    with plant():
        driver.spin_until(lambda: driver.observations)
        driver.drive(COMMANDS[:10])
        driver.spin_until(lambda: driver.status.get("steps") == "10")
    assert driver.status == {
        "name": "mujoco_node",
        "": "moving",
        "steps": "10",
        "return": str(round(robot.episode_return, 1)),
        "world": "nominal",
        "commands refused": "0",
    }


def test_lock_step_begins_when_all_listeners_are_there(driver: Driver) -> None:
    with plant(listeners=2):
        driver.spin_until(lambda: driver.status)
        driver.spin_for(0.5)
        assert not driver.observations
        for topic in driver.reader.topics:
            driver.node.create_subscription(MESSAGES[topic], topic, lambda message: None, LATEST)
        driver.spin_until(lambda: driver.observations)


def test_real_time_holds_the_last_command(driver: Driver, tmp_path: Path) -> None:
    with plant(lock_step=False, record=tmp_path / "episode.npz") as process:
        # It stands still at its start until it is commanded, and says so with new stamps.
        driver.spin_until(lambda: len(driver.observations) >= 3)
        assert len({tuple(values) for values in driver.observations}) == 1
        driver.send(COMMANDS[0])
        began = len(driver.observations)
        driver.spin_until(lambda: len(driver.observations) >= began + 8)
        assert abs(driver.stamps[-1] * 1e-9 - time.time()) < 5.0
        end(process, signal.SIGTERM)
    with np.load(tmp_path / "episode.npz") as episode:
        steps = len(episode["actions"])
        assert (episode["actions"] == COMMANDS[0]).all()
        expected = in_process(np.tile(COMMANDS[0], (steps, 1)))
        np.testing.assert_array_equal(episode["observations"], expected[:-1])
    moving = np.flatnonzero((np.diff(driver.observations, axis=0) != 0).any(1))[0] + 1
    np.testing.assert_array_equal(driver.observations[moving], expected[1])


def test_real_time_driver_lets_go_in_silence(driver: Driver, tmp_path: Path) -> None:
    with plant(lock_step=False, command_timeout=0.2, record=tmp_path / "episode.npz") as process:
        driver.spin_until(lambda: driver.observations)
        driver.send(COMMANDS[0])
        driver.spin_for(1.0)
        end(process, signal.SIGTERM)
    with np.load(tmp_path / "episode.npz") as episode:
        held = (episode["actions"] == COMMANDS[0]).all(1)
        assert (episode["actions"][~held] == 0).all()
    # Four periods of 50 ms, fewer on a busy machine; then nothing until the end.
    assert 1 <= held.sum() <= 6 and held[: held.sum()].all()


def test_another_speed_has_simulated_time(driver: Driver) -> None:
    with plant(lock_step=False, real_time_factor=5.0, steps=20) as process:
        driver.spin_until(lambda: driver.observations)
        driver.send(COMMANDS[0])
        driver.spin_until(lambda: process.poll() is not None)
    assert len(driver.stamps) > 10
    assert all(stamp % 50_000_000 == 0 for stamp in driver.stamps)


def test_perturbation_is_set_mid_run_and_a_wrong_one_refused(driver: Driver) -> None:
    def perturb(world: str) -> Any:
        request = SetParameters.Request(parameters=[Parameter("perturbation", value=world).to_parameter_msg()])
        (result,) = driver.call(SetParameters, "mujoco_node/set_parameters", request).results
        return result

    with plant() as process:
        driver.spin_until(lambda: driver.observations)
        driver.drive(COMMANDS[:20])
        refused = perturb("joint-failure:dead-tail")
        assert not refused.successful
        assert "has no world 'dead-tail'" in refused.reason
        driver.drive(COMMANDS[20:30])
        assert perturb(WORLD).successful
        driver.drive(COMMANDS[30:])
        assert "world dead-ffoot" in end(process, signal.SIGTERM)
    np.testing.assert_array_equal(driver.observations, in_process(COMMANDS, WORLD, at_step=30))


def test_reset_starts_the_next_episode(driver: Driver) -> None:
    with plant(seed=4) as process:
        driver.spin_until(lambda: driver.observations)
        driver.drive(COMMANDS[:10])
        assert driver.call(Trigger, "mujoco_node/reset", Trigger.Request()).success
        # This command still answers the first episode's last observation; what it leads to is the new start.
        driver.drive(COMMANDS[10:11])
        driver.drive(COMMANDS[:5])
        assert "steps 5, " in end(process, signal.SIGTERM)
    robot = MujocoPlant(CHEETAH, seed=4)
    robot.reset()
    for command, seen in zip(COMMANDS[:6], driver.observations[11:], strict=True):
        np.testing.assert_array_equal(seen, robot.observe())
        robot.step(command)
    # One stamp is left out before the new start, the twelfth observation, so that a log shows the end.
    steps = np.diff(driver.stamps) // 50_000_000
    assert steps.tolist() == [1] * 10 + [2] + [1] * 5


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [({"env": "moon"}, "there is no environment 'moon'"), ({"perturbation": "dead-ffoot"}, "is not SUITE:NAME")],
)
def test_mistake_is_one_sentence_and_exit_code_2(parameter: dict[str, str], sentence: str) -> None:
    with plant(**parameter) as process:
        text, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert sentence in text
    assert text.count("\n") == 1
