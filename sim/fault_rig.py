"""A robot's side under faults: real processes to kill, real messages to alter, and a judge of what drives the robot."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adapters.errors import UserError
from deploy.bundle import Bundle
from sim.fault_judge import DRIVER_TIMEOUT, Input, Judge, Kind
from sim.fault_plant import READY, Leg, write_leg
from sim.stack import DOMAINS
from sim.supervisor import Supervisor

if TYPE_CHECKING:
    from deploy.lcm.tap import LcmTap
    from deploy.ros2.tap import Ros2Tap

Transport = Literal["ros2", "lcm"]
Delays = Callable[[int], Sequence[float]]
"""Of a message's number, for each time it is to be sent the control periods until then."""

# Control periods of the soft start.
SOFT_START = 10
# s that a recovery without help may take, since DDS needs up to 3 to find a process again; s to wait for what has to
# happen.
RECOVERY, PATIENCE = 4.0, 30.0
# Commands of the policy's own in a row after which it drives the robot.
STEADY = 5
NEVER = "not at all"
# Bytes that a recorder may write before the disk is full to it: by the size of its files, or by the room on the disk.
RECORDED, ROOM = 100_000, 200_000_000
STOP_ORDER = ("other", "recorder", "policy", "safety", "plant")


def at_once(number: int) -> Sequence[float]:
    """Send every message as it is made."""
    return (0.0,)


@dataclass(frozen=True)
class Tampering:
    """What is done to messages.

    Attributes:
        values: what takes the place of an observation's values.
        spoil: what is wrong with an observation's form: "size", "names" or "missing"; empty for nothing.
        clock: s by which the robot's clock is wrong.
        observations: when and how often observations are sent.
        commands: when and how often the policy's commands are.
        forged: numbers that take the place of those of the policy's commands.
        intruder: numbers of commands that a second source sends, one in each control period.
    """

    values: Callable[[np.ndarray], np.ndarray] | None = None
    spoil: str = ""
    clock: float = 0.0
    observations: Delays = at_once
    commands: Delays = at_once
    forged: Sequence[float] | None = None
    intruder: Sequence[float] | None = None

    @property
    def spares_observations(self) -> bool:
        """Whether observations say what is true."""
        return self.values is None and not self.spoil and not self.clock


UNTOUCHED = Tampering()


class Rig:
    """A leg, the processes that drive it, and what stands between; a context manager.

    The leg moves in real time in this process, or in one of its own that `hand_over` starts.

    Args:
        transport: what connects.
        folder: for bundles and logs.
        hz: control rate.
        slack: s that the judge allows a busy machine.

    Attributes:
        inputs: every command that reached the robot.
        children: the processes.

    Raises:
        UserError: a process does not start.
    """

    def __init__(self, transport: Transport, folder: Path, hz: float, slack: float = 0.0) -> None:
        self.transport, self.dt, self._logs = transport, 1.0 / hz, folder / "logs"
        self.bundle, self.other_bundle = folder / "leg.bundle", folder / "other.bundle"
        self.recording = folder / "recording"
        write_leg(self.bundle, hz)
        write_leg(self.other_bundle, hz, sign=-1.0)
        loaded = Bundle.load(self.bundle)
        self.tamper(UNTOUCHED)
        self.inputs: list[Input] = []
        self._judge, self._leg = Judge(loaded, slack), Leg(loaded.manifest.robot)
        self._waiting: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._queued = itertools.count()
        self._take_back: Callable[[], None] | None = None
        self._detour, self._due = False, time.monotonic()
        self._environment = {
            "ROS_DOMAIN_ID": str(1 + os.getpid() % DOMAINS),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "ROS_LOG_DIR": str(folder.absolute() / "ros"),
        }
        self._url = f"udpm://239.255.76.67:{20_000 + os.getpid() % 20_000}?ttl=0"
        self.children = Supervisor(self._logs, self._environment, STOP_ORDER)

    def __enter__(self) -> Rig:
        self.tap = self._make_tap()
        try:
            for name in self.needed:
                self.start(name)
            self.settle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.children.stop()
        self.tap.close()

    def _make_tap(self) -> LcmTap | Ros2Tap:
        robot = self._leg.robot
        if self.transport == "lcm":
            from deploy.lcm.tap import LcmTap

            return LcmTap(robot, self._url, self._on_input, self._on_command, SOFT_START * self.dt)
        from deploy.ros2.tap import Ros2Tap

        return Ros2Tap(robot, int(self._environment["ROS_DOMAIN_ID"]), self._on_input, self._on_command)

    @property
    def needed(self) -> list[str]:
        """The processes without which nothing moves, in the order of their start."""
        guard = ["safety"] if self.transport == "ros2" else []
        return [*guard, "policy", *(["plant"] if self._take_back else [])]

    def start(self, name: str) -> None:
        """Start a process, or start it again: policy, safety, plant, or other, which is a second policy."""
        module, arguments, ready = (self._ros2_process if self.transport == "ros2" else self._lcm_process)(name)
        with self.going_on():
            self.children.start(name, module, arguments, ready)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Let time pass during the block."""
        done = threading.Event()
        # Not the other way round: a child dies with the thread that started it.
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.run, math.inf, done.is_set)
            try:
                yield
            finally:
                done.set()
                running.result()

    def _ros2_process(self, name: str) -> tuple[str, list[str], str]:
        bundle = self.other_bundle if name == "other" else self.bundle
        arguments = ["--ros-args", "-p", f"bundle:={bundle}"]
        if name == "plant":
            return "sim.fault_plant", ["ros2", str(bundle), "--ros-args", "-p", "lock_step:=false"], "ready"
        if name == "safety":
            return "deploy.ros2.safety_node", [*arguments, "-p", f"soft_start:={SOFT_START * self.dt}"], "guards"
        if name == "recorder":
            return "deploy.ros2.recorder", ["--ros-args", "-p", f"output:={self.recording}"], "records"
        arguments += ["-p", f"soft_start:={SOFT_START * self.dt}"]
        arguments += ["-r", "~/commands:=/detour/commands"] if self._detour else []
        return "deploy.ros2.policy_node", arguments, "active"

    def _lcm_process(self, name: str) -> tuple[str, list[str], str]:
        bundle = str(self.other_bundle if name == "other" else self.bundle)
        if name == "plant":
            return "sim.fault_plant", ["lcm", bundle, self._url], READY
        if name == "recorder":
            return "deploy.lcm.logger", [str(self.recording), self._url, str(self._reserve)], "logger: ready"
        arguments = [bundle, "--url", self._url, "--soft-start", str(SOFT_START * self.dt)]
        return "deploy.lcm.runner", arguments, "runner: ready"

    @property
    def _reserve(self) -> int:
        """Bytes of the disk that the recorder is to keep free: a little less than there are."""
        return shutil.disk_usage(self.recording.parent).free - ROOM

    def fill_disk(self) -> Callable[[], object]:
        """Leave the recorder no room, and return how to undo that.

        lcm-logger looks at how much of the disk is free; to a program that looks at its writes alone, a limit on the
        size of its files is a full disk.
        """
        if self.transport == "ros2":
            resource.prlimit(self.children.pid("recorder"), resource.RLIMIT_FSIZE, (RECORDED, RECORDED))
            return lambda: None
        ballast = self.recording.with_suffix(".ballast")
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * ROOM)
        return ballast.unlink

    def tamper(self, tampering: Tampering) -> None:
        """Do this to messages from now on; the number of a message counts from here."""
        self._tampering = tampering
        self._observations, self._commands = itertools.count(), itertools.count()

    def take_detour(self, detour: bool) -> None:
        """Let the policy's commands pass through this process or not; over LCM they always do."""
        if self.transport == "ros2" and detour != self._detour:
            self._detour = detour
            with self.going_on():
                self.children.dismiss("policy")
            self.tap.leave()
            self.start("policy")

    def hand_over(self, own_process: bool) -> None:
        """Let the leg move in a process of its own or in this one."""
        if own_process and self._take_back is None:
            take_back = self.tap.listen(self._judge.observed)
            self.start("plant")
            self._take_back = take_back
        elif not own_process and self._take_back is not None:
            self.children.dismiss("plant")
            self._take_back()
            self._take_back = None

    def settle(self) -> None:
        """Bring the policy to drive the robot.

        Raises:
            UserError: it does not.
        """
        if self.recover() == NEVER:
            logs = {path.name: path.read_text(errors="replace").splitlines()[-1:] for path in self._logs.iterdir()}
            raise UserError(f"the policy does not drive the robot over {self.transport}; the logs end with {logs}.")

    def recover(self) -> str:
        """Do what a person has to until the policy drives the robot again, and return what that was, or `NEVER`."""
        done = []
        if dead := [name for name in self.needed if not self.children.alive(name)]:
            for name in dead:
                self.start(name)
            done.append("a restart")
        if self._drives(RECOVERY):
            return "after a restart" if done else "by itself"
        for order in ("safety/clear", "policy/clear"):
            self.tap.order(order)
        return "after " + " and ".join([*done, "clear"]) if self._drives(PATIENCE) else NEVER

    def _drives(self, seconds: float) -> bool:
        """Whether within so many seconds the policy drives the robot: several commands in a row are its own."""
        since = time.time()
        return self.run(seconds, lambda: self._is_steady(since))

    def _is_steady(self, since: float) -> bool:
        latest = self.inputs[-STEADY:]
        return len(latest) == STEADY and latest[0].time > since and all(self.kind(i) == "running" for i in latest)

    def kind(self, command: Input) -> Kind:
        """Return what a command is."""
        return self._judge.kind(command)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass; return whether a condition, asked once in a control period, held before it was over."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if now >= self._due:
                if until():
                    return True
                self._begin_period()
                self._due = max(self._due + self.dt, now)
            while self._waiting and self._waiting[0][0] <= now:
                _, _, send, message = heapq.heappop(self._waiting)
                send(message)
            first = self._waiting[0][0] if self._waiting else end
            self.tap.spin(min(self._due, first, end) - time.monotonic())
        return False

    def _begin_period(self) -> None:
        if self._take_back is not None:
            return
        self.tap.begin_period()
        if self.inputs and time.time() - self.inputs[-1].time > DRIVER_TIMEOUT * self.dt:
            self._on_input(time.time(), np.zeros(2))
        if self.inputs:
            numbers = self.inputs[-1].numbers
            self._leg.step(numbers if self.kind(self.inputs[-1]) != "bad" else np.zeros(2))
        if self._tampering.intruder is not None:
            self.tap.intrude(self._tampering.intruder)
        self._observe()

    def _observe(self) -> None:
        tampering, values = self._tampering, self._leg.observe()
        if tampering.spares_observations:
            self._judge.observed(time.time(), values)
        self.tap.clock_offset = tampering.clock
        messages = self.tap.observation(values if tampering.values is None else tampering.values(values))
        number = next(self._observations)
        for message in messages:
            spoilt = self.tap.spoil(message, tampering.spoil) if tampering.spoil else message
            self._send(tampering.observations(number), self.tap.send, spoilt)

    def _on_command(self, message: Any) -> None:
        if self._tampering.forged is not None:
            message = self.tap.with_numbers(message, self._tampering.forged)
        self._send(self._tampering.commands(next(self._commands)), self.tap.forward, message)

    def _send(self, delays: Sequence[float], send: Callable[[Any], None], message: Any) -> None:
        for delay in delays:
            if delay == 0:
                send(message)
            else:
                heapq.heappush(self._waiting, (time.monotonic() + delay * self.dt, next(self._queued), send, message))

    def _on_input(self, time: float, numbers: np.ndarray) -> None:
        self.inputs.append(Input(time, numbers))
