r"""SAC with a loss of demonstrations beside its own, to compare N-PPAC with: SAC+BC, and the augmented loss of DAPG.

    sac-bc:  L_pi = L_SAC + w mean|Q| E_demo[ |pi(s) - a|^2 ]
    dapg:    L_pi = L_SAC + w f^k mean|Q| E_demo[ -log pi(a|s) ],  k = thousands of updates

The first is TD3+BC's pull (Fujimoto and Gu 2021, arXiv 2106.06860) beside SAC. The second is the term that DAPG adds to
a policy gradient (Rajeswaran et al. 2018, arXiv 1709.10087, equation 7), whose weight shrinks as the policy improves,
put beside SAC so that learner, replay and evaluation are the same for all; DAPG itself is on-policy. mean|Q| stands
where DAPG has the largest advantage. Both start from a cloned policy, DAPG from demonstrations in the replay too.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from offline_train.algorithms.demonstrated import Demonstrated, DemonstratedConfig
from offline_train.algorithms.model_free import STD_MARGIN
from offline_train.algorithms.sac import Sac, SacConfig
from offline_train.networks import squashed_density
from offline_train.priors.base import Report
from offline_train.replay import Batch
from sim.online_robots import OnlineRobots


class SacBcConfig(DemonstratedConfig):
    """Settings of both."""

    name: Literal["sac-bc", "dapg"] = "sac-bc"
    weight: float = Field(default=0.1, ge=0, description="w, of the demonstrations' loss")
    factor: float = Field(default=1.0, gt=0, le=1, description="f, what w is multiplied by every 1,000 updates")
    sac: SacConfig = SacConfig(target_entropy=None, average_rate=1.0)


def cloning_error(action: Tensor, demonstrated: Tensor) -> Tensor:
    """E[ |pi(s) - a|^2 ], `(batch, act_dim)` each to a scalar."""
    return (action - demonstrated).square().sum(-1).mean()


def cloning_likelihood(mean: Tensor, log_std: Tensor, demonstrated: Tensor) -> Tensor:
    """E[ -log pi(a|s) ] of a squashed Gaussian, `(batch, act_dim)` each to a scalar."""
    return -squashed_density(demonstrated, mean, log_std).mean()


class CloningSac(Sac):
    """SAC whose policy is pulled to demonstrations.

    Args:
        demonstrations: their transitions.
        config: settings.
        generator: draws initial weights, actions and demonstrations.
    """

    def __init__(self, demonstrations: Batch, config: SacBcConfig, generator: torch.Generator) -> None:
        dim, act_dim = demonstrations.obs.shape[1], demonstrations.action.shape[1]
        super().__init__(torch.zeros(dim), torch.ones(dim), act_dim, config.sac, generator)
        self.obs_mean.copy_(demonstrations.obs.mean(0))
        self.obs_std.copy_(demonstrations.obs.std(0) + STD_MARGIN)
        self.demonstrations, self.settings = demonstrations, config

    def cloning_loss(self, rows: Tensor) -> Tensor:
        """The demonstrations' loss at these rows, a scalar."""
        obs, action = self.normalise(self.demonstrations.obs[rows]), self.demonstrations.action[rows]
        if self.settings.name == "dapg":
            return cloning_likelihood(*self.actor.distribution(obs), action)
        return cloning_error(self.actor(obs), action)

    def _pull(self, obs: Tensor, values: Tensor) -> Tensor:
        rows = torch.randint(len(self.demonstrations.obs), (len(obs),), generator=self.generator, device=obs.device)
        weight = self.settings.weight * self.settings.factor ** (self.updates / 1_000)
        return weight * values.detach().abs().mean() * self.cloning_loss(rows)


class SacBc(Demonstrated):
    """The learner with its robots; arguments as those of `Nppac`, without the prior."""

    config: SacBcConfig
    learner: CloningSac

    def __init__(
        self, config: SacBcConfig, robots: OnlineRobots, demonstrations: Batch, seed: int, device: str = "cpu"
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        with torch.device(device):
            learner = CloningSac(demonstrations, config, generator)
        super().__init__(config, learner, robots, demonstrations, generator)

    def first_actions(self, obs: Tensor) -> Tensor:
        """The cloned policy's actions; its means where cloning by squared error has taught it no spread."""
        return self.act_nominal(obs) if self.config.name == "sac-bc" else super().first_actions(obs)

    def pretrain(self, report: Report) -> None:
        """Clone the demonstrations."""
        self._fit_actor(self.learner.cloning_loss, report)
        self.learner.average_actor.load_state_dict(self.learner.actor.state_dict())
