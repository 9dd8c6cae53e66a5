"""What the processes of the package share: how a node is started, stopped by a signal, and closed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import RCLError

from adapters.errors import UserError
from deploy.ros2.messages import diagnostics_message

# Observations and commands: none is lost on one host, and none waits behind an older one.
LATEST = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)

# A state: who comes late hears the latest too.
LATCHED = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
# Whether the robot gets the policy's commands as they are; the safety node says so to the policy.
PASSING = "safety/passing"

DIAGNOSTICS_PERIOD = 1.0

# A signal is noticed after at most so many seconds in which nothing else happens.
WAKE_UP = 0.05

# What holds where the environment does not say otherwise: nodes on other hosts are not seen, and see nothing.
ENVIRONMENT = {
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    "FASTDDS_DEFAULT_PROFILES_FILE": str(Path(__file__).parent / "config" / "fastdds.xml"),
}


def run(make_node: Callable[[], Any], arguments: list[str] | None = None) -> int:
    """Run a node until SIGINT or SIGTERM, and close it while it can still publish, whatever ended it.

    Args:
        make_node: makes the node, whose method `close()` brings the robot to rest.
        arguments: the command line, by default that of the process.

    Returns:
        The exit code: 0 after a signal, 2 where a person's mistake kept the node from starting.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        _init(arguments)
        _spin(make_node(), stopped)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        rclpy.try_shutdown()
    return 0


def _init(arguments: list[str] | None) -> None:
    try:
        # With handlers of its own rclpy would shut down at once, and nothing more could be sent to the robot.
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except RCLError as error:
        raise UserError(f"ROS 2 does not start: {error}.") from error


def _spin(node: Any, stopped: Event) -> None:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stopped.is_set():
            executor.spin_once(timeout_sec=WAKE_UP)
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()


class Reporter:
    """Publishes a node's state on /diagnostics, and logs it where it has changed."""

    def __init__(self, node: Node) -> None:
        self._node, self._said = node, ""
        self._output = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def report(self, level: int, text: str, values: Mapping[str, object], hardware: str, log: bool = True) -> None:
        """Say how things are.

        Args:
            level: 0 where all is well, 1 for a warning, 2 for an error.
            text: in words.
            values: what else there is to know.
            hardware: the robot's name.
            log: whether to log it as well.
        """
        now, name = self._node.get_clock().now().to_msg(), self._node.get_fully_qualified_name()[1:]
        self._output.publish(diagnostics_message(now, name, hardware, bytes([level]), text, values))
        if log and text != self._said:
            self._said = text
            if level == 0:
                self._node.get_logger().info(text)
            else:
                self._node.get_logger().warning(text)


def steady_clock() -> Clock:
    """Return a clock that goes on whatever the time of the robot does."""
    return Clock(clock_type=ClockType.STEADY_TIME)


def declare(
    node: Node, name: str, default: Any, description: str, bounds: tuple[float, float] | None = None, **options: Any
) -> None:
    """Declare a parameter.

    Args:
        node: whose it is.
        name: of the parameter.
        default: its value where none is given; tells its type.
        description: for a person.
        bounds: lowest and highest value.
        options: further fields of the descriptor.

    Raises:
        UserError: the value that is given has another type or is out of bounds.
    """
    ranges = [] if bounds is None else [FloatingPointRange(from_value=bounds[0], to_value=bounds[1])]
    descriptor = ParameterDescriptor(description=description, floating_point_range=ranges, **options)
    try:
        node.declare_parameter(name, default, descriptor)
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        raise UserError(f"the parameter {name} ({description}) is refused: {error}; give another value.") from error
