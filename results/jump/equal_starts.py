"""Returns of policies in halfcheetah-jump for equal starts: `python results/jump/equal_starts.py LOG.npz RUN...`.

An episode is paid 15 for each metre above its start, so its return depends on how high it starts. Printed are returns
for a start at the log's mean height, return + 15,000 (z at the start - its mean), and beside them those as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from adapters.command import module_command
from adapters.datasets import load_dataset
from adapters.errors import UserError
from offline_train.finished_run import Run
from sim.environments import Environment, make_environment
from sim.perturb import NOMINAL
from sim.perturbed_plant import PerturbedPlant
from sim.worlds import timeline

EPISODES, STEPS, SEED = 100, 1_000, 1
PAID_A_METRE = 15.0 * STEPS


def episodes(run: Run, task: Environment, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns and heights at the start of whole episodes, `(episodes,)` each; `height` is the observation's column."""
    with PerturbedPlant(task, [timeline(task, NOMINAL)] * EPISODES) as plant:
        obs = plant.reset(task.initial_states(np.random.default_rng(SEED), EPISODES), generators=[])
        starts, returns = obs[:, height].copy(), np.zeros(EPISODES)
        for _ in range(STEPS):
            with torch.no_grad():
                action = run.policy(torch.from_numpy(obs).float()).numpy()
            obs, reward, _ = plant.step(task.commands(action))
            returns += reward
    return returns, starts


def show(name: str, returns: np.ndarray, equal: np.ndarray) -> None:
    """Print one line."""
    shown = (f"{values.mean():,.0f} ({values.min():,.0f} to {values.max():,.0f})" for values in (equal, returns))
    print(f"{name}: for equal starts {next(shown)}, as they are {next(shown)}")


@module_command
def main(words: list[str]) -> None:
    """Print a line for the log's whole episodes and one for every run."""
    if not words:
        raise UserError("give the log and the runs, as in python results/jump/equal_starts.py jump.npz outputs/jump.")
    log, *runs = map(Path, words)
    dataset, task = load_dataset(log), make_environment("halfcheetah-jump")
    height = dataset.metadata.observation_names.index("torso_height")
    whole = [rows for rows in dataset.episode_slices() if rows.stop - rows.start == STEPS]
    returns = np.array([dataset.rewards[rows].sum() for rows in whole])
    starts = dataset.observations[[rows.start for rows in whole], height]
    show(f"{len(whole)} whole episodes of the log", returns, returns + PAID_A_METRE * (starts - starts.mean()))
    for folder in runs:
        found, began = episodes(Run(folder), task, height)
        show(str(folder), found, found + PAID_A_METRE * (began - starts.mean()))


if __name__ == "__main__":
    sys.exit(main())
