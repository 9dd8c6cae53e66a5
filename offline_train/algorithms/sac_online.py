"""Soft actor-critic online: the policy learns from what it does itself in the simulator (Haarnoja et al. 2018).

It makes the behaviour policies whose data offline training starts from, and shows what learning in the simulator
itself reaches, in the original world or in a changed one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from offline_train.algorithms.online import Online, OnlineConfig
from offline_train.algorithms.sac import Sac, SacConfig
from sim.online_robots import OnlineRobots


class OnlineSacConfig(OnlineConfig):
    """Settings of SAC in the simulator."""

    name: Literal["sac"] = "sac"
    updates: int = Field(default=120_000, ge=1, description="gradient steps in all")
    batch_size: int = Field(default=128, ge=2, description="transitions a gradient step")
    robots: int = Field(default=10, ge=1, description="robots simulated side by side")
    steps_per_update: int = Field(default=2, ge=1, description="control steps for each gradient step; divides robots")
    snapshot_every: int = Field(default=10, ge=1, description="epochs between two kept behaviour policies")
    sac: SacConfig = SacConfig(hidden=[128, 128], learning_rate=5e-4, target_entropy=None, initial_temperature=0.1)


class OnlineSac(Online):
    """SAC with its robots.

    Args:
        config: settings.
        robots: what it learns on.
        seed: of everything that is random here.
        device: where the networks and the replay live.
        start: state of a learner to go on from, None for one that knows nothing.
    """

    config: OnlineSacConfig

    def __init__(
        self,
        config: OnlineSacConfig,
        robots: OnlineRobots,
        seed: int,
        device: str = "cpu",
        start: dict[str, Any] | None = None,
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        self.sac = new_sac(config.sac, robots.obs_dim, robots.act_dim, generator).to(device)
        if start is not None:
            self.sac.load_state_dict(start)
        self.starts_anew = start is None
        super().__init__(config, self.sac, robots, generator)

    def first_actions(self, obs: Tensor) -> Tensor:
        """Actions before the first update: at random, or of the earlier policy."""
        return super().first_actions(obs) if self.starts_anew else self.explore(obs)


def new_sac(config: SacConfig, obs_dim: int, act_dim: int, generator: torch.Generator) -> Sac:
    """An untrained learner for the task, which reads observations as they are."""
    return Sac(torch.zeros(obs_dim), torch.ones(obs_dim), act_dim, config, generator)
