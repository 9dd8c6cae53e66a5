"""AWAC online (Nair et al. 2020, arXiv 2006.09359): the learner of awac.py, first on demonstrations.

The replay starts with the demonstrations, the learner is updated on them, and then acts and learns on.
"""

from __future__ import annotations

from typing import Literal

import torch

from offline_train.algorithms.awac import Awac, AwacConfig
from offline_train.algorithms.demonstrated import Demonstrated, DemonstratedConfig
from offline_train.algorithms.model_free import STD_MARGIN
from offline_train.priors.base import Report
from offline_train.replay import Batch
from sim.online_robots import OnlineRobots


class OnlineAwacConfig(DemonstratedConfig):
    """Settings of AWAC online; those of the learner are `awac`'s."""

    name: Literal["awac-online"] = "awac-online"
    fill_replay: Literal[True] = True
    awac: AwacConfig = AwacConfig()


class OnlineAwac(Demonstrated):
    """The learner with its robots; arguments as those of `Nppac`, without the prior."""

    learner: Awac

    def __init__(
        self, config: OnlineAwacConfig, robots: OnlineRobots, demonstrations: Batch, seed: int, device: str = "cpu"
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        with torch.device(device):
            learner = new_awac(config, robots.obs_dim, robots.act_dim, generator)
        learner.obs_mean.copy_(demonstrations.obs.mean(0))
        learner.obs_std.copy_(demonstrations.obs.std(0) + STD_MARGIN)
        super().__init__(config, learner, robots, demonstrations, generator)

    def pretrain(self, report: Report) -> None:
        """Learn from the demonstrations, which are all that the replay holds so far."""
        for step in range(self.pretrain_steps):
            figures = self.learner.update(self.replay.sample(self.config.pretrain_batch, self.generator), step)
            if step % 100 == 0:
                report(step, f"critic loss {figures['critic_loss']:.2f}")


def new_awac(config: OnlineAwacConfig, obs_dim: int, act_dim: int, generator: torch.Generator) -> Awac:
    """An untrained learner that does not standardise yet."""
    return Awac(torch.zeros(obs_dim), torch.ones(obs_dim), act_dim, config.awac, generator)
