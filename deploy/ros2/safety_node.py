"""The last process before the robot: it passes the policy's commands on while they are good, and stops the robot else.

Topics: in policy/commands, under a position law joint_states; out commands, to which the robot's controller listens,
~/passing, which tells the policy whether the robot gets its commands as they are, and /diagnostics. Services: ~/estop
and ~/clear.

The stop has to come from here, because ros2_control's ForwardCommandController keeps the last command for ever. A
command says when it was made (`deploy.ros2.messages.made_at`); of one that does not, the middleware says when it was
sent. Both are the host's clock, so policy and safety node run on one host, or on hosts that keep their clocks together.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Hashable, Mapping
from copy import copy
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import ValidationError
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import Trigger

from adapters.errors import UserError
from adapters.files import parse_json, read_bytes
from deploy.ros2.fields import JOINT_STATES, MessageError, parse_map, read_positions
from deploy.ros2.messages import command_message, made_at, read_command
from deploy.ros2.node import DIAGNOSTICS_PERIOD, LATCHED, LATEST, PASSING, Reporter, declare, run, steady_clock
from deploy.safety import SafetyFilter
from deploy.signature import check_signature, read_public_key
from deploy.spec import SPEC, BundleSpec, RobotDescription
from deploy.watchdog import VERDICTS, Verdict

COMMANDS = "policy/commands"
# Control periods without a command after which the robot is stopped, where timeout is 0.
TIMEOUT_PERIODS = 3


def read_robot(bundle: str, robot: str, public_key: str = "") -> RobotDescription:
    """Read what the robot takes, from a robot description in YAML or, where none is given, a bundle's description.

    Raises:
        UserError: neither is given, it is no such file, or the bundle is not signed by the key that is given.
    """
    if not (bundle or robot):
        raise UserError("the safety node has to know the robot; set the parameter bundle or robot.")
    path = Path(robot) if robot else Path(bundle) / SPEC
    content = _read_yaml(path) if robot else _read_description(path, public_key)
    try:
        return RobotDescription.model_validate(content) if robot else BundleSpec.model_validate(content).robot
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the whole"
        raise UserError(f"{path} describes no robot: {where}: {fault['msg']}; give another file.") from error


def _read_description(path: Path, public_key: str) -> Any:
    description = read_bytes(path)
    if public_key:
        check_signature(path.parent, description, read_public_key(Path(public_key)))
    return parse_json(description, str(path))


def _read_yaml(path: Path) -> Any:
    text = read_bytes(path)
    try:
        return OmegaConf.to_container(OmegaConf.create(text.decode()))
    except Exception as error:  # PyYAML and OmegaConf have no exception in common
        raise UserError(f"{path} is no YAML ({' '.join(str(error).split())}); give another file.") from error


def source_of(info: Mapping[str, Any], publishers: int) -> Hashable:
    """Return whose a message is: its publisher's identity, or where the middleware tells none "the only publisher".

    None where it cannot be told.
    """
    gid = info.get("publisher_gid")
    if gid is not None:
        return bytes(gid["data"])
    return "the only publisher" if publishers == 1 else None


class SafetyNode(Node):
    """Stands between a policy and a robot, in a process of its own.

    In its first `timeout` it sends nothing, so that one that starts beside a running policy does not stop the robot.

    Raises:
        UserError: a parameter makes no sense, or nothing describes the robot.
    """

    def __init__(self) -> None:
        super().__init__("safety")
        self._declare_parameters()
        self._robot = robot = read_robot(*(self._value(name) for name in ("bundle", "robot", "public_key")))
        timeout = self._value("timeout") or TIMEOUT_PERIODS * robot.control_dt
        self._filter = SafetyFilter(robot, timeout, self._value("soft_start"))
        self._quiet_until = time.monotonic() + timeout
        self._reason, self._passing, self._passed = Verdict.MISSING, False, 0
        self._sent: list[float] | None = None
        self._whole: bool | None = None
        joint_map = parse_map("joint_map", self._value("joint_map"))
        self._joints = [joint_map.get(joint, joint) for joint in robot.action.joints]
        self._output = self.create_publisher(Float64MultiArray, "commands", LATEST)
        self._state = self.create_publisher(Bool, PASSING, LATCHED)
        self._reporter = Reporter(self)
        # With a depth of 1 the commands of a second publisher could take the place of the first one's.
        self._input = self.create_subscription(Float64MultiArray, COMMANDS, self._on_command, 10)
        if robot.action.law == "position":
            # A driver that sends best effort is heard where the parameters qos_overrides say so.
            options = QoSOverridingOptions.with_default_policies()
            self.create_subscription(
                JointState, JOINT_STATES, self._on_joints, copy(LATEST), qos_overriding_options=options
            )
        self.create_service(Trigger, "~/estop", self._on_estop)
        self.create_service(Trigger, "~/clear", self._on_clear)
        self.create_timer(robot.control_dt, self._on_period, clock=steady_clock())
        self.create_timer(DIAGNOSTICS_PERIOD, self._report, clock=steady_clock())
        self.get_logger().info(f"guards {robot.name}: {timeout:g} s without a command stop it")

    def _declare_parameters(self) -> None:
        define = functools.partial(declare, self, read_only=True)
        define("bundle", "", "folder of the bundle, of which the description of the robot alone is read")
        define("public_key", "", "PEM file of the key that has to have signed the bundle; empty: anyone may have")
        define("robot", "", "file with the description of the robot, which is read in the bundle's place")
        define("timeout", 0.0, "s without a good command after which the robot is stopped; 0: 3 periods", (0.0, 60.0))
        define("soft_start", 0.0, "s in which commands that pass again take over from the safe one", (0.0, 60.0))
        define("joint_map", [""], "entries POLICY_NAME:ROBOT_NAME, for joints that the robot names otherwise")

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def close(self) -> None:
        """Stop the robot, as fast as its rate limit lets it, and see that the command has arrived."""
        self._filter.stop()
        while True:
            before = self._sent
            self._emit(repeat=True)
            if before == self._sent:
                break
            time.sleep(self._robot.control_dt)
        self._output.wait_for_all_acked(Duration(seconds=0.5))

    def _on_command(self, message: Float64MultiArray, info: Mapping[str, Any]) -> None:
        source, now = source_of(info, self._input.get_publisher_count()), time.time()
        if source is None:
            self._complain(f"{COMMANDS} has several publishers that cannot be told apart, so none is heard")
            return
        made = made_at(message) or info.get("source_timestamp")
        verdict = self._filter.accept(now, made * 1e-9 if made else now, read_command(message), source)
        if verdict != Verdict.GOOD:
            self._complain(f"a command is refused: {VERDICTS[verdict]}")
        self._emit(repeat=verdict == Verdict.GOOD)

    def _on_joints(self, message: JointState) -> None:
        try:
            self._filter.observe(read_positions(message, self._joints))
        except MessageError as error:
            self._complain(str(error))

    def _on_period(self) -> None:
        self._emit(repeat=not self._passing)

    def _emit(self, repeat: bool) -> None:
        """Send what the robot is to get; what it has already is sent again on `repeat` alone."""
        command, passing, reason, share = self._filter.output(time.time())
        numbers = None if command is None else command.tolist()
        new = passing != self._passing or numbers != self._sent
        quiet = reason == Verdict.MISSING and time.monotonic() < self._quiet_until
        if command is not None and (new or repeat) and not quiet:
            self._output.publish(command_message(command))
            self._sent, self._passed = numbers, self._passed + passing
        self._passing = passing
        self._tell(share == 1, reason)
        if reason != self._reason:
            self._reason = reason
            self._report()

    def _tell(self, whole: bool, reason: Verdict) -> None:
        """Tell the policy whether the robot gets its commands as they are, once there was one and where it changes."""
        if reason != Verdict.MISSING and whole != self._whole:
            self._whole = whole
            self._state.publish(Bool(data=whole))

    def _complain(self, fault: str) -> None:
        self.get_logger().error(fault, throttle_duration_sec=1.0)

    def _report(self) -> None:
        publishers = self._input.get_publisher_count()
        several = f"; {COMMANDS} has {publishers} publishers and should have one" if publishers > 1 else ""
        if self._passing:
            level, text = int(publishers > 1), "commands pass"
        elif self._reason == Verdict.MISSING:
            level, text = 1, "waiting for a command"
        else:
            level, text = 2, f"safe command: {VERDICTS[self._reason]}"
        refused = {f"refused: {VERDICTS[v]}": n for v, n in self._filter.counts.items() if v != Verdict.GOOD}
        values = {"passed": self._passed, "publishers": publishers, **refused}
        self._reporter.report(level, text + several, values, self._robot.name)

    def _on_estop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._filter.stop()
        self._emit(repeat=True)
        response.success, response.message = True, "nothing passes until clear"
        return response

    def _on_clear(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._filter.clear()
        response.success, response.message = True, "commands pass again"
        return response


def main() -> int:
    """Run the node; returns the exit code."""
    return run(SafetyNode)


if __name__ == "__main__":
    sys.exit(main())
