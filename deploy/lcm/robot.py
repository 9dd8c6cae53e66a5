"""The robot's end of the channels: it sends observations and lets through what is fit to drive a robot.

A driver owns one `RobotSide` in its own process, so that the robot gets the safe command whatever becomes of the runner
and of the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lcm
import numpy as np

from deploy.lcm.channels import COMMAND, NS, OBSERVATION, ORDER, arrange, decode, handle
from deploy.lcm.generated.surefoot import command_t, observation_t, order_t
from deploy.safety import Output, SafetyFilter
from deploy.spec import RobotDescription
from deploy.watchdog import Verdict


class RobotSide:
    """Sends observations and hands out commands.

    Args:
        robot: whose it is.
        link: the network.
        timeout: s after which a command is too old to act.
        clock: ns, the clock that stamps are of.
        soft_start: s in which commands take over from the safe one, at first and after each time that it acted.

    Attributes:
        filter: what commands have to pass.
        answered: whether a command came that answers the last observation.
        state: of the controller, as the last good command says; -1 before.
    """

    def __init__(
        self,
        robot: RobotDescription,
        link: lcm.LCM,
        timeout: float,
        clock: Callable[[], int] = time.time_ns,
        soft_start: float = 0.0,
    ) -> None:
        self.robot, self.link, self._clock = robot, link, clock
        self.filter = SafetyFilter(robot, timeout, soft_start)
        self.answered, self.state = False, -1
        self._names, self._joints = list(robot.observation_names), list(robot.action.joints)
        self._pose = [robot.index("joint_position", joint) for joint in robot.action.joints]
        # Begun where no earlier count is: to the runner, a robot that starts again goes on.
        self._sequence = time.time_ns()
        # Sequence and action of the last good command, and sequence of the one that acts.
        self._latest, self._action, self._applied = -1, np.empty(0), -1
        self._sent = b""
        link.subscribe(COMMAND, self._take_command)
        link.subscribe(ORDER, self._take_order)

    def send(self, values: np.ndarray) -> None:
        """Send an observation `(obs_dim,)` made now, in the order and units of the robot's description."""
        if None not in self._pose:
            self.filter.observe([values[index] for index in self._pose])
        self._sequence, self.answered = self._sequence + 1, False
        message = observation_t()
        message.stamp, message.sequence, message.applied = self._clock(), self._sequence, self._applied
        message.size, message.names, message.values = len(self._names), self._names, values.tolist()
        self._sent = message.encode()
        self.link.publish(OBSERVATION, self._sent)

    def send_again(self) -> None:
        """Send the last observation once more, in case it or its answer was lost."""
        self.link.publish(OBSERVATION, self._sent)

    def listen(self, seconds: float, until_answered: bool = False) -> None:
        """Take messages for so long, or until the last observation is answered."""
        end = time.monotonic() + seconds
        while not (until_answered and self.answered) and (rest := end - time.monotonic()) > 0:
            handle(self.link, rest)

    def output(self) -> Output:
        """Return the command that acts from now on; to be asked once in a control period."""
        output = self.filter.output(self._clock() / NS)
        unchanged = output.command is not None and np.array_equal(output.command, self._action)
        self._applied = self._latest if output.passing and unchanged else -1
        return output

    def _take_command(self, _: str, data: bytes) -> None:
        message: Any = decode(command_t, data)
        if message is None:
            return
        action = arrange(message.joints, message.action, self._joints)
        verdict = self.filter.accept(self._clock() / NS, message.stamp / NS, action, message.source)
        if verdict == Verdict.GOOD:
            self._latest, self._action, self.state = message.sequence, action, message.state
            self.answered = self.answered or message.observation == self._sequence

    def _take_order(self, _: str, data: bytes) -> None:
        message: Any = decode(order_t, data)
        if message is not None and message.what == order_t.STOP:
            self.filter.stop()
        elif message is not None and message.what == order_t.CLEAR:
            self.filter.clear()
