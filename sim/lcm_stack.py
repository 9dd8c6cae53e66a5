"""`surefoot run robot=lcm`: a simulated robot and its runner as two processes that LCM alone connects."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from adapters.errors import UserError
from adapters.progress import progress_bar
from deploy.bundle import Bundle
from deploy.controller import LowConfidence
from sim.environments import make_environment
from sim.mujoco_plant import name_world
from sim.supervisor import POLL, Supervisor, interruptible

if TYPE_CHECKING:
    from sim.lcm_plant import Episode

# The robot's side outlives the runner, as it would on a robot.
STOP_ORDER = ("runner", "plant", "logger")
LOG = "robot.lcm"
# In lock step nobody is late; s of silence after which the runner takes the robot for dead all the same.
LOCK_STEP_TIMEOUT = 60.0


class LcmSettings(BaseModel):
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
    public_key: Path | None = None
    url: str | None = None
    log: bool = False


def run_lcm(settings: LcmSettings, move: Callable[[int], Any] = lambda completed: None) -> Episode:
    """Start the processes, let the robot run, and stop them again.

    The output folder gets the episode's record (episode.npz), a log of every process and, where `log` asks for it, all
    messages (robot.lcm).

    Args:
        settings: of the run.
        move: called with the number of control steps so far.

    Raises:
        UserError: a setting makes no sense, LCM is not there, or a process failed.
    """
    if importlib.util.find_spec("lcm") is None:
        raise UserError("there is no LCM here; install it with: pip install 'surefoot[lcm]'.")
    commands = _commands(settings)
    # The episode before is replaced, as its record is.
    (settings.output / LOG).unlink(missing_ok=True)
    with interruptible(), Supervisor(settings.output, {}, STOP_ORDER) as children:
        # The robot begins to move when it is answered, so it comes last.
        for name, (module, arguments) in commands.items():
            children.start(name, module, arguments, f"{name}: ready")
        while children.running("plant"):
            move(_steps(children.log("plant")))
            time.sleep(POLL)
        return _episode(children.log("plant"))


def show_run(settings: LcmSettings) -> None:
    """Run the processes and print what happened."""
    with progress_bar("driving over LCM", settings.steps) as move:
        episode = run_lcm(settings, move)
    console = Console(highlight=False)
    console.print(f"{episode.steps} steps, return {episode.episode_return:.1f}")
    if episode.safe_steps:
        console.print(f"{episode.safe_steps} steps with the safe command: {episode.reason}")
    console.print(f"record and logs are in {settings.output}", markup=False)


def _commands(settings: LcmSettings) -> dict[str, tuple[str, list[str]]]:
    """Module and command line of each process; what makes no sense is refused before any starts."""
    bundle = Bundle.load(settings.bundle, settings.public_key)
    environment = make_environment(bundle.manifest.env)
    place = name_world(settings.suite, settings.world, settings.at_step, settings.steps, environment)
    url = [] if settings.url is None else ["--url", settings.url]
    runner = [str(settings.bundle), *url, "--soft-start", str(settings.soft_start)]
    runner += ["--low-confidence", settings.low_confidence, "--least-confidence", str(settings.least_confidence)]
    runner += [] if settings.adapt else ["--context", "nominal"]
    runner += [] if settings.public_key is None else ["--public-key", str(settings.public_key)]
    runner += [] if settings.realtime else ["--clock", "own", "--timeout", str(LOCK_STEP_TIMEOUT)]
    plant = ["--env", bundle.manifest.env, *url, "--steps", str(settings.steps), "--seed", str(settings.seed)]
    plant += ["--perturbation", place, "--record", str(settings.output / "episode.npz")]
    plant += [] if settings.at_step is None else ["--at-step", str(settings.at_step)]
    plant += ["--realtime"] if settings.realtime else []
    commands = {"runner": ("deploy.lcm.runner", runner), "plant": ("sim.lcm_plant", plant)}
    if settings.log:
        return {"logger": ("deploy.lcm.logger", [str(settings.output / LOG), *url[1:]])} | commands
    return commands


def _steps(log: Path) -> int:
    """Return how far the plant says that it is."""
    reports = re.findall(r"plant: (\d+) steps", log.read_text(errors="replace"))
    return int(reports[-1]) if reports else 0


def _episode(log: Path) -> Episode:
    """Read the last line of the plant."""
    from sim.lcm_plant import Episode  # needs LCM

    return Episode(**json.loads(log.read_text().splitlines()[-1]))
