"""The controller as a process behind LCM: observations in, commands out; `python -m deploy.lcm.runner --help`."""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lcm
import numpy as np

from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.controller import Command, Controller, State
from deploy.lcm.channels import COMMAND, NS, OBSERVATION, ORDER, PERIODS, URL, arrange, connect, decode, handle
from deploy.lcm.generated.surefoot import command_t, observation_t, order_t
from deploy.loop import Durations, FixedRateLoop
from deploy.watchdog import VERDICTS, Verdict, Watchdog

# Messages taken before one is answered: a flood must not keep the runner from answering.
BACKLOG = 30
# Longest wait for a message in s, after which is seen whether to end.
WAIT = 0.1
READY = "runner: ready"


class Runner:
    """Answers the newest observation of a robot; where there is none in time, the controller holds.

    An observation that comes again is answered by the same command again, so that a robot that waits for its answer
    may ask until it gets it.

    Args:
        controller: for one robot.
        link: the network.
        timeout: s of silence after which the controller holds, from then on once in a control period.
        clock: "shared" where this host reads the clock of the robot's stamps (one host, or clocks kept together), so
            that a stamp tells how old a message is; "own" where the robot has one of its own, as a simulated one does:
            there the time of arrival stands in for the stamp.
        dry_run: whether to compute everything and send nothing.

    Attributes:
        watchdog: judges the observations; its counts tell what came.
        undecodable: messages that were no observation at all.
        latency: s from an observation's arrival to its answer.
    """

    def __init__(
        self,
        controller: Controller,
        link: lcm.LCM,
        timeout: float,
        clock: Literal["shared", "own"] = "shared",
        dry_run: bool = False,
    ) -> None:
        self.controller, self.link, self.timeout, self.dry_run = controller, link, timeout, dry_run
        self.shared = clock == "shared"
        # Only a clock that others set can jump.
        self.watchdog = Watchdog(timeout) if self.shared else Watchdog(timeout, jump=math.inf)
        self.undecodable, self.latency = 0, Durations()
        self._source = f"{socket.gethostname()}:{os.getpid()}"
        self._joints = list(controller.bundle.manifest.robot.action.joints)
        # Begun where no other runner's count is, so that a log tells their commands apart.
        self._sequence, self._state = time.time_ns(), -1
        self._observation: Any = None
        self._answered, self._ended = True, False
        self._arrival, self._due = 0.0, math.inf
        self._sent = b""
        self._orders = {
            order_t.STOP: controller.stop,
            order_t.CLEAR: controller.clear,
            order_t.START: controller.start,
            order_t.RESET_CONTEXT: controller.reset_context,
        }
        link.subscribe(OBSERVATION, self._take_observation)
        link.subscribe(ORDER, self._take_order)

    def run(self) -> None:
        """Answer until `end`, then bring the robot to the safe command; so too where an exception ends it."""
        try:
            while not self._ended:
                self._spin()
        finally:
            self._settle()

    def end(self) -> None:
        """Let `run` come to its end; may be called by a signal's handler."""
        self._ended = True

    def _spin(self) -> None:
        """Take what has come, then answer, or hold where it is time to."""
        if handle(self.link, min(self._due - time.monotonic(), WAIT)):
            for _ in range(BACKLOG):
                if not handle(self.link, 0.0):
                    break
        if not self._answered:
            self._answer()
        elif time.monotonic() >= self._due:
            self._hold()

    def _take_observation(self, _: str, data: bytes) -> None:
        message = decode(observation_t, data)
        if message is None:
            self.undecodable += 1
            return
        arrival = time.monotonic()
        now, stamp = (time.time(), message.stamp / NS) if self.shared else (arrival, arrival)
        verdict = self.watchdog.check(now, stamp, message.sequence)
        if verdict == Verdict.GOOD:
            self._observation, self._arrival, self._answered = message, arrival, False
        elif verdict == Verdict.REPEATED and self._answered and self._sent:
            self.link.publish(COMMAND, self._sent)

    def _take_order(self, _: str, data: bytes) -> None:
        message = decode(order_t, data)
        if message is not None and message.what in self._orders:
            self._orders[message.what]()

    def _answer(self) -> None:
        seen = self._observation
        values = arrange(seen.names, seen.values, self.controller.names)
        self.controller.obeyed = seen.applied != -1
        self._publish(self.controller.step(seen.stamp / NS, values), seen.stamp, seen.sequence)
        self.latency.add(time.monotonic() - self._arrival)
        self._answered, self._due = True, self._arrival + self.timeout

    def _hold(self) -> None:
        now = time.monotonic()
        self._publish(self.controller.hold(), self._observation.stamp + round((now - self._arrival) * NS), -1)
        self._due = max(self._due + self.controller.control_dt, now)

    def _publish(self, command: Command, stamp: int, observation: int) -> None:
        self._report(command)
        if self.dry_run or not command.sendable:
            return
        message = command_t()
        message.stamp, message.sequence, message.observation = stamp, self._sequence, observation
        message.source, message.state, message.reason = self._source, int(command.state), command.explanation
        message.size, message.joints, message.action = len(self._joints), self._joints, command.action.tolist()
        message.context = [] if command.context is None else command.context.tolist()
        message.context_size = len(message.context)
        self._sent = message.encode()
        self._sequence += 1
        self.link.publish(COMMAND, self._sent)

    def _report(self, command: Command) -> None:
        """Say when the state changes."""
        if int(command.state) != self._state:
            self._state = int(command.state)
            name, why = State(self._state).name.lower().replace("_", " "), command.explanation
            print(f"runner: {name}{': ' + why if why else ''}", file=sys.stderr, flush=True)

    def _settle(self) -> None:
        """Bring the robot to the safe command, if it ever spoke."""
        self.controller.stop()
        pace = FixedRateLoop(self.controller.control_dt)
        while self._observation is not None:
            self._hold()
            if self.controller.at_rest:
                return
            pace.wait()

    def describe(self) -> str:
        """Return lines for a person about what came and how fast it was answered."""
        refused = {VERDICTS[v]: count for v, count in self.watchdog.counts.items() if v != Verdict.GOOD}
        refused |= {"the message is no observation": self.undecodable} if self.undecodable else {}
        times = " / ".join(f"{1e3 * value:.2f}" for value in self.latency.as_dict().values())
        lines = [f"{self.latency.count} observations answered; p50 / p99 / max in ms: {times}"]
        return "\n".join(lines + [f"  {count} messages refused: {text}" for text, count in refused.items()])


def _settings(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.lcm.runner", description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--url", default=URL, help="LCM network; the default reaches this host alone (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, help=f"s of silence before the hold (default {PERIODS} control periods)"
    )
    parser.add_argument("--clock", choices=("shared", "own"), default="shared", help="whose clock the stamps are of")
    parser.add_argument("--context", choices=("inferred", "nominal"), default="inferred")
    parser.add_argument("--public-key", type=Path, help="PEM file of the key that has to have signed the bundle")
    parser.add_argument("--soft-start", type=float, default=0.0, help="s from the safe command to the policy's")
    parser.add_argument("--stop-time", type=float, default=0.0, help="s back to the safe command")
    parser.add_argument("--max-hold", type=int, default=20, help="bad steps in a row before the stop (%(default)s)")
    parser.add_argument(
        "--low-confidence",
        choices=("run", "slow", "hold", "hand_over"),
        default="run",
        help="what to do far from the demonstrations of the bundle's prior",
    )
    parser.add_argument("--least-confidence", type=float, default=0.5, help="below which that is done, 0 to 1")
    parser.add_argument("--dry-run", action="store_true", help="compute everything and send nothing")
    parser.add_argument("--wait-for-start", action="store_true", help="stay idle until the order to start")
    return parser.parse_args(arguments)


def _make(settings: argparse.Namespace) -> Runner:
    bundle = Bundle.load(settings.bundle, public_key=settings.public_key)
    if bundle.lone:
        raise UserError(f"{bundle.path} is a lone file, which cannot be checked; give the folder of a whole bundle.")
    controller = Controller(
        bundle,
        context=settings.context,
        max_hold=settings.max_hold,
        soft_start=settings.soft_start,
        stop_time=settings.stop_time,
        autostart=not settings.wait_for_start,
        low_confidence=settings.low_confidence,
        least_confidence=settings.least_confidence,
    )
    # The first run of a graph takes far longer than those that follow.
    controller.bundle.act(np.zeros(bundle.manifest.obs_dim), controller.context)
    timeout = PERIODS * controller.control_dt if settings.timeout is None else settings.timeout
    return Runner(controller, connect(settings.url), timeout, settings.clock, settings.dry_run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process until SIGINT or SIGTERM; return its exit code."""
    try:
        runner = _make(_settings(arguments))
    except UserError as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: runner.end())
    print(READY, file=sys.stderr, flush=True)
    runner.run()
    print(runner.describe(), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
