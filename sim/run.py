"""`surefoot run`: a bundle drives a robot through the Robot interface, one control period after another."""

from __future__ import annotations

import collections
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from adapters.command import command
from adapters.errors import UserError
from adapters.progress import MoveBar, progress_bar
from adapters.robots.gymnasium_robot import GymnasiumRobot
from adapters.robots.robot import Robot
from deploy.bundle import Bundle
from deploy.controller import Command, Controller, State
from sim.environments import make_environment, quiet_mujoco

# Hydra would take these for config groups, because folders of those names lie in configs/.
ALIASES = {"robot=": "driver=", "env=": "gym_id="}


class RunConfig(BaseModel):
    """Settings of the command; configs/run.yaml says what each means."""

    model_config = ConfigDict(extra="forbid")

    bundle: Path
    driver: Literal["gymnasium"]
    gym_id: str | None
    steps: int = Field(ge=1)
    context: Literal["inferred", "nominal"]
    seed: int = Field(ge=0)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What happened.

    Attributes:
        steps: commands sent.
        last: the last of them.
        faults: how many steps each fault took, in words.
    """

    steps: int
    last: Command
    faults: dict[str, int]


def drive(robot: Robot, controller: Controller, steps: int, move: MoveBar = lambda completed: None) -> Outcome:
    """Close the loop until the robot has nothing new to say, at most for `steps` control periods.

    Args:
        robot: what is driven; it keeps the time.
        controller: for one robot.
        steps: control periods.
        move: called with the number of commands sent.

    Raises:
        UserError: the robot never gave a fresh observation.
    """
    faults: collections.Counter[str] = collections.Counter()
    last, sent = None, 0
    while sent < steps and (observation := robot.observe()).fresh:
        last = controller.step(observation.time, observation.values)
        if last.explanation:
            faults[last.explanation] += 1
        robot.command(last.action)
        sent += 1
        move(sent)
    if last is None:
        raise UserError("the robot gave no observation; check that it is there and switched on.")
    return Outcome(sent, last, dict(faults))


def connect(bundle: Bundle, config: RunConfig) -> GymnasiumRobot:
    """Return the environment that is to be driven.

    Raises:
        UserError: it is not there, or the bundle was made for another robot.
    """
    expected = bundle.manifest.robot
    env_id = config.gym_id or make_environment(bundle.manifest.env).gym_id
    with quiet_mujoco():
        robot = GymnasiumRobot(env_id, expected.control_dt, config.seed)
    for what, found, wanted in (
        ("observations", robot.obs_dim, expected.obs_dim),
        ("commands", robot.act_dim, expected.act_dim),
    ):
        if found != wanted:
            robot.close()
            raise UserError(
                f"{bundle.path} is for {wanted} {what} and env={env_id} has {found}; "
                "choose the environment that the bundle was made for."
            )
    return robot


@command("run")
def _run(config: DictConfig) -> None:
    """Drive the robot and print what happened."""
    settings = RunConfig.model_validate(OmegaConf.to_container(config, resolve=True))
    bundle = Bundle.load(settings.bundle)
    controller = Controller(bundle, context=settings.context)
    robot = connect(bundle, settings)
    try:
        with progress_bar("driving", settings.steps) as move:
            outcome = drive(robot, controller, settings.steps, move)
    finally:
        robot.close()
    console = Console(highlight=False)
    seconds = outcome.steps * controller.control_dt
    console.print(f"{outcome.steps} steps, {seconds:.1f} s of simulated time, return {robot.episode_return:.1f}")
    console.print(f"final state: {State(int(outcome.last.state)).name.lower()}")
    console.print("faults: none" if not outcome.faults else "faults:")
    for text, count in outcome.faults.items():
        console.print(f"  {count} steps: {text}", markup=False)


def main() -> None:
    """Run the command."""
    for name, alias in ALIASES.items():
        sys.argv[1:] = [alias + a.removeprefix(name) if a.startswith(name) else a for a in sys.argv[1:]]
    _run()
