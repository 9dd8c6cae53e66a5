"""Robots that a policy learns on: some side by side, each of which starts anew when its episode is over.

What learns asks for `start`, `step` and `restart`, whatever simulates the robots: `PlantRobots` is the batched physics
of sim/plant.py, sim/gymnasium_tasks.py has robots of any environment of gymnasium.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from sim.environments import Environment
from sim.perturb import NOMINAL, Perturbation
from sim.perturbed_plant import PerturbedPlant
from sim.worlds import timeline


class Moved(NamedTuple):
    """What one control period led to.

    Attributes:
        obs: `(n, obs_dim)`.
        reward: `(n,)`.
        terminated: `(n,)` bool, where the episode is over and nothing follows.
        success: `(n,)` bool, where the task is fulfilled in this step; False for tasks that have no such notion.
    """

    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    success: np.ndarray


class OnlineRobots(Protocol):
    """n robots of one task. What they do is a function of their seed and of the actions."""

    obs_dim: int
    act_dim: int

    def start(self) -> np.ndarray:
        """Put all of them at starts; returns their observations `(n, obs_dim)`."""

    def step(self, actions: np.ndarray) -> Moved:
        """Let one control period pass under actions `(n, act_dim)` in [-1, 1], the ends of the commands' range."""

    def restart(self, lanes: np.ndarray) -> np.ndarray:
        """Put the robots `(m,)` at new starts; returns their observations `(m, obs_dim)`."""

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and arrays from which `load_state_dict` goes on to the bit."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""

    def close(self) -> None:
        """Let go of the simulators."""


class PlantRobots:
    """Robots of a task of configs/env in the batched physics.

    Args:
        environment: the task.
        count: how many.
        seed: of the starts.
        world: in which they move; it stays as it is, with neither noise nor delays.
    """

    def __init__(self, environment: Environment, count: int, seed: int, world: Perturbation = NOMINAL) -> None:
        self.environment, self.count = environment, count
        self.obs_dim, self.act_dim = environment.obs_dim, environment.act_dim
        self.starts = np.random.default_rng(seed)
        worlds = timeline(environment, world)
        self.start_offset = worlds[0].start_offset
        self.robots = PerturbedPlant(environment, [worlds] * count)
        self.plant = self.robots.plant

    def start(self) -> np.ndarray:
        """Put all of them at starts; returns their observations `(n, obs_dim)`."""
        return self.robots.reset(self.environment.initial_states(self.starts, self.count), generators=[])

    def step(self, actions: np.ndarray) -> Moved:
        """Let one control period pass under actions `(n, act_dim)` in [-1, 1]."""
        obs, reward, terminated = self.robots.step(self.environment.commands(actions))
        return Moved(obs, reward, terminated, np.zeros(self.count, dtype=bool))

    def restart(self, lanes: np.ndarray) -> np.ndarray:
        """Put the robots `(m,)` at new starts; returns their observations `(m, obs_dim)`."""
        states = self.environment.initial_states(self.starts, len(lanes)) + self.start_offset
        return self.plant.restart(lanes, states)

    def state_dict(self) -> dict[str, Any]:
        """The physics states, those in which the episodes began, and where the drawing of starts stands."""
        return {
            "states": self.plant.states,
            "start_states": self.plant.starts,
            "starts": self.starts.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.plant.states = np.asarray(state["states"])
        self.plant.starts = np.array(state["start_states"])
        self.starts.bit_generator.state = state["starts"]

    def close(self) -> None:
        """Stop the threads."""
        self.plant.close()
