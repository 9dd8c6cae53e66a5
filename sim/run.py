"""`surefoot run`: a bundle drives a robot through the Robot interface, one control period after another."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

import deploy.loop
from adapters.command import command
from adapters.errors import UserError
from adapters.progress import progress_bar
from adapters.robots.gymnasium_robot import GymnasiumRobot
from deploy.bundle import Bundle
from deploy.controller import Controller, State
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
    soft_start: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    realtime: bool = False
    dry_run: bool = False


# A robot in simulated time stands still after its last command.
drive = functools.partial(deploy.loop.drive, settle=False)


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
    controller = Controller(bundle, context=settings.context, soft_start=settings.soft_start)
    robot = connect(bundle, settings)
    try:
        with progress_bar("driving", settings.steps) as move:
            outcome = drive(
                robot, controller, settings.steps, move, realtime=settings.realtime, dry_run=settings.dry_run
            )
    finally:
        robot.close()
    console = Console(highlight=False)
    seconds = outcome.steps * controller.control_dt
    console.print(f"{outcome.steps} steps, {seconds:.1f} s of simulated time, return {robot.episode_return:.1f}")
    console.print(f"final state: {State(int(outcome.last.state)).name.lower()}")
    console.print("faults: none" if not outcome.faults else "faults:")
    for text, count in outcome.faults.items():
        console.print(f"  {count} steps: {text}", markup=False)
    if outcome.statistics is not None:
        console.print(outcome.statistics.describe())


def main() -> None:
    """Run the command."""
    for name, alias in ALIASES.items():
        sys.argv[1:] = [alias + a.removeprefix(name) if a.startswith(name) else a for a in sys.argv[1:]]
    _run()
