"""`surefoot convert`: a data set in another file form, for another task, or several as one."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict

from adapters.command import command
from adapters.datasets import TransitionDataset, check_output, load_dataset, save_dataset
from adapters.errors import UserError
from sim.collect import describe
from sim.environments import ENVIRONMENT_FOLDER, make_environment
from sim.relabel import Speed, relabel, reward_by

# Hydra would take it for a config group, because a folder of that name lies in configs/.
ALIASES = {"env=": "of="}


class ConvertConfig(BaseModel):
    """Settings of the command; configs/convert.yaml says what each means."""

    model_config = ConfigDict(extra="forbid")

    input: str | list[str]
    output: Path
    of: str | None
    control_dt: float | None
    task: str | None
    speed: Speed
    reward: str | None


def convert(config: ConvertConfig) -> TransitionDataset:
    """Read the data and give it its new task and rewards.

    Raises:
        UserError: the data cannot be read, is not of the task's robot, or lacks something that the rewards need.
    """
    control_dt = config.control_dt
    if control_dt is None and config.of and (ENVIRONMENT_FOLDER / f"{config.of}.yaml").exists():
        control_dt = make_environment(config.of).control_dt
    dataset = load_dataset(config.input, env=config.of, control_dt=control_dt)
    if config.task is not None:
        dataset = relabel(dataset, config.task, config.speed)
    if config.reward is not None:
        dataset = reward_by(dataset, find_function(config.reward), config.reward)
    return dataset


def find_function(place: str) -> Callable[..., np.ndarray]:
    """Return the function at PACKAGE.MODULE:FUNCTION; the working folder is looked in too.

    Raises:
        UserError: there is none.
    """
    module, _, name = place.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"reward={place} is not there ({error}); write PACKAGE.MODULE:FUNCTION.") from error
    return function


@command("convert")
def _convert(config: DictConfig) -> None:
    """Convert, write, and say what came out."""
    settings = ConvertConfig.model_validate(OmegaConf.to_container(config, throw_on_missing=True))
    output = settings.output.expanduser()
    check_output(output)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        dataset = convert(settings)
    save_dataset(dataset, output)
    print(describe(dataset, output))
    for note in notes:
        print(f"note         {note.message}")


def main() -> None:
    """Run the command."""
    for name, alias in ALIASES.items():
        sys.argv[1:] = [alias + a.removeprefix(name) if a.startswith(name) else a for a in sys.argv[1:]]
    _convert()
