"""Demonstrations of the Adroit hand, replayed: `python -m sim.adroit door-demos` tells how far each gets.

The recordings hold observations and no states. In the first observation the hand is at rest, so that state and task
can be told from it: where the door stands from its handle, which way the pen is to point from its target.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

import configs
from adapters.command import module_command
from adapters.datasets import TransitionDataset, load_dataset
from adapters.errors import UserError
from sim.gymnasium_tasks import OpenTask, find_task

DOOR_HANDLE, PEN_TARGET = slice(32, 35), slice(36, 39)


class Replay(NamedTuple):
    """One demonstration, replayed open loop.

    Attributes:
        start_error: largest difference of the first observations.
        followed: control steps until an observation differs by more than 0.1, in its own unit.
        reached: steps in which the goal is met.
        recorded: the same in the recording.
        steps: of the demonstration.
    """

    start_error: float
    followed: int
    reached: int
    recorded: int
    steps: int


def initial_state(env: Any, name: str, obs: np.ndarray) -> dict[str, np.ndarray]:
    """The state of an environment, freshly reset, in which `obs` is what is seen.

    Args:
        env: the environment, unwrapped.
        name: adroit-door or adroit-pen.
        obs: a demonstration's first observation, `(obs_dim,)`.

    Raises:
        UserError: it is another task.
    """
    state = env.get_env_state()
    if name == "adroit-door":
        state["qpos"][1:28] = obs[:27]
        # The handle hangs rigidly in a door that is shut.
        state["door_body_pos"] = state["door_body_pos"] + obs[DOOR_HANDLE] - env._get_obs()[DOOR_HANDLE]
        return state
    if name == "adroit-pen":
        state["qpos"][:24] = obs[:24]
        turn, wanted = np.zeros(4), obs[PEN_TARGET].astype(np.float64)
        now, back, straight = env._get_obs()[PEN_TARGET], np.zeros(4), np.zeros(3)
        mujoco.mju_negQuat(back, state["desired_orien"])
        mujoco.mju_rotVecQuat(straight, now, back)
        turn[0], turn[1:] = 1.0 + straight @ wanted, np.cross(straight, wanted)
        state["desired_orien"] = turn / np.linalg.norm(turn)
        return state
    raise UserError(f"nothing tells the start of a demonstration of {name}; give door-demos or pen-demos.")


def replay(task: OpenTask, dataset: TransitionDataset) -> list[Replay]:
    """Replay every demonstration of a data set from its own start."""
    env, found = task.make(), []
    for rows in dataset.episode_slices():
        seen, actions = dataset.observations[rows], dataset.actions[rows]
        env.reset(seed=0)
        inside: Any = env.unwrapped
        inside.set_env_state(initial_state(inside, task.name, seen[0]))
        start_error = float(np.abs(inside._get_obs() - seen[0]).max())
        followed, reached = 0, 0
        for step, action in enumerate(np.clip(actions, -1.0, 1.0)):
            obs, _, _, _, info = env.step(task.commands(action))
            after = dataset.next_observations[rows][step]
            if followed == step and np.abs(obs - after).max() < 0.1:
                followed += 1
            reached += bool(info["success"])
        recorded = int((dataset.rewards[rows] > 0).sum())
        found.append(Replay(start_error, followed, reached, recorded, len(actions)))
    env.close()
    return found


def table(name: str, found: Sequence[Replay]) -> Table:
    """Lay the replays out for the terminal."""
    successes = [
        sum(count > 0 for count in counts) for counts in zip(*((r.reached, r.recorded) for r in found), strict=True)
    ]
    shown = Table(
        title=f"{name}: goal met in {successes[0]} of {len(found)} replays and {successes[1]} recordings",
    )
    for title in ("", "error at the start", "steps followed to 0.1", "steps at the goal", "recorded", "steps"):
        shown.add_column(title, justify="right")
    for index, each in enumerate(found):
        cells = (each.followed, each.reached, each.recorded, each.steps)
        shown.add_row(str(index), f"{each.start_error:.3f}", *map(str, cells))
    return shown


@module_command
def main(words: list[str]) -> None:
    """Print the table of each data set."""
    if not words:
        raise UserError("give data sets, as in python -m sim.adroit door-demos pen-demos.")
    for name in words:
        described = Path(configs.__path__[0]) / "dataset" / f"{name}.yaml"
        if not described.is_file():
            raise UserError(f"there is no data set '{name}'; give door-demos or pen-demos.")
        settings = OmegaConf.load(described)
        task = find_task(settings.env)
        if not isinstance(task, OpenTask):
            raise UserError(f"{name} is no recording of the Adroit hand; give door-demos or pen-demos.")
        found = replay(task, load_dataset(settings.path, settings.env, settings.control_dt))
        Console(highlight=False).print(table(name, found))


if __name__ == "__main__":
    sys.exit(main())
