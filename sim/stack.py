"""`surefoot run robot=ros2`: plant, policy and safety as three processes that ROS 2 alone connects."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from adapters.errors import UserError
from adapters.progress import progress_bar
from deploy.bundle import Bundle
from deploy.controller import LowConfidence
from sim.environments import make_environment
from sim.mujoco_plant import name_world
from sim.supervisor import POLL, Supervisor, interruptible

# Each process in the order of its start, its module, and what it says when it is ready. The robot comes last: it begins
# to move when it is answered.
PROCESSES = {
    "recorder": ("deploy.ros2.recorder", "records"),
    "safety": ("deploy.ros2.safety_node", "guards"),
    "policy": ("deploy.ros2.policy_node", "active"),
    "plant": ("sim.ros2_plant", "ready"),
}
# The safety filter outlives the policy, and sees to it that the robot comes to rest.
STOP_ORDER = ("policy", "safety", "plant", "recorder")
# s without a step after which a run is given up, and the longer time after which the safety filter would step in: in
# lock step it has no business to, as the robot waits.
PATIENCE, SAFETY_TIMEOUT = 30.0, 60.0
# s after which the motors' drivers let go in real time, where neither policy nor safety node is left.
COMMAND_TIMEOUT = 0.5
# Domains above 101 take ports that Linux hands out to others.
DOMAINS = 101


class StackSettings(BaseModel):
    """Settings of a run; configs/run.yaml says what each means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path
    output: Path
    steps: int = Field(default=1000, ge=1)
    suite: str | None = None
    world: str | None = None
    at_step: int | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0)
    adapt: bool = True
    soft_start: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    low_confidence: LowConfidence = "run"
    least_confidence: float = Field(default=0.5, gt=0, le=1)
    realtime: bool = False
    dry_run: bool = False
    discovery: Literal["localhost", "subnet"] = "localhost"
    domain_id: int | None = Field(default=None, ge=0, le=DOMAINS)
    public_key: Path | None = None
    log: bool = False


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Attributes:
        steps: control steps of the robot.
        episode_return: sum of their rewards.
        record: npz file of the episode, as `sim.mujoco_plant` writes it.
    """

    steps: int
    episode_return: float
    record: Path


def run_ros2(settings: StackSettings, move: Callable[[int], Any] = lambda completed: None) -> Outcome:
    """Start the three processes, let the robot run, and stop them again.

    The output folder gets the episode's record (episode.npz), the parameters of every node, a log of every process and,
    where `log` asks for it, all messages (the folder bag).

    Args:
        settings: of the run.
        move: called with the number of control steps so far.

    Raises:
        UserError: a setting makes no sense, ROS 2 is not there, or a process failed.
    """
    if importlib.util.find_spec("rclpy") is None:
        raise UserError("there is no ROS 2: install the extra 'surefoot[ros]', or source the setup file of your own.")
    if settings.dry_run and not settings.realtime:
        raise UserError("dry_run=true leaves the robot without commands, and in lock step it waits; add realtime=true.")
    folder = settings.output
    record, bag, parameters = folder / "episode.npz", folder / "bag", folder / "parameters.yaml"
    nodes = _parameters(settings, record, bag)
    processes = {name: process for name, process in PROCESSES.items() if name != "recorder" or settings.log}
    with interruptible(), Supervisor(folder, ros_environment(settings), STOP_ORDER) as children:
        record.unlink(missing_ok=True)
        shutil.rmtree(bag, ignore_errors=True)
        parameters.write_text(_as_yaml(nodes))
        for name, (module, ready) in processes.items():
            children.start(name, module, ["--ros-args", "--params-file", str(parameters)], ready, refused="[ERROR]")
        _watch(children, move)
    with np.load(record) as episode:
        rewards = episode["rewards"]
    return Outcome(len(rewards), float(rewards.sum()), record)


def show_run(settings: StackSettings) -> None:
    """Run the processes and print what happened."""
    with progress_bar("driving over ROS 2", settings.steps) as move:
        outcome = run_ros2(settings, move)
    console = Console(highlight=False)
    console.print(f"{outcome.steps} steps, return {outcome.episode_return:.1f}")
    console.print(f"record and logs are in {settings.output}", markup=False)


def ros_environment(settings: StackSettings) -> dict[str, str]:
    """Variables of the processes: who sees them, and where their logs go."""
    domain = 1 + os.getpid() % DOMAINS if settings.domain_id is None else settings.domain_id
    return {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": settings.discovery.upper(),
        "ROS_LOG_DIR": str(settings.output.absolute() / "ros"),
        "RCUTILS_CONSOLE_OUTPUT_FORMAT": "{time} [{severity}] {message}",
        "RCUTILS_COLORIZED_OUTPUT": "0",
    }


def _parameters(settings: StackSettings, record: Path, bag: Path) -> dict[str, dict[str, Any]]:
    """The parameters of every node; a mistake is found here, before any process starts."""
    bundle = Bundle.load(settings.bundle, settings.public_key)
    environment = make_environment(bundle.manifest.env)
    place = name_world(settings.suite, settings.world, settings.at_step, settings.steps, environment)
    return {
        "policy": {
            "bundle": str(settings.bundle),
            "public_key": str(settings.public_key or ""),
            "adapt": settings.adapt,
            "soft_start": settings.soft_start,
            "low_confidence": settings.low_confidence,
            "least_confidence": settings.least_confidence,
            "dry_run": settings.dry_run,
            "use_sim_time": not settings.realtime,
        },
        "safety": {
            "bundle": str(settings.bundle),
            "public_key": str(settings.public_key or ""),
            "timeout": 0.0 if settings.realtime else SAFETY_TIMEOUT,
            # In lock step every command is a step of the robot, and the policy's own soft start is enough.
            "soft_start": settings.soft_start if settings.realtime else 0.0,
        },
        "recorder": {"output": str(bag)},
        "mujoco_node": {
            "env": bundle.manifest.env,
            "perturbation": place,
            "at_step": -1 if settings.at_step is None else settings.at_step,
            "seed": settings.seed,
            "steps": settings.steps,
            "lock_step": not settings.realtime,
            "command_timeout": COMMAND_TIMEOUT,
            "listeners": 2 if settings.log else 1,
            "record": str(record),
        },
    }


def _as_yaml(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """Write parameters as ROS 2 reads them; JSON's words for values are YAML's too."""
    lines = []
    for node, parameters in nodes.items():
        lines += [f"{node}:", "  ros__parameters:"]
        lines += [f"    {name}: {json.dumps(value)}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def _watch(children: Supervisor, move: Callable[[int], Any]) -> None:
    """Wait until the robot's episode is over."""
    done, moved = 0, time.monotonic()
    while children.running("plant"):
        reports = re.findall(r"steps (\d+)", children.log("plant").read_text(errors="replace"))
        if reports and int(reports[-1]) > done:
            done, moved = int(reports[-1]), time.monotonic()
            move(done)
        if time.monotonic() - moved > PATIENCE:
            raise UserError(
                f"the robot has had no command for {PATIENCE:g} s, after {done} steps; see the logs of policy and "
                f"safety beside {children.log('plant')}."
            )
        time.sleep(POLL)
