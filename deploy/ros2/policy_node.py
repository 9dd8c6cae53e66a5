"""The policy as a lifecycle node: observations in, commands out, one in each control period.

Topics: in joint_states, imu, odom and cmd_vel, as far as the bundle's terms ask, and safety/passing; out ~/commands,
~/context and /diagnostics. Services: ~/estop, ~/clear, ~/reset_context and ~/adapt.

The bundle is read and checked once, when the node is configured. A control step happens when a complete set of fresh
observations has come; where none comes for too long, a timer brings the robot to the safe command.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
import traceback
from collections.abc import Callable
from copy import copy
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool, Trigger

from adapters.errors import UserError
from deploy.controller import Command, State
from deploy.ros2.messages import MESSAGES, command_message, context_message
from deploy.ros2.node import DIAGNOSTICS_PERIOD, LATCHED, LATEST, PASSING, Reporter, declare, run, steady_clock
from deploy.ros2.policy_loop import PolicyLoop, Report, Settings

SECONDS = (0.0, 60.0)


def _transition(
    change: Callable[[PolicyNode], None],
) -> Callable[[PolicyNode, LifecycleState], TransitionCallbackReturn]:
    """Make a method the callback of a transition; what it raises is said, which rclpy does not do."""

    @functools.wraps(change)
    def callback(self: PolicyNode, state: LifecycleState) -> TransitionCallbackReturn:
        self._refusal = ""
        try:
            change(self)
            return TransitionCallbackReturn.SUCCESS
        except UserError as error:
            self._refusal = str(error)
            self.get_logger().error(self._refusal)
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().fatal(traceback.format_exc())
            return TransitionCallbackReturn.ERROR
        finally:
            self._report()

    return callback


class PolicyNode(LifecycleNode):
    """Unconfigured it has no bundle, inactive it is deaf and dumb, active it drives the robot.

    Deactivation brings the robot to the safe command in the stop time before it returns.
    """

    def __init__(self) -> None:
        super().__init__("policy")
        self._declare_parameters()
        self._loop: PolicyLoop | None = None
        self._active, self._dry_run = False, False
        self._refusal, self._reported = "", State.IDLE
        self._commands = self.create_publisher(Float64MultiArray, "~/commands", LATEST)
        self._contexts = self.create_publisher(Float64MultiArray, "~/context", LATEST)
        self._reporter = Reporter(self)
        self.create_service(Trigger, "~/estop", self._on_estop)
        self.create_service(Trigger, "~/clear", self._on_clear)
        self.create_service(Trigger, "~/reset_context", self._on_reset_context)
        self.create_service(SetBool, "~/adapt", self._on_adapt)
        self.create_timer(DIAGNOSTICS_PERIOD, self._report, clock=steady_clock())

    def _declare_parameters(self) -> None:
        define = functools.partial(declare, self)
        define("bundle", "", "folder of the bundle")
        define("public_key", "", "PEM file of the key that has to have signed the bundle; empty: anyone may have")
        define("rate", 0.0, "control rate in Hz that is expected of the bundle; 0: whichever it has", (0.0, 1e4))
        define("stale_timeout", 0.0, "s without an observation until the robot comes to rest; 0: 3 periods", SECONDS)
        define("sync_tolerance", 0.0, "s by which the stamps of messages that belong together may differ", SECONDS)
        define("soft_start", 0.0, "s in which the policy takes over; 0: at once", SECONDS)
        define("stop_time", 0.0, "s in which the robot is brought to rest; 0: at once", SECONDS)
        define("low_confidence", "run", "far from demonstrations: run, slow, hold, or hand_over to somebody else")
        define("least_confidence", 0.5, "below which that is done, 0 to 1", (0.0, 1.0))
        define("adapt", True, "whether the policy gets the inferred context; otherwise the nominal one")
        define("joint_map", [""], "entries POLICY_NAME:ROBOT_NAME, for joints that the robot names otherwise")
        define("field_map", [""], "entries TERM:FIELD, for observation terms whose source does not tell their place")
        define("command_interface", "", "effort, position or velocity, whichever the robot takes; empty: any")
        define("dry_run", False, "whether to compute everything and send no command")
        define("autostart", True, "whether to configure and activate the node at once", read_only=True)
        self._names = frozenset(field.name for field in dataclasses.fields(Settings)) | {"dry_run"}
        self.add_on_set_parameters_callback(self._on_parameters)

    def begin(self) -> None:
        """Configure and activate the node, where `autostart` says so; where that is refused it waits to be asked."""
        if self.get_parameter("autostart").value and self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def close(self) -> None:
        """Bring the robot to rest, and see that the commands have arrived."""
        if self._active:
            self.trigger_deactivate()
            self._commands.wait_for_all_acked(Duration(seconds=0.5))

    @_transition
    def on_configure(self) -> None:
        """Load and check the bundle."""
        values = {name: self.get_parameter(name).value for name in self._names}
        self._dry_run, self._simulated = values.pop("dry_run"), self.get_parameter("use_sim_time").value
        self._loop = PolicyLoop(Settings(**values), self._simulated, self._complain)
        self.get_logger().info(f"configured with {self._loop.bundle.path}, {self._loop.bundle.sha256}")

    @_transition
    def on_activate(self) -> None:
        """Begin an episode."""
        loop = self._configured()
        loop.begin()
        self._inputs = [self._subscribe(topic) for topic in loop.inputs.topics]
        self._inputs.append(self.create_subscription(Bool, PASSING, self._on_passing, LATCHED))
        # Where time is simulated it stands still while the simulator waits for a command.
        clock = None if self._simulated else steady_clock()
        self._period = self.create_timer(loop.robot.control_dt, self._on_period, clock=clock)
        self._active = True
        self.get_logger().info("active")

    def _subscribe(self, topic: str) -> Subscription[Any]:
        # A driver that sends best effort is heard where the parameters qos_overrides say so.
        callback, options = functools.partial(self._on_message, topic), QoSOverridingOptions.with_default_policies()
        return self.create_subscription(MESSAGES[topic], topic, callback, copy(LATEST), qos_overriding_options=options)

    @_transition
    def on_deactivate(self) -> None:
        """Bring the robot to the safe command."""
        self._come_to_rest()

    @_transition
    def on_cleanup(self) -> None:
        """Let go of the bundle."""
        self._loop = None

    @_transition
    def on_shutdown(self) -> None:
        """Bring the robot to the safe command, and let go of the bundle."""
        if self._active:
            self._come_to_rest()
        self._loop = None

    @_transition
    def on_error(self) -> None:
        """Send nothing more: what follows is the business of the safety node."""
        self._fall_deaf()
        self._loop = None

    def _come_to_rest(self) -> None:
        loop = self._configured()
        self._fall_deaf()
        for command in loop.settle():
            self._send(command)
            time.sleep(loop.robot.control_dt)
        self.get_logger().info("inactive")

    def _fall_deaf(self) -> None:
        if self._active:
            self._active = False
            self.destroy_timer(self._period)
            for subscription in self._inputs:
                self.destroy_subscription(subscription)

    def _configured(self) -> PolicyLoop:
        """The loop, where there is one."""
        if self._loop is None:
            raise UserError("the node is not configured; configure it first.")
        return self._loop

    def _on_message(self, topic: str, message: Any) -> None:
        if self._active and (command := self._configured().receive(topic, message, self._now())):
            self._send(command)

    def _on_passing(self, message: Bool) -> None:
        self._configured().controller.obeyed = message.data

    def _on_period(self) -> None:
        if self._active and (command := self._configured().tick(self._now())):
            self._send(command)

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    def _send(self, command: Command) -> None:
        """Publish a command, and what came with it."""
        if command.sendable and not self._dry_run:
            self._commands.publish(command_message(command.action, time.time_ns()))
        if command.context is not None:
            names = self._configured().bundle.manifest.context_names
            self._contexts.publish(context_message(names, command.context))
        if self._configured().state != self._reported:
            self._report()

    def _complain(self, fault: str) -> None:
        self.get_logger().error(fault, throttle_duration_sec=1.0)

    def _report(self) -> None:
        report, hardware = Report(1, "unconfigured", {}), ""
        if self._loop is not None:
            report, hardware = self._loop.report(), self._loop.robot.name
            self._reported = self._loop.state
        lifecycle = "unconfigured" if self._loop is None else "active" if self._active else "inactive"
        level, text = report.level, report.text
        if not self._active:
            level, text = (2, self._refusal) if self._refusal else (1, lifecycle)
        values = {"lifecycle": lifecycle, "dry run": self._dry_run, **report.values}
        self._reporter.report(level, text, values, hardware, log=self._active)

    def _on_parameters(self, parameters: list[Parameter[Any]]) -> SetParametersResult:
        if self._loop is not None and any(parameter.name in self._names for parameter in parameters):
            return SetParametersResult(successful=False, reason="the node is configured; clean it up first")
        return SetParametersResult(successful=True)

    def _on_estop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._order(response, lambda loop: loop.controller.stop(), "stopped until clear")

    def _on_clear(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._order(response, lambda loop: loop.controller.clear(), "cleared")

    def _on_reset_context(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._order(response, lambda loop: loop.controller.reset_context(), "the context is nominal")

    def _on_adapt(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        text = "the policy gets the inferred context" if request.data else "the policy gets the nominal context"
        return self._order(response, lambda loop: setattr(loop.controller, "adapt", request.data), text)

    def _order(self, response: Any, order: Callable[[PolicyLoop], None], done: str) -> Any:
        """Carry out what a service asks for, where there is a bundle."""
        try:
            order(self._configured())
            response.success, response.message = True, done
            self.get_logger().info(done)
            self._report()
        except UserError as error:
            response.success, response.message = False, str(error)
        return response


def _make() -> PolicyNode:
    node = PolicyNode()
    node.begin()
    return node


def main() -> int:
    """Run the node; returns the exit code."""
    return run(_make)


if __name__ == "__main__":
    sys.exit(main())
