"""The leg's hardware as a node in the test process, and the nodes under test as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import leg
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger

from deploy.bundle import write_bundle
from deploy.ros2.messages import MESSAGES, ObservationWriter
from deploy.ros2.node import LATEST

ROOT = Path(__file__).resolve().parents[3]
# Long enough that a busy machine is not mistaken for a late node.
PERIOD = 0.1
PATIENCE = 60.0

JOINT_MAP, FIELD_MAP = {"hip": "left_hip"}, {"pitch": "imu.orientation.pitch"}
# The same as parameters of the policy node.
MAPS = {"joint_map": "['hip:left_hip']", "field_map": "['pitch:imu.orientation.pitch']"}


def robot(law: str = "effort", **limits: Any) -> Any:
    """The leg, slowly controlled."""
    return leg.robot(law, **limits).model_copy(update={"control_dt": PERIOD})


def write_leg(path: Path, law: str = "effort", signing_key: Any = None, **limits: Any) -> Path:
    """Write its bundle."""
    spec = leg.spec(law=law).model_copy(update={"robot": robot(law, **limits)})
    write_bundle(
        path,
        policy=leg.policy_graph(),
        spec=spec,
        golden=leg.golden(),
        dynamics=leg.dynamics_graph(),
        signing_key=signing_key,
    )
    return path


START = np.array([0.3, 0.5, -0.4, 0.0, 0.0])


def move(values: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Where a command leads; the leg is lighter than its model."""
    return values + 1.3 * (values @ leg.MOTION + action @ leg.PUSH)


def in_time(measure: Callable[[], float], bound: float) -> bool:
    """Whether what is measured, in s, is below a bound; a busy machine may delay a process, but not three times."""
    return any(measure() < bound for _ in range(3))


class Received(NamedTuple):
    """A command, and when it was sent, in s on the sender's clock."""

    sent: float
    action: np.ndarray


class Status(NamedTuple):
    """What a node says of itself."""

    level: int
    text: str
    values: dict[str, str]


def stood(received: list[Received]) -> float:
    """How long the last command stood that was not the safe one, in s."""
    last = max(place for place, command in enumerate(received) if command.action.any())
    return received[last + 1].sent - received[last].sent


class Process:
    """A node under test.

    Args:
        log: where its output goes.
        module: in deploy.ros2.
        options: further ROS arguments, before the parameters.
        parameters: by name.
    """

    def __init__(self, log: Path, module: str, *options: object, **parameters: Any) -> None:
        given = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
        arguments = [*map(str, options), *given]
        self.log = log
        with log.open("wb") as output:
            self.child = subprocess.Popen(
                [sys.executable, "-m", f"deploy.ros2.{module}", "--ros-args", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
            )

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; return the exit code."""
        self.child.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code."""
        try:
            return self.child.wait(PATIENCE)
        finally:
            self.child.kill()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: Any) -> None:
        self.child.kill()
        self.child.wait(PATIENCE)
        print(self.log.read_text())  # pytest shows it where the test failed


class Hardware:
    """What a robot's drivers do, and what a person at the robot does."""

    def __init__(self) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = Node("hardware", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.writer = ObservationWriter(robot(), JOINT_MAP, FIELD_MAP)
        self.outputs = {
            topic: self.node.create_publisher(MESSAGES[topic], topic, LATEST) for topic in self.writer.topics
        }
        self.commands = self._listen("policy/commands")
        self.passed = self._listen("commands")
        self.contexts: list[Float64MultiArray] = []
        self.node.create_subscription(Float64MultiArray, "policy/context", self.contexts.append, 10)
        self.statuses: list[DiagnosticStatus] = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _listen(self, topic: str) -> list[Received]:
        received: list[Received] = []

        def keep(message: Float64MultiArray, info: Any) -> None:
            received.append(Received(info["source_timestamp"] * 1e-9, np.array(message.data)))

        self.node.create_subscription(Float64MultiArray, topic, keep, 10)
        return received

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.statuses += message.status

    def __enter__(self) -> Hardware:
        return self

    def __exit__(self, *_: Any) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Take in messages until a condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not (result := condition()):
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            self._executor.spin_once(timeout_sec=0.05)
        return result

    def wait_for_rest(self, received: list[Received]) -> None:
        """Wait until the last three commands are the safe one."""
        self.wait(lambda: len(received) >= 3 and not any(c.action.any() for c in received[-3:]), "safe commands")

    def spin(self, seconds: float) -> None:
        """Take in messages for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.01)

    def call(self, kind: Any, name: str, request: Any = None) -> Any:
        """Call a service."""
        client = self.node.create_client(kind, name)
        self.wait(client.service_is_ready, f"the service {name}")
        future = client.call_async(request or kind.Request())
        self.wait(future.done, f"an answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def trigger(self, name: str) -> bool:
        """Call a service that needs no more than its name."""
        return self.call(Trigger, name).success

    def transition(self, transition: int) -> bool:
        """Ask the policy node for a transition; whether it was made."""
        return self.call(
            ChangeState, "policy/change_state", ChangeState.Request(transition=Transition(id=transition))
        ).success

    def lifecycle(self) -> str:
        """The policy node's state."""
        return self.call(GetState, "policy/get_state").current_state.label

    def configure(self, **parameters: Any) -> bool:
        """Clean the policy node up and configure it anew; whether it was."""
        if self.lifecycle() == "active":
            assert self.transition(Transition.TRANSITION_DEACTIVATE)
        if self.lifecycle() == "inactive":
            assert self.transition(Transition.TRANSITION_CLEANUP)
        assert all(self.set(**parameters))
        return self.transition(Transition.TRANSITION_CONFIGURE)

    def set(self, **parameters: Any) -> list[bool]:
        """Set parameters of the policy node; whether each was."""
        messages = [Parameter(name, value=value).to_parameter_msg() for name, value in parameters.items()]
        answer = self.call(SetParameters, "policy/set_parameters", SetParameters.Request(parameters=messages))
        return [result.successful for result in answer.results]

    def activate(self) -> None:
        """Activate the policy node, and wait until it hears."""
        outputs = self.outputs.values()
        self.wait(lambda: not any(output.get_subscription_count() for output in outputs), "the last episode's end")
        assert self.transition(Transition.TRANSITION_ACTIVATE)
        self.meet()
        for record in (self.commands, self.contexts, self.statuses):
            record.clear()

    def meet(self) -> None:
        """Wait until the policy node hears."""
        self.wait(lambda: all(output.get_subscription_count() == 1 for output in self.outputs.values()), "the policy")

    def observe(self, time: float, values: np.ndarray, **changes: Any) -> None:
        """Publish an observation; `changes` replace attributes of joint_states."""
        for topic, message in self.writer.write(time, values).items():
            if topic == "joint_states":
                for name, value in changes.items():
                    setattr(message, name, value)
            self.outputs[topic].publish(message)

    def answer(self, time: float, values: np.ndarray, **changes: Any) -> np.ndarray:
        """Publish an observation and return the command that answers it."""
        before = len(self.commands)
        self.observe(time, values, **changes)
        self.wait(lambda: len(self.commands) > before, "a command")
        return self.commands[before].action

    def keep_observing(self, condition: Callable[[], Any]) -> None:
        """Publish an observation in every period, stamped with the time of day, until a condition holds."""

        def period() -> Any:
            self.observe(time.time(), START)
            self.spin(PERIOD)
            return condition()

        self.wait(period, "an answer")

    def status(self, name: str, **values: object) -> Status:
        """Wait for diagnostics of a node with these values, `text` a part of its text, and return them."""
        wanted = {key.replace("_", " "): str(value) for key, value in values.items()}
        text = wanted.pop("text", "")

        def find() -> Status | None:
            told = [
                Status(status.level[0], status.message, {pair.key: pair.value for pair in status.values})
                for status in self.statuses
                if status.name == name
            ]
            return next(
                (status for status in told if text in status.text and wanted.items() <= status.values.items()), None
            )

        return self.wait(find, f"diagnostics of {name} with {values}")
