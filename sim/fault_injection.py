"""`surefoot bench name=faults`: faults put into a running stack over real transports, and what the robot got for it.

The stack is the one that robots run: over ROS 2 the policy node and the safety node, over LCM the runner and the
robot's end of the channels, as processes that DDS or LCM alone connects. The robot is a simple leg at 50 Hz, so that
its side of the network is in this program's hands. `sim.fault_rig.Judge` says which commands are bad.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from sim.fault_judge import DRIVER_TIMEOUT, MARGIN, TIMEOUT, Input, Kind
from sim.fault_rig import NEVER, PATIENCE, SOFT_START, UNTOUCHED, Rig, Tampering, Transport

# Control periods that a fault lasts: less than the 20 bad steps in a row after which the controller stops for good.
LASTS = 15
# Control periods by which a message that is delayed is late: beyond every timeout.
LATE = 12
FROZEN = 0.5
JUMP = 5.0
RATE = 50.0
# s in which a recorder should notice that the disk is full.
RECORDER_PATIENCE = 5.0

Act = Callable[[Rig], AbstractContextManager["str | None"]]
"""What is done to a rig, for as long as the fault lasts; the context's value is a remark for the report."""


def nothing(rig: Rig) -> AbstractContextManager[None]:
    """Do no more than the messages tell."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: what it is.
        tampering: what is done to messages.
        act: what else is done; the fault lasts as long as its context, and at least `periods`.
        periods: how many control periods it lasts.
        detour: whether the policy's commands have to pass through this process.
        own_plant: whether the robot has to be a process of its own.
        transports: where there is such a fault.
        prepare: what is done before it begins.
        timeout: control periods of silence that whoever gives the safe command allows.
    """

    name: str
    tampering: Tampering = UNTOUCHED
    act: Act = nothing
    periods: int = LASTS
    detour: bool = False
    own_plant: bool = False
    transports: Sequence[Transport] = ("ros2", "lcm")
    prepare: Callable[[Rig], object] = nothing
    timeout: int = TIMEOUT


@dataclass(frozen=True)
class Row:
    """What a fault did.

    Attributes:
        fault: its name.
        transport: where.
        safe_ms: ms from the fault to the first safe command at the robot; None where commands just went on.
        safe_periods: the same less the watchdog's timeout, in control periods.
        held_ms: longest time for which the robot kept a command of the policy's before it got the next command.
        commands: how many reached the robot, from the fault until the policy drove it again.
        bad: how many of them were bad.
        recovery: how the policy came to drive the robot again.
        in_time: whether no command was kept longer than the timeout and `MARGIN` control periods.
    """

    fault: str
    transport: Transport
    safe_ms: float | None
    safe_periods: float | None
    held_ms: float
    commands: int
    bad: int
    recovery: str
    in_time: bool


def killed(name: str) -> Act:
    """A process dies without a word."""

    def act(rig: Rig) -> AbstractContextManager[None]:
        rig.children.signal(name, signal.SIGKILL)
        return contextlib.nullcontext()

    return act


@contextlib.contextmanager
def frozen(rig: Rig) -> Iterator[None]:
    """The policy's process gets no time, and then it does."""
    rig.children.signal("policy", signal.SIGSTOP)
    try:
        rig.run(FROZEN)
        yield
    finally:
        rig.children.signal("policy", signal.SIGCONT)


@contextlib.contextmanager
def swapped(rig: Rig) -> Iterator[None]:
    """Another bundle takes the place of the one that runs."""
    aside = rig.bundle.with_suffix(".aside")
    rig.bundle.rename(aside)
    rig.other_bundle.rename(rig.bundle)
    try:
        yield
    finally:
        rig.bundle.rename(rig.other_bundle)
        aside.rename(rig.bundle)


@contextlib.contextmanager
def joined(rig: Rig) -> Iterator[None]:
    """A second policy, with another bundle, is started on the same topics."""
    rig.start("other")
    try:
        yield
    finally:
        with rig.going_on():
            rig.children.dismiss("other")


@contextlib.contextmanager
def disk_full(rig: Rig) -> Iterator[str]:
    """The recorder has no more room, while the robot runs."""
    empty = rig.fill_disk()
    ended = rig.run(RECORDER_PATIENCE, lambda: not rig.children.alive("recorder"))
    empty()
    yield "the recorder said so and ended" if ended else "the recorder did not notice"
    with rig.going_on():
        rig.children.dismiss("recorder")


def ordered(what: str) -> Act:
    """A person stops the robot."""

    def act(rig: Rig) -> AbstractContextManager[None]:
        rig.tap.order(what)
        return contextlib.nullcontext()

    return act


def begin_soft_start(rig: Rig) -> None:
    """Stop the robot, clear the stop, and wait until the policy has taken over by half."""
    rig.tap.order("policy/estop")
    rig.run(PATIENCE, lambda: rig.kind(rig.inputs[-1]) == "safe")
    rig.tap.order("policy/clear")
    rig.run(PATIENCE, lambda: rig.kind(rig.inputs[-1]) == "starting")
    rig.run(SOFT_START / 2 * rig.dt)


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return how the position of the hip is replaced."""

    def replace(values: np.ndarray) -> np.ndarray:
        return np.array([values[0], value, *values[2:]])

    return replace


def dropped(number: int) -> Sequence[float]:
    """Lose six messages in a row, out of nine."""
    return () if number % 9 < 6 else (0.0,)


def delayed(number: int) -> Sequence[float]:
    """Send every message late."""
    return (LATE,)


def doubled(number: int) -> Sequence[float]:
    """Send every message twice."""
    return (0.0, 0.3)


def reordered(number: int) -> Sequence[float]:
    """Send every other message after the next one."""
    return (0.0,) if number % 2 else (1.3,)


NAN, INF = float("nan"), float("inf")
DELAYS = {"dropped": dropped, "delayed": delayed, "duplicated": doubled, "reordered": reordered}
NUMBERS: dict[str, list[float]] = {
    "NaN": [NAN, 0.1],
    "infinity": [0.1, INF],
    "wrong size": [0.1],
    "beyond limits": [100.0, 0.1],
}
FAULTS = (
    Fault("policy killed", act=killed("policy")),
    Fault("policy frozen for 0.5 s", act=frozen, periods=0),
    Fault("safety killed", act=killed("safety"), transports=("ros2",), timeout=DRIVER_TIMEOUT),
    Fault("bundle swapped on disk", act=swapped),
    Fault("disk full while recording", act=disk_full, prepare=lambda rig: rig.start("recorder"), periods=0),
    Fault("e-stop in the soft start", act=ordered("policy/estop"), prepare=begin_soft_start),
    Fault(
        "e-stop at the safety node, in the soft start",
        act=ordered("safety/estop"),
        prepare=begin_soft_start,
        transports=("ros2",),
    ),
    Fault("two policies on one topic", act=joined),
    *(Fault(f"observations {name}", Tampering(observations=delays)) for name, delays in DELAYS.items()),
    *(
        Fault(f"{name} in observations", Tampering(values=with_value(value)))
        for name, value in {"NaN": NAN, "infinity": INF, "values beyond limits": 100.0}.items()
    ),
    Fault("observations of a wrong size", Tampering(spoil="size")),
    Fault("observations of other joints", Tampering(spoil="names")),
    Fault("a joint missing in observations", Tampering(spoil="missing")),
    Fault("robot's clock 5 s ahead", Tampering(clock=JUMP)),
    Fault("robot's clock 5 s back", Tampering(clock=-JUMP)),
    *(Fault(f"second source: {name}", Tampering(intruder=numbers)) for name, numbers in NUMBERS.items()),
    Fault("second source: good commands", Tampering(intruder=[0.7, -0.3])),
    *(Fault(f"commands {name}", Tampering(commands=delays), detour=True) for name, delays in DELAYS.items()),
    *(Fault(f"commands altered: {name}", Tampering(forged=numbers), detour=True) for name, numbers in NUMBERS.items()),
    Fault("plant killed", act=killed("plant"), own_plant=True),
)

CAPTION = (
    f"A leg at {RATE:g} Hz; policy and safety filter each allow {TIMEOUT} control periods of silence, the timeout; the "
    f"robot's own driver, which alone is left where the safety node is killed, {DRIVER_TIMEOUT}. "
    "safe after: from the fault to the first safe command at the robot, empty where commands went on. periods after "
    "timeout: below 0 it was before the timeout. longest hold: longest time for which the robot kept one of the "
    f"policy's commands; LATE: more than {MARGIN} control periods beyond the timeout. bad commands: not finite, of "
    "another size, beyond limits, from another source, or not the policy's answer to an observation that was sound "
    "and recent. Over LCM the safety filter is in the plant's process."
)


def inject(rig: Rig, fault: Fault) -> Row:
    """Let a fault happen, and see what the robot gets until the policy drives it again.

    Raises:
        UserError: the policy does not drive the robot before the fault.
    """
    rig.hand_over(fault.own_plant)
    rig.take_detour(fault.detour)
    rig.settle()
    fault.prepare(rig)
    known, began = len(rig.inputs) - 1, time.time()
    rig.tamper(fault.tampering)
    try:
        with fault.act(rig) as remark:
            rig.run(fault.periods * rig.dt)
    finally:
        rig.tamper(UNTOUCHED)
    recovery = "; ".join(filter(None, (rig.recover(), remark)))
    return _row(rig, fault, began, rig.inputs[known:], recovery)


def _row(rig: Rig, fault: Fault, began: float, inputs: list[Input], recovery: str) -> Row:
    kinds = [rig.kind(command) for command in inputs]
    safe = next((i.time - began for i, kind in zip(inputs, kinds, strict=True) if kind == "safe"), None)
    held, timeout = _longest_hold(inputs, kinds), fault.timeout * rig.dt
    return Row(
        fault=fault.name,
        transport=rig.transport,
        safe_ms=None if safe is None else 1e3 * safe,
        safe_periods=None if safe is None else (safe - timeout) / rig.dt,
        held_ms=1e3 * held,
        commands=len(inputs) - 1,
        bad=kinds[1:].count("bad"),
        recovery=recovery,
        in_time=held <= timeout + MARGIN * rig.dt,
    )


def _longest_hold(inputs: Sequence[Input], kinds: Sequence[Kind]) -> float:
    """Return the longest time in s from a command of the policy's to the next command that is another."""
    longest, since = 0.0, inputs[0].time
    for before, kind, after in zip(inputs, kinds, inputs[1:], strict=False):
        if kind != "safe":
            longest = max(longest, after.time - since)
        if kind == "safe" or not np.array_equal(before.numbers, after.numbers):
            since = after.time
    return longest


def inject_all(
    transports: Sequence[Transport],
    move: Callable[[int, str], Any] = lambda completed, name: None,
    faults: Sequence[Fault] = FAULTS,
) -> list[Row]:
    """Let every fault happen on every transport.

    Args:
        transports: which.
        move: called with the number of faults so far, and the next one's name.
        faults: which.

    Raises:
        UserError: a process does not start, or the policy does not drive the robot to begin with.
    """
    rows: list[Row] = []
    for transport in transports:
        waiting = [fault for fault in faults if transport in fault.transports]
        while waiting:
            with tempfile.TemporaryDirectory() as folder, Rig(transport, Path(folder), RATE) as rig:
                lost = False
                while waiting and not lost:
                    fault = waiting.pop(0)
                    move(len(rows), f"{transport}: {fault.name}")
                    rows.append(inject(rig, fault))
                    lost = rows[-1].recovery.startswith(NEVER)  # nothing brings it back, so it is replaced
    return rows


def fault_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Lay the rows of a report out for the terminal."""
    table = Table(title="Faults, and what the robot got", caption=CAPTION, caption_justify="left")
    table.add_column("fault")
    table.add_column("transport")
    for title in ("safe after, ms", "periods after timeout", "longest hold, ms", "bad commands"):
        table.add_column(title, justify="right")
    table.add_column("recovers")
    for row in rows:
        figures = [_figure(row["safe_ms"], 0), _figure(row["safe_periods"], 1), _figure(row["held_ms"], 0)]
        late = "" if row["in_time"] else " LATE"
        cells = [*figures[:2], figures[2] + late, f"{row['bad']} of {row['commands']}", row["recovery"]]
        table.add_row(row["fault"], row["transport"], *cells)
    return table


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
