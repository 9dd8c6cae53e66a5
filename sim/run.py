"""`surefoot run`: a bundle drives a robot: an environment in this process, or a plant behind ROS 2 or LCM."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

import deploy.loop
import sim.lcm_stack
import sim.stack
from adapters.command import command
from adapters.errors import UserError
from adapters.progress import progress_bar
from adapters.robots.dm_control_robot import DmControlRobot
from adapters.robots.gymnasium_robot import GymnasiumRobot
from adapters.robots.simulated_robot import SimulatedRobot
from deploy.bundle import Bundle
from deploy.controller import Controller, LowConfidence, State
from sim.environments import GymnasiumTask, make_environment, quiet_mujoco
from sim.plant_robot import PlantRobot

# Hydra would take these for config groups, because folders of those names lie in configs/.
ALIASES = {"robot=": "driver=", "env=": "gym_id="}


class RunConfig(BaseModel):
    """Settings of the command; configs/run.yaml says what each means."""

    model_config = ConfigDict(extra="forbid")

    bundle: Path
    driver: Literal["gymnasium", "ros2", "lcm"]
    gym_id: str | None
    steps: int | None = Field(ge=1)
    context: Literal["inferred", "nominal"]
    seed: int = Field(ge=0)
    soft_start: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    low_confidence: LowConfidence = "run"
    least_confidence: float = Field(default=0.5, gt=0, le=1)
    realtime: bool = False
    dry_run: bool = False
    public_key: Path | None = None
    output: Path = Path("outputs/run")
    suite: str | None = None
    world: str | None = None
    at_step: int | None = None
    log: bool = False
    scenario: Literal["joint-failure"] | None = None
    discovery: Literal["localhost", "subnet"] = "localhost"
    domain_id: int | None = None
    url: str | None = None


STEPS = 1_000
DM_CONTROL = "dm_control/"
# Settings that some robots alone know, and what they are for these robots when they are not given.
KNOWN_TO: dict[str, tuple[str, ...]] = {
    "gym_id": ("gymnasium",),
    "dry_run": ("gymnasium", "ros2"),
    "suite": ("ros2", "lcm"),
    "world": ("ros2", "lcm"),
    "at_step": ("ros2", "lcm"),
    "log": ("ros2", "lcm"),
    "scenario": ("ros2",),
    "domain_id": ("ros2",),
    "url": ("lcm",),
}


def check_known(settings: RunConfig) -> None:
    """Refuse settings that would have no effect.

    Raises:
        UserError: a setting is given that this robot does not know.
    """
    for name, robots in KNOWN_TO.items():
        if getattr(settings, name) and settings.driver not in robots:
            shown = {"gym_id": "env", "suite": "perturbations"}.get(name, name)
            raise UserError(f"{shown}= has no effect with robot={settings.driver}; it is for {' and '.join(robots)}.")


# A robot in simulated time stands still after its last command.
drive = functools.partial(deploy.loop.drive, settle=False)


def connect(bundle: Bundle, config: RunConfig) -> SimulatedRobot:
    """Return the environment that is to be driven.

    Raises:
        UserError: it is not there, or the bundle was made for another robot.
    """
    expected = bundle.manifest.robot
    environment = make_environment(bundle.manifest.env)
    env_id = config.gym_id or environment.task_id
    robot: SimulatedRobot
    with quiet_mujoco():
        if env_id.startswith(DM_CONTROL):
            robot = DmControlRobot(env_id.removeprefix(DM_CONTROL), expected.control_dt, config.seed)
        elif isinstance(environment, GymnasiumTask) and env_id == environment.task_id and not environment.is_gymnasiums:
            robot = PlantRobot(environment, config.seed)
        else:
            options: dict[str, Any] = {}
            if isinstance(environment, GymnasiumTask) and env_id == environment.task_id:
                options = environment.config.gym_options
            robot = GymnasiumRobot(env_id, expected.control_dt, config.seed, **options)
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


def run_in_process(settings: RunConfig) -> None:
    """Drive an environment of gymnasium or dm_control and print what happened."""
    steps = settings.steps or STEPS
    bundle = Bundle.load(settings.bundle, settings.public_key)
    controller = Controller(
        bundle,
        context=settings.context,
        soft_start=settings.soft_start,
        low_confidence=settings.low_confidence,
        least_confidence=settings.least_confidence,
    )
    robot = connect(bundle, settings)
    try:
        with progress_bar("driving", steps) as move:
            outcome = drive(robot, controller, steps, move, realtime=settings.realtime, dry_run=settings.dry_run)
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


def stack_settings(kind: Any, settings: RunConfig, **defaults: Any) -> Any:
    """Return the settings of a run in several processes; `defaults` stand in for what is not given."""
    given = {name: value for name, value in settings.model_dump().items() if value is not None}
    values = defaults | given | {"adapt": settings.context == "inferred"}
    return kind(**{name: values[name] for name in kind.model_fields if name in values})


@command("run")
def _run(config: DictConfig) -> None:
    """Drive the robot and print what happened."""
    settings = RunConfig.model_validate(OmegaConf.to_container(config, resolve=True))
    check_known(settings)
    if settings.driver == "gymnasium":
        run_in_process(settings)
    elif settings.driver == "lcm":
        sim.lcm_stack.show_run(stack_settings(sim.lcm_stack.LcmSettings, settings))
    elif settings.scenario == "joint-failure":
        from sim.joint_failure import SETTINGS, show_joint_failure  # draws, which takes a second to import

        show_joint_failure(stack_settings(sim.stack.StackSettings, settings, **SETTINGS))
    else:
        sim.stack.show_run(stack_settings(sim.stack.StackSettings, settings))


def main() -> None:
    """Run the command."""
    for name, alias in ALIASES.items():
        sys.argv[1:] = [alias + a.removeprefix(name) if a.startswith(name) else a for a in sys.argv[1:]]
    _run()
