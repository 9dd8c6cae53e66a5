"""REDQ (Chen et al. 2021, "Randomized Ensembled Double Q-Learning", arXiv 2101.05982): many updates a step, online.

SAC in the simulator that learns from each of its few steps twenty times. What so many updates would blow up, the
overestimate of the values, is held down by N critics, of which a random M bootstrap,

    y = r + gamma (1 - d) ( min_{i in M} Q'_i(s', a') - alpha log pi(a'|s') ),

while the actor, updated once for all twenty, improves their mean (algorithm 1).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from offline_train.algorithms.sac import Sac, SacConfig
from offline_train.algorithms.sac_online import OnlineSacConfig


class RedqConfig(OnlineSacConfig):
    """Settings of REDQ; the defaults are those that SynthER's authors gave it, for 100,000 control steps."""

    name: Literal["redq"] = "redq"  # type: ignore[assignment]
    updates: int = Field(default=1_900_000, ge=1, description="gradient steps in all")
    batch_size: int = Field(default=256, ge=2, description="transitions a gradient step")
    robots: int = Field(default=1, ge=1, description="robots simulated side by side")
    steps_per_update: int = Field(default=1, ge=1, description="control steps after which updates are due")
    updates_per_step: int = Field(default=20, ge=1, description="gradient steps in a row where they are due")
    critics: int = Field(default=10, ge=1, description="N, how many critics")
    bootstrapped: int = Field(default=2, ge=1, description="M, of how many the smallest is bootstrapped from")
    policy_delay: int = Field(default=20, ge=1, description="updates of the critics for one of the actor")
    sac: SacConfig = SacConfig(target_entropy=None, average_rate=1e-2)

    @model_validator(mode="after")
    def _enough_critics(self) -> RedqConfig:
        if self.bootstrapped > self.critics:
            raise ValueError(f"bootstrapped={self.bootstrapped} cannot be drawn from critics={self.critics}")
        return self

    def new_learner(self, obs_dim: int, act_dim: int, generator: torch.Generator) -> Sac:
        """An untrained learner, which reads observations as they are."""
        return Redq(torch.zeros(obs_dim), torch.ones(obs_dim), act_dim, self, generator)


class Redq(Sac):
    """SAC with N critics; its averaged actor acts and is exported.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights, every action and who bootstraps.
    """

    def __init__(
        self, obs_mean: Tensor, obs_std: Tensor, act_dim: int, config: RedqConfig, generator: torch.Generator
    ) -> None:
        super().__init__(obs_mean, obs_std, act_dim, config.sac, generator, members=config.critics)
        self.policy_delay, self.bootstrapped = config.policy_delay, config.bootstrapped

    def _next_values(self, next_obs: Tensor, action: Tensor) -> Tensor:
        order = torch.randperm(self.critics.members, generator=self.generator, device=next_obs.device)
        return self.target_critics(next_obs, action, order[: self.bootstrapped])

    def _judged(self, values: Tensor) -> Tensor:
        return values.mean(0, keepdim=True)
