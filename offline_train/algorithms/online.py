"""What the algorithms that learn in the simulator share: robots that act, a replay that fills, updates in between.

Each of them is a file beside this one, with its settings and a learner whose `update` is the algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from offline_train.algorithms.base import Learner, mean_figures
from offline_train.replay import Batch, Replay
from sim.online_robots import OnlineRobots


class OnlineConfig(BaseModel):
    """Settings that all of them have."""

    model_config = ConfigDict(extra="forbid")

    name: str
    updates: int = Field(default=100_000, ge=1, description="gradient steps in all")
    steps_per_epoch: int = Field(default=1_000, ge=1, description="gradient steps between two lines of figures")
    batch_size: int = Field(default=256, ge=2, description="transitions a gradient step")
    random_steps: int = Field(
        default=5_000, ge=1, description="control steps before the first update, at random or of an earlier policy"
    )
    robots: int = Field(default=1, ge=1, description="robots simulated side by side")
    steps_per_update: int = Field(default=1, ge=1, description="control steps for each gradient step; divides robots")
    updates_per_step: int = Field(default=1, ge=1, description="gradient steps in a row where one would be due")
    episode_steps: int = Field(default=1_000, ge=1, description="control steps of an episode that does not end before")

    @model_validator(mode="after")
    def _whole_updates(self) -> OnlineConfig:
        if self.robots % self.steps_per_update:
            raise ValueError(f"steps_per_update {self.steps_per_update} does not divide the {self.robots} robots")
        return self

    @property
    def updates_due(self) -> int:
        """Gradient steps after a control step of all robots."""
        return self.robots // self.steps_per_update * self.updates_per_step

    @property
    def control_steps(self) -> int:
        """Control steps of all robots in the whole training: each epoch has as many whole ones as its updates take."""
        whole, rest = divmod(self.updates, self.steps_per_epoch)
        acted = whole * -(-self.steps_per_epoch // self.updates_due) - (-rest // self.updates_due)
        return (-(-self.random_steps // self.robots) + acted) * self.robots


class Explorer(Protocol):
    """What a learner that acts while it learns has beside `update`."""

    def explore(self, obs: Tensor) -> Tensor:
        """Draw an action `(batch, act_dim)` for raw observations `(batch, obs_dim)`."""


class Online:
    """The learner with its robots; one call of `train_epoch` is `steps_per_epoch` updates and their control steps.

    Args:
        config: settings.
        learner: what learns; it also has `explore`.
        robots: what it learns on.
        generator: draws random actions and batches.
        told: how many numbers the replay keeps with an observation, after it; `tell` gives them.
        spare: transitions that the replay has room for beyond those that the robots make.
    """

    def __init__(
        self,
        config: OnlineConfig,
        learner: Learner,
        robots: OnlineRobots,
        generator: torch.Generator,
        *,
        told: int = 0,
        spare: int = 0,
    ) -> None:
        self.config, self.learner, self.robots, self.generator = config, learner, robots, generator
        self.device = generator.device
        self.control_steps = config.control_steps
        self.replay = Replay(spare + self.control_steps, robots.obs_dim + told, robots.act_dim, self.device)
        self.obs = self.tell(self._tensor(robots.start()))
        self.lengths = np.zeros(config.robots, int)
        self.returns = np.zeros(config.robots)
        self.updates = self.steps = 0

    @property
    def policy(self) -> Learner:
        """What a finished run keeps."""
        return self.learner

    @property
    def finished(self) -> bool:
        """Whether the budget of updates is spent."""
        return self.updates >= self.config.updates

    def tell(self, obs: Tensor) -> Tensor:
        """What the replay keeps of observations `(batch, obs_dim)`: here they themselves."""
        return obs

    def first_actions(self, obs: Tensor) -> Tensor:
        """Actions `(batch, act_dim)` before the first update: at random."""
        shape = (len(obs), self.robots.act_dim)
        return 2.0 * torch.rand(shape, generator=self.generator, device=self.device) - 1.0

    def explore(self, obs: Tensor) -> Tensor:
        """Actions `(batch, act_dim)` from then on."""
        explorer: Explorer = self.learner  # type: ignore[assignment]  # what learns online explores
        return explorer.explore(obs)

    def train_epoch(self) -> dict[str, float]:
        """Act and update; returns the means of the epoch's figures and of the returns of the episodes that ended."""
        config = self.config
        while self.steps < config.random_steps:
            self._step(self.first_actions)
        returns: list[float] = []
        figures = mean_figures(self._act_and_update(returns))
        mean_return = float(np.mean(returns)) if returns else float("nan")
        return {"control_steps": self.steps, "exploration_return": mean_return, **figures}

    def _act_and_update(self, returns: list[float]) -> Iterator[dict[str, Tensor]]:
        """Give the figures of each update of an epoch; appends the returns of the episodes that end meanwhile."""
        config = self.config
        end = min(self.updates + config.steps_per_epoch, config.updates)
        while self.updates < end:
            returns += self._step(self.explore)
            for _ in range(min(config.updates_due, end - self.updates)):
                yield self._update(self.updates)
                self.updates += 1

    def _update(self, step: int) -> dict[str, Tensor]:
        return self.learner.update(self._batch(), step)

    def _batch(self) -> Batch:
        return self.replay.sample(self.config.batch_size, self.generator)

    def _step(self, act: Callable[[Tensor], Tensor]) -> list[float]:
        """One control step of every robot; returns the returns of the episodes that it ended."""
        action = act(self.obs[:, : self.robots.obs_dim])
        # A Gaussian policy may ask for more than there is; what it asked for is what it learns from.
        moved = self.robots.step(action.clamp(-1.0, 1.0).cpu().numpy())
        following = self.tell(self._tensor(moved.obs))
        reward, terminated = self._tensor(moved.reward), self._tensor(moved.terminated)
        self.replay.add(Batch(self.obs, action, reward, following, terminated))
        self.obs = following.clone()
        self.steps += self.config.robots
        self.returns += moved.reward
        self.lengths += 1
        over = np.flatnonzero(moved.terminated | (self.lengths >= self.config.episode_steps))
        ended = self.returns[over].tolist()
        if len(over):
            self.obs[torch.from_numpy(over)] = self.tell(self._tensor(self.robots.restart(over)))
            self.lengths[over], self.returns[over] = 0, 0.0
        return ended

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def act_nominal(self, obs: Tensor) -> Tensor:
        """The deterministic action `(batch, act_dim)` in [-1, 1] for raw observations."""
        return self.learner(obs.to(self.device)).to(obs.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-equal."""
        arrays = {"lengths": self.lengths, "returns": self.returns}
        robots = self.robots.state_dict()
        return {
            "policy": self.learner.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": self.generator.get_state(),
            "robots": {k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in robots.items()},
            "obs": self.obs,
            "updates": self.updates,
            "steps": self.steps,
            **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.learner.load_state_dict(state["policy"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.generator.set_state(state["generator"].cpu())
        self.robots.load_state_dict({k: v.numpy() if isinstance(v, Tensor) else v for k, v in state["robots"].items()})
        self.updates, self.steps, self.obs = state["updates"], state["steps"], state["obs"].clone()
        self.lengths, self.returns = (state[name].numpy().copy() for name in ("lengths", "returns"))
