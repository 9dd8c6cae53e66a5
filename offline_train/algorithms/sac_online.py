"""Soft actor-critic online: the policy learns from what it does itself in the simulator (Haarnoja et al. 2018).

It makes the behaviour policies whose data offline training starts from, and shows what learning in the simulator
itself reaches, in the original world or in a changed one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from offline_train.algorithms.base import mean_figures
from offline_train.algorithms.sac import Sac, SacConfig
from offline_train.replay import Batch, Replay
from sim.environments import Environment
from sim.perturb import NOMINAL, Perturbation
from sim.perturbed_plant import PerturbedPlant
from sim.worlds import timeline


class OnlineSacConfig(BaseModel):
    """Settings of SAC in the simulator."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["sac"] = "sac"
    updates: int = Field(default=120_000, ge=1, description="gradient steps in all")
    steps_per_epoch: int = Field(default=1_000, ge=1, description="gradient steps between two lines of figures")
    batch_size: int = Field(default=128, ge=2, description="transitions a gradient step")
    random_steps: int = Field(
        default=5_000, ge=1, description="control steps before the first update, at random or of an earlier policy"
    )
    robots: int = Field(default=10, ge=1, description="robots simulated side by side")
    steps_per_update: int = Field(default=2, ge=1, description="control steps for each gradient step; divides robots")
    updates_per_step: int = Field(default=1, ge=1, description="gradient steps in a row where one would be due")
    episode_steps: int = Field(default=1_000, ge=1, description="control steps of an episode that does not end before")
    snapshot_every: int = Field(default=10, ge=1, description="epochs between two kept behaviour policies")
    sac: SacConfig = SacConfig(hidden=[128, 128], learning_rate=5e-4, target_entropy=None, initial_temperature=0.1)

    @model_validator(mode="after")
    def _whole_updates(self) -> OnlineSacConfig:
        if self.robots % self.steps_per_update:
            raise ValueError(f"steps_per_update {self.steps_per_update} does not divide the {self.robots} robots")
        return self

    def new_learner(self, obs_dim: int, act_dim: int, generator: torch.Generator) -> Sac:
        """An untrained learner, which reads observations as they are."""
        return Sac(torch.zeros(obs_dim), torch.ones(obs_dim), act_dim, self.sac, generator)


class OnlineSac:
    """The learner with its robots; one call of `train_epoch` is `steps_per_epoch` updates and their control steps.

    Args:
        config: settings.
        environment: the task.
        seed: of everything that is random here.
        device: where the networks and the replay live.
        world: in which the robots move; it stays as it is, with neither noise nor delays.
        start: state of a learner to go on from, None for one that knows nothing.
    """

    def __init__(
        self,
        config: OnlineSacConfig,
        environment: Environment,
        seed: int,
        device: str = "cpu",
        world: Perturbation = NOMINAL,
        start: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.environment, self.device = config, environment, device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.starts = np.random.default_rng(seed)
        with torch.device(device):
            self.sac = new_sac(config, environment, self.generator)
        if start is not None:
            self.sac.load_state_dict(start)
        self.first_actions = self._random_actions if start is None else self.sac.explore
        acted = config.steps_per_update * -(-config.updates // config.updates_per_step)
        capacity = config.random_steps + acted + 2 * config.robots
        self.replay = Replay(capacity, environment.obs_dim, environment.act_dim, device)
        worlds = timeline(environment, world)
        self.start_offset = worlds[0].start_offset
        self.robots = PerturbedPlant(environment, [worlds] * config.robots)
        self.plant = self.robots.plant
        self.obs = self.robots.reset(environment.initial_states(self.starts, config.robots), generators=[])
        self.lengths = np.zeros(config.robots, int)
        self.returns = np.zeros(config.robots)
        self.updates = 0

    @property
    def policy(self) -> Sac:
        """What a finished run keeps."""
        return self.sac

    @property
    def finished(self) -> bool:
        """Whether the budget of updates is spent."""
        return self.updates >= self.config.updates

    @property
    def steps(self) -> int:
        """Control steps made so far."""
        return self.replay.size

    def train_epoch(self) -> dict[str, float]:
        """Act and update; returns the means of the epoch's figures and of the returns of the episodes that ended."""
        config = self.config
        while self.steps < config.random_steps:
            self._step(self.first_actions)
        figures: list[dict[str, Tensor]] = []
        returns: list[float] = []
        budget = min(config.steps_per_epoch, config.updates - self.updates)
        while len(figures) < budget:
            returns += self._step(self.sac.explore)
            due = config.robots // config.steps_per_update * config.updates_per_step
            done = self.updates + len(figures)
            figures += [self._update(done + step) for step in range(min(due, budget - len(figures)))]
        self.updates += budget
        mean_return = float(np.mean(returns)) if returns else float("nan")
        return {"exploration_return": mean_return, **mean_figures(figures)}

    def _random_actions(self, obs: Tensor) -> Tensor:
        shape = (len(obs), self.environment.act_dim)
        return 2.0 * torch.rand(shape, generator=self.generator, device=self.device) - 1.0

    def _update(self, step: int) -> dict[str, Tensor]:
        return self.sac.update(self._batch(), step)

    def _batch(self) -> Batch:
        return self.replay.sample(self.config.batch_size, self.generator)

    def _step(self, act: Callable[[Tensor], Tensor]) -> list[float]:
        """One control step of every robot; returns the returns of the episodes that it ended."""
        obs = self._tensor(self.obs)
        action = act(obs)
        self.obs, reward, terminated = self.robots.step(self.environment.commands(action.cpu().numpy()))
        self.replay.add(Batch(obs, action, self._tensor(reward), self._tensor(self.obs), self._tensor(terminated)))
        self.returns += reward
        self.lengths += 1
        over = np.flatnonzero(terminated | (self.lengths >= self.config.episode_steps))
        ended = self.returns[over].tolist()
        if len(over):
            starts = self.environment.initial_states(self.starts, len(over)) + self.start_offset
            self.obs[over] = self.plant.restart(over, starts)
            self.lengths[over], self.returns[over] = 0, 0.0
        return ended

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def act_nominal(self, obs: Tensor) -> Tensor:
        """The deterministic action `(batch, act_dim)` in [-1, 1] for raw observations."""
        return self.sac(obs.to(self.device))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-equal."""
        arrays = {"obs": self.obs, "states": self.plant.states, "lengths": self.lengths, "returns": self.returns}
        return {
            "sac": self.sac.state_dict(),
            "optimizer": self.sac.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": self.generator.get_state(),
            "starts": self.starts.bit_generator.state,
            "updates": self.updates,
            **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.sac.load_state_dict(state["sac"])
        self.sac.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.generator.set_state(state["generator"].cpu())
        self.starts.bit_generator.state = state["starts"]
        self.updates = state["updates"]
        self.plant.states = state["states"].numpy()
        self.obs, self.lengths, self.returns = (state[name].numpy().copy() for name in ("obs", "lengths", "returns"))


def new_sac(config: OnlineSacConfig, environment: Environment, generator: torch.Generator) -> Sac:
    """An untrained learner for the task."""
    return config.new_learner(environment.obs_dim, environment.act_dim, generator)
