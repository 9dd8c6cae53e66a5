"""The robot's side of the topics, for a simulated robot of any simulator: observations out, commands in."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger

from adapters.errors import UserError
from deploy.ros2.messages import MESSAGES, ObservationWriter, read_command, stamp
from deploy.ros2.node import DIAGNOSTICS_PERIOD, LATEST, Reporter, declare, steady_clock
from deploy.spec import RobotDescription

COMMANDS = "commands"
# s between two looks whether anybody is there to answer.
GREETING_PERIOD = 0.02
READY = "ready"


class Plant(Protocol):
    """What moves and is observed."""

    @property
    def robot(self) -> RobotDescription:
        """Observations and commands, in order."""

    @property
    def steps(self) -> int:
        """Control steps in this episode."""

    @property
    def ended(self) -> bool:
        """Whether the episode is over, so that no step follows."""

    def observe(self) -> np.ndarray:
        """Return the latest observation `(obs_dim,)`."""

    def step(self, action: np.ndarray) -> None:
        """Hold a command `(act_dim,)` for one control period."""

    def reset(self) -> None:
        """Start the next episode."""

    def perturb(self, world: str) -> None:
        """Change the dynamics at once; a `UserError` where there is no such world."""

    def status(self) -> Mapping[str, object]:
        """Return what there is to know, for a person."""

    def close(self) -> None:
        """Let go of it."""


class PlantNode(Node):
    """Publishes observations and takes commands as the drivers of a robot do.

    The messages of one observation bear one stamp. In lock step the plant steps once for each command and waits for the
    next, however long that takes; time is simulated then: it goes on by a control period a step and is published on
    /clock. Otherwise the plant steps at the control period, times `real_time_factor`, and holds the last command, but
    for `command_timeout` s at most, as the watchdog in a motor's driver does: then it holds 0. Time is simulated if the
    factor is not 1. Nothing moves before the first command.

    When the episode is over, or has the number of control steps that the parameter `steps` asks for (0: any), the
    process ends. The parameter `perturbation` changes the dynamics as soon as it is set; `~/reset` starts the next
    episode, a control period later than the next observation would have come, so that a log shows where one ended.

    Args:
        name: of the node.
        make_plant: makes the plant of the node's own parameters, which it declares.

    Raises:
        UserError: a parameter makes no sense, or the plant refuses one.
    """

    def __init__(self, name: str, make_plant: Callable[[Node], Plant]) -> None:
        super().__init__(name)
        declare(self, "lock_step", True, "step once for each command, in simulated time")
        declare(self, "real_time_factor", 1.0, "speed where not in lock step", bounds=(0.01, 100.0))
        declare(
            self, "command_timeout", 0.0, "s, real, for which a command is held where not in lock step; 0: for ever"
        )
        declare(self, "listeners", 1, "who has to hear the observations before the first of them is sent in lock step")
        declare(self, "steps", 0, "control steps after which the process ends, 0 for none")
        declare(self, "perturbation", "none", "changed dynamics, from now on")
        self._plant = make_plant(self)
        self._last_step: int = self.get_parameter("steps").value
        self._lock_step: bool = self.get_parameter("lock_step").value
        factor: float = self.get_parameter("real_time_factor").value
        self._simulated_time = self._lock_step or factor != 1.0
        self._timeout: float = self.get_parameter("command_timeout").value or math.inf
        self._commanded = time.monotonic()
        self._command: np.ndarray | None = None
        self._refused = self._stamps = 0
        self._resetting = self._finished = False

        robot = self._plant.robot
        self._dt, self._writer = robot.control_dt, ObservationWriter(robot)
        self._outputs = {topic: self.create_publisher(MESSAGES[topic], topic, LATEST) for topic in self._writer.topics}
        self._clock_output = self.create_publisher(Clock, "/clock", LATEST)
        self._reporter = Reporter(self)
        self.create_subscription(Float64MultiArray, COMMANDS, self._on_command, LATEST)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_timer(DIAGNOSTICS_PERIOD, self._report, clock=steady_clock())
        if self._lock_step:
            self._greeting = self.create_timer(GREETING_PERIOD, self._greet, clock=steady_clock())
        else:
            self.create_timer(self._dt / factor, self._on_period, clock=steady_clock())
        self.get_logger().info(READY)

    def _greet(self) -> None:
        """Publish the first observation as soon as there is somebody to answer it, and all who listen are there."""
        listeners = min(output.get_subscription_count() for output in self._outputs.values())
        if self.count_publishers(COMMANDS) and listeners >= self.get_parameter("listeners").value:
            self._greeting.cancel()
            self._publish()

    def _on_command(self, message: Float64MultiArray) -> None:
        command = read_command(message)
        if command.shape != (self._plant.robot.act_dim,) or not np.isfinite(command).all():
            self._refused += 1
            self.get_logger().error(f"refused the command {list(message.data)}", throttle_duration_sec=1.0)
            return
        self._command, self._commanded = command, time.monotonic()
        if self._lock_step and self._stamps:
            self._advance()

    def _on_period(self) -> None:
        if self._command is not None and time.monotonic() - self._commanded > self._timeout:
            self._command = np.zeros_like(self._command)
        if self._resetting:
            self._reset()
        elif self._command is None:
            self._publish()
        else:
            self._advance()

    def _advance(self) -> None:
        """Let one control period pass and publish where it led."""
        if self._finished:
            return
        if self._resetting:
            self._reset()
        elif self._command is not None:
            self._plant.step(self._command)
        self._finished = self._plant.ended or 0 < self._last_step <= self._plant.steps
        if self._finished:
            signal.raise_signal(signal.SIGTERM)
        else:
            self._publish()

    def _reset(self) -> None:
        """Start the next episode, with one stamp left out."""
        self._plant.reset()
        self._resetting, self._command = False, None
        self._stamps += 1

    def _publish(self) -> None:
        self._stamps += 1
        now = self._stamps * self._dt if self._simulated_time else self.get_clock().now().nanoseconds * 1e-9
        if self._simulated_time:
            self._clock_output.publish(Clock(clock=stamp(now)))
        for topic, message in self._writer.write(now, self._plant.observe()).items():
            self._outputs[topic].publish(message)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        # In lock step the command that is on its way still answers the old episode's observation.
        self._resetting = True
        response.success, response.message = True, "the next episode starts with the next control period"
        return response

    def _on_parameters(self, parameters: list[Parameter[Any]]) -> SetParametersResult:
        try:
            for parameter in parameters:
                if parameter.name == "perturbation":
                    self._plant.perturb(parameter.value)
        except UserError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _report(self) -> None:
        status = {**self._plant.status(), "commands refused": self._refused}
        state = "finished" if self._finished else "waiting for a command" if self._command is None else "moving"
        self._reporter.report(0, state, status, self._plant.robot.name)
        self.get_logger().info(", ".join(f"{key} {value}" for key, value in status.items()))

    def close(self) -> None:
        """Say how the episode went and let go of the plant."""
        self._report()
        self._plant.close()
