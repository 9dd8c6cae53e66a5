"""`surefoot bench name=rate`: how well a controller keeps its rate, for as long as asked, and what memory it takes."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from adapters.files import read_bytes
from deploy.bundle import DYNAMICS, GOLDEN, POLICY, Bundle, write_bundle
from sim.rate_loop import READY
from sim.stack import DOMAINS
from sim.supervisor import Supervisor

# s between two looks; the first tells the memory that the process begins with.
LOOK = 0.5
STOP_ORDER = ("loop", "policy")

CAPTION = (
    "overruns: steps that did not end within their period. missed: periods in which none began. step: time of a "
    "control step, the context's estimate included. late: how long after its time one began; in the policy node, how "
    "long after its time an observation came. memory: resident, after a second and at the end."
)


@dataclass(frozen=True)
class Endurance:
    """How one place fared; times are p50, p99 and max in s.

    Attributes:
        place: where the controller ran.
        steps: control steps.
        overruns: those that did not end within their period.
        missed: periods in which no step began.
        step: time that the steps took.
        lateness: from the time for which one was due to its beginning.
        memory_start: resident bytes after the first second.
        memory_end: at the end.
    """

    place: str
    steps: int
    overruns: int
    missed: int
    step: Mapping[str, float]
    lateness: Mapping[str, float]
    memory_start: int
    memory_end: int


def at_rate(bundle: Bundle, path: Path, hz: float) -> Bundle:
    """Write a bundle that is the same but for its control rate.

    Args:
        bundle: the original.
        path: of the new one.
        hz: its rate.
    """
    with np.load(bundle.path / GOLDEN) as golden:
        rows = dict(golden)
    robot = bundle.manifest.robot.model_copy(update={"control_dt": 1.0 / hz})
    dynamics = bundle.path / DYNAMICS
    write_bundle(
        path,
        policy=read_bytes(bundle.path / POLICY),
        spec=bundle.manifest.model_copy(update={"robot": robot}),
        golden=rows,
        dynamics=read_bytes(dynamics) if dynamics.exists() else None,
    )
    return Bundle.load(path)


def endure(
    bundle: Bundle,
    seconds: float,
    folder: Path,
    through_ros2: bool = False,
    move: Callable[[int], Any] = lambda completed: None,
) -> Endurance:
    """Run a controller with inferred context at its bundle's rate, in a process of its own.

    Args:
        bundle: what runs.
        seconds: how long.
        folder: for the logs.
        through_ros2: whether it runs in the policy node, on messages of yet another process; else in the fixed-rate
            loop, on a robot in the same process.
        move: called with the number of control periods so far.

    Raises:
        UserError: a process fails.
    """
    environment = {"ROS_DOMAIN_ID": str(1 + os.getpid() % DOMAINS), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    children = Supervisor(folder, environment, STOP_ORDER)
    with children:
        if through_ros2:
            arguments = ["--ros-args", "-p", f"bundle:={bundle.path.absolute()}"]
            children.start("policy", "deploy.ros2.policy_node", arguments, "active")
        part = "sender" if through_ros2 else "controller"
        children.start("loop", "sim.rate_loop", [part, str(bundle.path), str(seconds)], READY)
        memory = _watch(children, children.pid("policy" if through_ros2 else "loop"), move)
        figures = json.loads(children.log("loop").read_text().splitlines()[-1])
    place = "policy node" if through_ros2 else "fixed-rate loop"
    return Endurance(place, **figures, memory_start=memory[0], memory_end=memory[-1])


def _watch(children: Supervisor, pid: int, move: Callable[[int], Any]) -> list[int]:
    """Wait for the loop's end; return the resident memory of a process from the first second on, in bytes."""
    memory = []
    while children.running("loop"):
        if reports := re.findall(r"steps (\d+)", children.log("loop").read_text()):
            memory.append(resident(pid))
            move(int(reports[-1]))
        time.sleep(LOOK)
    return memory


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def endurance_table(report: Mapping[str, Any]) -> Table:
    """Lay a report out for the terminal."""
    title = f"{report['hz']:g} Hz for {report['minutes']:g} min"
    table = Table(title=title, caption=CAPTION, caption_justify="left")
    table.add_column("place")
    for column in ("steps", "overruns", "missed", "step p50 / p99 / max, ms", "late p50 / p99 / max, ms", "memory, MB"):
        table.add_column(column, justify="right")
    for row in report["rows"]:
        counts = [f"{row[name]:,}" for name in ("steps", "overruns", "missed")]
        times = [_milliseconds(row[name].values()) for name in ("step", "lateness")]
        memory = " -> ".join(f"{row[name] / 1e6:.1f}" for name in ("memory_start", "memory_end"))
        table.add_row(row["place"], *counts, *times, memory)
    return table


def _milliseconds(values: Iterable[float]) -> str:
    return " / ".join(f"{1e3 * value:.2f}" for value in values)
