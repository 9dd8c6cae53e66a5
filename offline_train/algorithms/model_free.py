"""What the model-free algorithms share: they draw batches from the log and update, and need no world model.

Each of them is a file beside this one, with its settings and a `Learner` whose `update` is the algorithm. Here their
observations are standardised by the log's mean and standard deviation, as TD3+BC has it (Fujimoto and Gu 2021, equation
4); the authors of the others leave them as they are, but a robot's terms have units as far apart as rad and rad/s.
They learn from the rows that the model-based algorithms learn from, without the held-out episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from offline_train.algorithms.base import Learner, mean_figures
from offline_train.replay import Batch, draw

# Added to standard deviations, so that a constant observation does no harm.
STD_MARGIN = 1e-3


class ModelFreeConfig(BaseModel):
    """Settings that all of them have."""

    model_config = ConfigDict(extra="forbid")

    name: str
    updates: int = Field(default=100_000, ge=1, description="gradient steps in all")
    steps_per_epoch: int = Field(default=1_000, ge=1, description="gradient steps between two lines of figures")
    batch_size: int = Field(default=256, ge=2, description="transitions a gradient step")


class ActorCriticConfig(ModelFreeConfig):
    """Settings that most of them have."""

    hidden: list[int] = Field(default=[256, 256], description="width of each hidden layer of every network")
    learning_rate: float = Field(default=3e-4, gt=0, description="Adam's step size")
    discount: float = Field(default=0.99, ge=0, lt=1, description="gamma, the weight of the next step's value")
    target_rate: float = Field(default=5e-3, gt=0, le=1, description="tau, how far targets move at every update")


class ModelFree:
    """A learner on batches from the log; one call of `train_epoch` is `steps_per_epoch` updates.

    Args:
        config: settings.
        learner: makes the learner from mean and standard deviation of the observations, size of an action, settings
            and generator.
        log: packed transitions `(rows, 2 obs_dim + act_dim + 2)`.
        obs_dim: size of an observation.
        act_dim: size of an action.
        seed: of everything that is random here.
    """

    def __init__(
        self,
        config: ModelFreeConfig,
        learner: Callable[..., Learner],
        log: Tensor,
        obs_dim: int,
        act_dim: int,
        seed: int,
    ) -> None:
        self.config, self.log, self.obs_dim, self.act_dim = config, log, obs_dim, act_dim
        self.generator = torch.Generator(log.device).manual_seed(seed)
        obs = Batch.unpack(log, obs_dim, act_dim).obs
        scale = obs.mean(0), obs.std(0, unbiased=False) + STD_MARGIN
        with torch.device(log.device):
            self.policy = learner(*scale, act_dim, config, self.generator)
        self.updates = 0

    @property
    def finished(self) -> bool:
        """Whether the budget of updates is spent."""
        return self.updates >= self.config.updates

    def train_epoch(self) -> dict[str, float]:
        """Update; returns the means of the epoch's figures."""
        budget = min(self.config.steps_per_epoch, self.config.updates - self.updates)
        figures = mean_figures(self._update(self.updates + step) for step in range(budget))
        self.updates += budget
        return figures

    def _update(self, step: int) -> dict[str, Tensor]:
        rows = draw(self.log, len(self.log), self.config.batch_size, self.generator)
        return self.policy.update(Batch.unpack(rows, self.obs_dim, self.act_dim), step)

    @torch.no_grad()
    def act_nominal(self, obs: Tensor) -> Tensor:
        """The deterministic action `(batch, act_dim)` in [-1, 1] for raw observations `(batch, obs_dim)`."""
        return self.policy(obs.to(self.policy.obs_mean.device)).to(obs.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-equal."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.policy.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.policy.load_state_dict(state["policy"])
        self.policy.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.updates = state["updates"]
