"""What the policy node does, without ROS 2: messages and times in, commands and a report out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.context import Health
from deploy.controller import REASONS, Command, Controller, LowConfidence, Reason, State
from deploy.loop import LoopStatistics
from deploy.ros2.fields import ObservationReader, parse_map
from deploy.ros2.inputs import Inputs, Observed
from deploy.spec import RobotDescription

# Control periods without an observation after which the robot is brought to rest, where stale_timeout is 0.
STALE_PERIODS = 3

# Rates that differ by a smaller share are the same, written with another number of digits.
RATE_PRECISION = 1e-3


@dataclass(frozen=True)
class Settings:
    """The node's parameters of the same names."""

    bundle: str
    public_key: str
    rate: float
    stale_timeout: float
    sync_tolerance: float
    soft_start: float
    stop_time: float
    low_confidence: str
    least_confidence: float
    adapt: bool
    joint_map: list[str]
    field_map: list[str]
    command_interface: str


class Report(NamedTuple):
    """How things are.

    Attributes:
        level: 0 where all is well, 1 for a warning, 2 for an error.
        text: in words.
        values: what else there is to know.
    """

    level: int
    text: str
    values: dict[str, object]


class PolicyLoop:
    """Runs one bundle on the messages of one robot.

    Args:
        settings: what runs, and how.
        simulated: whether the robot's time is simulated.
        complain: called with each fault of a message, in words.

    Attributes:
        bundle: what runs.
        controller: runs it.
        inputs: what it gets.
        robot: what it is for.
        statistics: time from the last message of a set to the command, and how late sets came.

    Raises:
        UserError: the bundle is not whole, is not signed by the key, or does not fit a setting.
    """

    def __init__(self, settings: Settings, simulated: bool, complain: Callable[[str], object]) -> None:
        self.bundle = _load(settings)
        self.robot = robot = self.bundle.manifest.robot
        _check(settings, robot)
        self.controller = Controller(
            self.bundle,
            soft_start=settings.soft_start,
            stop_time=settings.stop_time,
            low_confidence=cast(LowConfidence, settings.low_confidence),
            least_confidence=settings.least_confidence,
        )
        self.controller.adapt = settings.adapt
        reader = ObservationReader(
            robot, parse_map("joint_map", settings.joint_map), parse_map("field_map", settings.field_map)
        )
        timeout = settings.stale_timeout or STALE_PERIODS * robot.control_dt
        self.inputs = Inputs(reader, robot.control_dt, timeout, settings.sync_tolerance, simulated, complain)
        self.statistics = LoopStatistics(robot.control_dt)
        self._reasons: Counter[str] = Counter()
        self.begin()

    def begin(self) -> None:
        """Begin an episode with nothing remembered but the counts; a robot that was stopped stays so."""
        self.controller.reset()
        self.inputs.forget()
        self.last: Command | None = None
        self._health: Health | None = None
        self._fault = ""
        self._began: float | None = None

    def receive(self, topic: str, message: Any, now: float) -> Command | None:
        """Take in a message at `now`, in s on the clock of the stamps; return a command where one is due."""
        began = time.monotonic()
        observed = self.inputs.receive(topic, message, now)
        if observed is None:
            return None
        command = self._answer(observed)
        self._measure(began)
        return command

    def _answer(self, observed: Observed) -> Command:
        if observed.values is None:
            return self._note(self.controller.hold(), observed.fault)
        return self._note(self.controller.step(observed.time, observed.values))

    def tick(self, now: float) -> Command | None:
        """Return the command of a control period in which the robot is silent, None where it is not."""
        return self._note(self.controller.hold()) if self.inputs.silent(now) else None

    def settle(self) -> Iterator[Command]:
        """Bring the robot to the safe command, one control period after another; a stopped robot stays so."""
        stopped = self.state == State.STOPPED
        self.controller.stop()
        yield self._note(self.controller.hold())
        while not self.controller.at_rest:
            yield self._note(self.controller.hold())
        if not stopped:
            self.controller.clear()

    def _note(self, command: Command, fault: str = "") -> Command:
        """Remember a command, and what was wrong with the messages that it answers."""
        reason = Reason(int(command.reason))
        self.last, self._health = command, command.health or self._health
        self._fault = fault if reason == Reason.SILENT and fault else command.explanation
        if reason != Reason.NONE and not fault:
            self._reasons[REASONS[reason]] += 1
        return command

    def _measure(self, began: float) -> None:
        """Take in how long a step took that began now, and how late it was after the one before."""
        duration, period = time.monotonic() - began, self.statistics.period
        self.statistics.step.add(duration)
        self.statistics.overruns += duration > period
        if self._began is not None:
            self.statistics.lateness.add(max(began - self._began - period, 0.0))
        self._began = began

    @property
    def state(self) -> State:
        """What the controller does."""
        return State(int(self.controller.state))

    def report(self) -> Report:
        """Say how things are."""
        state = self.state
        text = state.name.lower().replace("_", " ")
        if self.last is None and state != State.STOPPED:
            return Report(1, self._waiting(), self._values(text))
        level = {State.RUNNING: 0, State.SOFT_START: 0, State.STOPPED: 2}.get(state, 1)
        fault = REASONS[Reason.STOP] if self.last is None else self._fault
        if not fault:
            return Report(level, text, self._values(text))
        # What stopped a robot says itself that it is stopped.
        return Report(max(level, 1), fault if state == State.STOPPED else f"{text}: {fault}", self._values(text))

    def _waiting(self) -> str:
        """Say why there is no command yet."""
        if self.inputs.faults:
            return f"no good observation yet: {self.inputs.faults.most_common(1)[0][0]}"
        return f"waiting for {', '.join(self.inputs.lacking) or 'messages of one stamp'}"

    def _values(self, state: str) -> dict[str, object]:
        figures = self.statistics.as_dict()
        values: dict[str, object] = {"state": state, "bundle": self.bundle.sha256, "signed by": self.bundle.signed_by}
        values |= {name: figures[name] for name in ("steps", "overruns")} | {"skipped sets": self.inputs.skipped}
        for name in ("step", "lateness"):
            values |= {f"{name} {share} (ms)": f"{1e3 * value:.3f}" for share, value in figures[name].items()}
        return values | self._context() | {f"fault: {text}": count for text, count in self.faults.items()}

    def _context(self) -> dict[str, object]:
        """What is inferred of delay and context, how far the context is to be trusted, and the prior's confidence."""
        health = self._health
        values: dict[str, object] = {}
        if self.last is not None and self.last.delay is not None:
            values["delay (control periods)"] = int(self.last.delay)
        if self.last is not None and self.last.share is not None:
            values["share of the command"] = f"{float(self.last.share):.3g}"
        if self.last is not None and self.last.confidence is not None:
            values["confidence"] = f"{float(self.last.confidence):.3g}"
        if health is None:
            return values
        return values | {
            "adapt": self.controller.adapt,
            "context residual": f"{float(health.residual):.3g}",
            "context confidence": f"{float(health.confidence):.3g}",
            "context changed": bool(health.changed),
        }

    @property
    def faults(self) -> Counter[str]:
        """How often what was found wrong, of messages and of control steps, in words."""
        return self.inputs.faults + self._reasons


def _load(settings: Settings) -> Bundle:
    """Load the bundle, and refuse a part of one."""
    if not settings.bundle:
        raise UserError("no bundle is given; set the parameter bundle to its folder.")
    bundle = Bundle.load(settings.bundle, settings.public_key or None)
    if bundle.lone:
        raise UserError(f"{bundle.path} is a lone file, which cannot be checked; give the folder of a whole bundle.")
    return bundle


def _check(settings: Settings, robot: RobotDescription) -> None:
    """Refuse settings that do not fit the bundle."""
    rate, law = 1.0 / robot.control_dt, robot.action.law
    if settings.rate and abs(settings.rate - rate) > RATE_PRECISION * rate:
        raise UserError(f"rate={settings.rate:g} Hz, but the bundle acts at {rate:g} Hz; set it to that, or to 0.")
    if settings.command_interface not in ("", law):
        raise UserError(
            f"command_interface={settings.command_interface}, but the bundle commands {law}; connect the robot's "
            f"{law} interface."
        )
    if 0 < settings.stale_timeout < robot.control_dt:
        raise UserError(
            f"stale_timeout={settings.stale_timeout:g} s is shorter than the control period; give "
            f"{robot.control_dt:g} s or more."
        )
