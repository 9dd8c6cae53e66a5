"""The robot's side of the channels with every message in hand, so that faults can be put into them on their way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deploy.lcm.channels import COMMAND, NS, OBSERVATION, ORDER, PERIODS, arrange, connect, decode, handle
from deploy.lcm.generated.surefoot import command_t, observation_t, order_t
from deploy.lcm.robot import RobotSide
from deploy.spec import RobotDescription

ORDERS = {"estop": order_t.STOP, "clear": order_t.CLEAR}


class LcmTap:
    """A robot's driver, a person at the robot, and whoever stands between.

    The driver's `RobotSide` speaks to the network through this object.

    Args:
        robot: whose side it is.
        url: the network.
        on_input: called with what drives the robot in each control period: s, the wall clock, and the numbers.
        on_command: called with each command that comes; `forward` hands it on to the driver.
        soft_start: s in which commands take over from the safe one.

    Attributes:
        clock_offset: s by which the robot's clock is wrong.
    """

    def __init__(
        self,
        robot: RobotDescription,
        url: str,
        on_input: Callable[[float, np.ndarray], None],
        on_command: Callable[[Any], None],
        soft_start: float = 0.0,
    ) -> None:
        self.clock_offset = 0.0
        self._robot, self._on_input, self._on_command = robot, on_input, on_command
        self._link = connect(url)
        self._observation: Any = None
        self._heard: Callable[[float, np.ndarray], None] | None = None
        self._intruder = command_t()
        driver_end: Any = self
        self._side = RobotSide(robot, driver_end, PERIODS * robot.control_dt, self._clock, soft_start)
        self._link.subscribe(OBSERVATION, self._take_observation)

    def _clock(self) -> int:
        return time.time_ns() + round(self.clock_offset * NS)

    def publish(self, channel: str, data: bytes) -> None:
        """Keep the driver's observation."""
        self._observation = observation_t.decode(data)

    def subscribe(self, channel: str, handler: Callable[[str, bytes], None]) -> None:
        """Subscribe for the driver."""
        if channel == COMMAND:
            self._to_driver = handler
            self._link.subscribe(channel, self._take_command)
        else:
            self._link.subscribe(channel, handler)

    def _take_command(self, _: str, data: bytes) -> None:
        message: Any = decode(command_t, data)
        if message is not None and self._heard is not None:
            # The driver is another process; what it gets is seen on the network alone.
            self._on_input(time.time(), arrange(message.joints, message.action, self._robot.action.joints))
        elif message is not None:
            self._on_command(message)

    def _take_observation(self, _: str, data: bytes) -> None:
        message: Any = decode(observation_t, data)
        if message is not None and self._heard is not None:
            self._heard(message.stamp / NS, np.array(message.values))

    def spin(self, seconds: float) -> None:
        """Take in what comes within so many seconds, at most one message."""
        handle(self._link, seconds)

    def begin_period(self) -> None:
        """Let the driver say what drives the robot."""
        command = self._side.output().command
        if command is not None:
            self._on_input(time.time(), command)

    def observation(self, values: np.ndarray) -> list[Any]:
        """Return the message of an observation `(obs_dim,)` made now."""
        self._side.send(values)
        return [self._observation]

    def spoil(self, message: Any, how: str) -> Any:
        """Return the observation with a wrong "size", wrong "names" or a number "missing"."""
        if how == "size":
            return message.encode()[:-8]
        if how == "names":
            message.names = [f"other_{name}" for name in message.names]
        else:
            message.names, message.values, message.size = message.names[1:], message.values[1:], message.size - 1
        return message

    def send(self, message: Any) -> None:
        """Send an observation."""
        self._link.publish(OBSERVATION, message if isinstance(message, bytes) else message.encode())

    def with_numbers(self, message: Any, numbers: Sequence[float]) -> Any:
        """Return a command with other numbers."""
        message.action, message.size = list(numbers), len(numbers)
        message.joints = [*self._robot.action.joints, "other"][: len(numbers)]
        return message

    def forward(self, message: Any) -> None:
        """Hand a command on to the driver."""
        self._to_driver(COMMAND, message.encode())

    def intrude(self, numbers: Sequence[float]) -> None:
        """Send a command from a source beside the policy."""
        message = self.with_numbers(self._intruder, numbers)
        message.stamp, message.sequence, message.source = self._clock(), message.sequence + 1, "intruder"
        self._link.publish(COMMAND, message.encode())

    def leave(self) -> None:
        """Do nothing: who sends nothing is not there."""

    def order(self, what: str) -> None:
        """Order "estop" or "clear", which the runner and the driver both hear; a name before a slash is not needed."""
        order = order_t()
        order.what = ORDERS[what.rpartition("/")[2]]
        self._link.publish(ORDER, order.encode())

    def listen(self, on_observation: Callable[[float, np.ndarray], None]) -> Callable[[], None]:
        """Hear the observations of another process: s, its stamp, and `(obs_dim,)`; returns how to end that."""
        self._heard = on_observation

        def end() -> None:
            self._heard = None

        return end

    def close(self) -> None:
        """Do nothing: the network is left with the object."""
