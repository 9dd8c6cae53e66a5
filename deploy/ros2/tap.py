"""The robot's side of the topics with every message in hand, so that faults can be put into them on their way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger

from deploy.ros2.fields import JOINT_STATES, ObservationReader, nanoseconds
from deploy.ros2.messages import MESSAGES, ObservationWriter, command_message, read_command
from deploy.ros2.node import ENVIRONMENT, LATEST
from deploy.spec import RobotDescription

# Where the policy's commands go when they are to pass through here: the policy is started with this remapping.
DETOUR = "detour/commands"
EVERY = QoSProfile(depth=1000, reliability=QoSReliabilityPolicy.RELIABLE)
PATIENCE = 10.0


class Ros2Tap:
    """A robot's drivers, a person at the robot, and whoever stands between.

    Args:
        robot: whose side it is.
        domain_id: the ROS domain.
        on_input: called with each command that arrives where the robot's controller listens: s, when it was sent, on
            the wall clock, and its numbers.
        on_command: called with each message of the policy that takes the detour.

    Attributes:
        clock_offset: s by which the robot's clock is wrong.
        statuses: the latest diagnostics of each node.
    """

    def __init__(
        self,
        robot: RobotDescription,
        domain_id: int,
        on_input: Callable[[float, np.ndarray], None],
        on_command: Callable[[Any], None],
    ) -> None:
        self.clock_offset = 0.0
        self.statuses: dict[str, dict[str, str]] = {}
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._context = Context()
        # Signals are the whole process's business.
        rclpy.init(context=self._context, domain_id=domain_id, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("hardware", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._writer, self._reader = ObservationWriter(robot), ObservationReader(robot)
        self._outputs = {t: self._node.create_publisher(MESSAGES[t], t, LATEST) for t in self._writer.topics}
        self._commands: Publisher[Any] | None = None
        self._on_input = on_input
        self._node.create_subscription(Float64MultiArray, "commands", self._take_input, EVERY)
        self._node.create_subscription(Float64MultiArray, DETOUR, on_command, EVERY)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._take_diagnostics, EVERY)
        self._orders: dict[str, Client[Any, Any]] = {
            name: self._node.create_client(Trigger, name)
            for name in ("policy/estop", "policy/clear", "safety/estop", "safety/clear")
        }

    def _take_input(self, message: Any, info: Any) -> None:
        self._on_input(info["source_timestamp"] * 1e-9, read_command(message))

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.statuses[status.name] = {pair.key: pair.value for pair in status.values}

    def spin(self, seconds: float) -> None:
        """Take in what comes within so many seconds, at most one message."""
        self._executor.spin_once(timeout_sec=max(seconds, 0.0))

    @property
    def heard(self) -> bool:
        """Whether somebody listens to every topic of the observation."""
        return all(output.get_subscription_count() for output in self._outputs.values())

    def begin_period(self) -> None:
        """Do nothing: commands arrive when they arrive."""

    def observation(self, values: np.ndarray) -> list[Any]:
        """Return the messages of an observation `(obs_dim,)` made now."""
        return list(self._writer.write(time.time() + self.clock_offset, values).values())

    def spoil(self, message: Any, how: str) -> Any:
        """Return joint_states with a wrong "size", wrong "names" or a joint "missing"; other messages stay."""
        if isinstance(message, MESSAGES[JOINT_STATES]):
            if how == "names":
                message.name = [f"other_{name}" for name in message.name]
            else:
                message.position, message.velocity = message.position[1:], message.velocity[1:]
            if how == "missing":
                message.name = message.name[1:]
        return message

    def send(self, message: Any) -> None:
        """Send a message of an observation."""
        topic = next(topic for topic in self._outputs if isinstance(message, MESSAGES[topic]))
        self._outputs[topic].publish(message)

    def with_numbers(self, message: Any, numbers: Sequence[float]) -> Any:
        """Return a command with other numbers."""
        message.data = list(numbers)
        return message

    def forward(self, message: Any) -> None:
        """Send a command to the safety node."""
        if self._commands is None:
            self._commands = self._node.create_publisher(Float64MultiArray, "policy/commands", LATEST)
        self._commands.publish(message)

    def intrude(self, numbers: Sequence[float]) -> None:
        """Send a command from a source beside the policy."""
        self.forward(command_message(np.array(numbers)))

    def leave(self) -> None:
        """Send no more commands."""
        if self._commands is not None:
            self._node.destroy_publisher(self._commands)
            self._commands = None

    def order(self, what: str) -> None:
        """Call ~/estop or ~/clear of the policy or the safety node, such as "safety/estop"."""
        client, end = self._orders[what], time.monotonic() + PATIENCE
        while not client.service_is_ready() and time.monotonic() < end:
            self.spin(0.01)
        client.call_async(Trigger.Request())

    def listen(self, on_observation: Callable[[float, np.ndarray], None]) -> Callable[[], None]:
        """Hear the observations of another process: s, its stamp, and `(obs_dim,)`; returns how to end that."""
        waiting: dict[str, Any] = {}

        def take(topic: str, message: Any) -> None:
            waiting[topic] = message
            stamps = {nanoseconds(known.header.stamp) for known in waiting.values()}
            if len(waiting) == len(self._outputs) and len(stamps) == 1:
                on_observation(stamps.pop() * 1e-9, self._reader.read(waiting))

        inputs = [
            self._node.create_subscription(MESSAGES[topic], topic, lambda m, t=topic: take(t, m), EVERY)
            for topic in self._outputs
        ]

        def end() -> None:
            for subscription in inputs:
                self._node.destroy_subscription(subscription)

        return end

    def close(self) -> None:
        """Leave the network."""
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)
