"""What the algorithms share that learn in the simulator and have demonstrations: N-PPAC and its baselines."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from offline_train.algorithms.base import Learner
from offline_train.algorithms.online import Online, OnlineConfig
from offline_train.priors.base import Report
from offline_train.replay import Batch
from sim.online_robots import OnlineRobots


class DemonstratedConfig(OnlineConfig):
    """Settings that all of them have."""

    random_steps: int = Field(default=1_000, ge=1, description="control steps of the first policy before any update")
    pretrain_epochs: int = Field(default=100, ge=0, description="passes over the demonstrations before all else")
    pretrain_batch: int = Field(default=64, ge=1, description="rows a gradient step of these")
    fill_replay: bool = Field(default=False, description="whether the replay starts with the demonstrations")


class Demonstrated(Online):
    """A learner with its robots and demonstrations.

    Args:
        config: settings.
        learner: what learns; it also has `explore`.
        robots: what it learns on.
        demonstrations: their transitions, actions in [-1, 1].
        generator: draws batches.
        told: how many numbers the replay keeps with an observation.
    """

    config: DemonstratedConfig

    def __init__(
        self,
        config: DemonstratedConfig,
        learner: Learner,
        robots: OnlineRobots,
        demonstrations: Batch,
        generator: torch.Generator,
        *,
        told: int = 0,
    ) -> None:
        self.demonstrations = demonstrations
        rows = len(demonstrations.obs) if config.fill_replay else 0
        super().__init__(config, learner, robots, generator, told=told, spare=rows)
        if config.fill_replay:
            obs, next_obs = (self.tell(seen) for seen in (demonstrations.obs, demonstrations.next_obs))
            self.replay.add(demonstrations._replace(obs=obs, next_obs=next_obs))

    def first_actions(self, obs: Tensor) -> Tensor:
        """The pretrained policy's own actions, from the first step on."""
        return self.explore(obs)

    @abstractmethod
    def pretrain(self, report: Report) -> None:
        """Learn from the demonstrations, `pretrain_steps` gradient steps, before the robots move."""

    @property
    def steps_a_pass(self) -> int:
        """Gradient steps of one pass over the demonstrations."""
        return math.ceil(len(self.demonstrations.obs) / self.config.pretrain_batch)

    @property
    def pretrain_steps(self) -> int:
        """Gradient steps of `pretrain`."""
        return self.config.pretrain_epochs * self.steps_a_pass

    def _fit_actor(self, loss_of: Callable[[Tensor], Tensor], report: Report) -> None:
        """Minimise a loss of rows of the demonstrations over the actor, pass after pass, in an order drawn anew.

        The optimizer is the one that learns on afterwards: with what it knows of the gradients' sizes the first updates
        on little data leave the actor nearer to where it is than steps of full size would.
        """
        optimizer = self.learner.optimizer
        for epoch in range(self.config.pretrain_epochs):
            order = torch.randperm(len(self.demonstrations.obs), generator=self.generator, device=self.device)
            for rows in order.split(self.config.pretrain_batch):
                loss = loss_of(rows)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            report((epoch + 1) * self.steps_a_pass, f"loss {loss.item():.2f}")

    def pretrained(self) -> dict[str, Any]:
        """What a run takes up that has pretrained already."""
        return {
            "policy": self.learner.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_pretrained(self, state: dict[str, Any]) -> None:
        """Take up what `pretrained` gave."""
        self.learner.load_state_dict(state["policy"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
