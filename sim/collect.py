"""`surefoot collect`: behaviour policies rolled out in MuJoCo into a data set, many episodes at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import hydra
import mujoco
import numpy as np
import onnxruntime
from omegaconf import DictConfig
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from adapters.datasets import Metadata, TransitionDataset, save_npz
from adapters.errors import UserError
from adapters.files import sha256
from sim.environments import Environment, make_environment
from sim.plant import BatchedPlant

EPISODE_STEPS = 1000

# D4RL's recipes (arXiv 2004.07219): the policies that a recipe takes in turn, an equal share of the episodes each,
# named by how many steps they were trained for. Policy 0 acts at random.
RECIPES = {
    "random": (0,),
    "medium": (125_000,),
    "mixed": (0, 25_000, 50_000, 75_000, 100_000, 125_000),
    "medium-expert": (125_000, 300_000),
}


class Policy(Protocol):
    """A behaviour policy whose randomness is drawn ahead, so that an episode's noise is its own."""

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Return the noise of one episode, `(EPISODE_STEPS, act_dim)`."""

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return actions `(n, act_dim)` float32 for observations `(n, obs_dim)` and noise `(n, act_dim)`."""


class UniformPolicy:
    """Actions drawn uniformly from the actuators' range."""

    def __init__(self, environment: Environment) -> None:
        self._low, self._high = environment.action_low, environment.action_high

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw the actions themselves."""
        return generator.uniform(self._low, self._high, (EPISODE_STEPS, len(self._low)))

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the drawn actions, whatever was observed."""
        return noise.astype(np.float32)


class SnapshotPolicy:
    """A SAC policy as it was after some steps of training: action = tanh(mean + exp(log_std) * noise).

    Args:
        environment: the task that it was trained in.
        trained_steps: how long.

    Raises:
        UserError: no such policy is shipped.
    """

    def __init__(self, environment: Environment, trained_steps: int) -> None:
        folder = resources.files("sim.behaviour")
        file = folder / f"{environment.name}-sac-{trained_steps}.onnx"
        if not file.is_file():
            shipped = sorted({Path(f.name).stem.split("-")[0] for f in folder.iterdir() if f.name.endswith(".onnx")})
            raise UserError(
                f"no behaviour policy of env={environment.name} is shipped; choose recipe=random or env="
                f"{' or '.join(shipped)}."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
        self._act_dim = environment.act_dim

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw standard normal noise."""
        return generator.standard_normal((EPISODE_STEPS, self._act_dim))

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Sample actions with the noise."""
        mean, log_std = self._session.run(["mean", "log_std"], {"obs": observations.astype(np.float32)})
        return np.tanh(mean + np.exp(log_std) * noise).astype(np.float32)
