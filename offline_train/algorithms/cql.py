"""CQL(H), conservative Q-learning (Kumar et al. 2020, arXiv 2006.04779): values of actions that the log lacks are low.

SAC whose critics are also made small at every action and large at the log's,

    minimise  alpha E[ log int exp Q(s, a) da - Q(s, a_log) ]  +  E[ (Q - y)^2 ]             (equation 4),

where the integral is estimated by importance sampling from the uniform distribution and from the policy at s and at s'
(appendix F), and the target y = r + gamma min_i Q_i(s', a') backs up no entropy. As in the authors' runs on locomotion
alpha is fixed (their Lagrange form is for other tasks); their first 40,000 updates, in which the actor is cloned, are
left out, since they found no difference.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from offline_train.algorithms.model_free import ModelFreeConfig
from offline_train.algorithms.sac import Sac, SacConfig, critic_loss
from offline_train.networks import squash
from offline_train.replay import Batch


class CqlConfig(ModelFreeConfig):
    """Settings of CQL; the defaults are those of the authors' code for locomotion, but for fewer updates."""

    name: Literal["cql"] = "cql"
    penalty_weight: float = Field(default=5.0, ge=0, description="alpha, how conservative the critics are")
    samples: int = Field(
        default=10, ge=1, description="actions drawn from each of three distributions for the integral"
    )
    actor_rate: float = Field(default=1e-4, gt=0, description="Adam's step size for actor and temperature")
    sac: SacConfig = SacConfig(hidden=[256, 256, 256], target_entropy=None)


def conservative_loss(sampled: Tensor, log_density: Tensor, values: Tensor) -> Tensor:
    """Sum over critics of E[ log int exp Q(s, a) da - Q(s, a_log) ], the integral by importance sampling.

    log int exp Q da  ~  log 1/n sum_k exp( Q(s, a_k) - log mu_k(a_k) ),  a_k from the distribution mu_k.

    Args:
        sampled: values of the drawn actions, `(members, batch, n)`.
        log_density: of each under the distribution that it was drawn from, `(batch, n)`.
        values: of the log's actions, `(members, rows)`; in COMBO at other observations than those above.
    """
    integral = (sampled - log_density).logsumexp(-1) - math.log(log_density.shape[-1])
    return (integral.mean(1) - values.mean(1)).sum()


class Cql(Sac):
    """SAC with conservative critics; its averaged actor, which the authors do not have, acts and is exported.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights and every action.
    """

    def __init__(
        self, obs_mean: Tensor, obs_std: Tensor, act_dim: int, config: CqlConfig, generator: torch.Generator
    ) -> None:
        super().__init__(obs_mean, obs_std, act_dim, config.sac, generator)
        self.penalty_weight, self.samples = config.penalty_weight, config.samples
        groups = (
            ([*self.critics.parameters()], config.sac.learning_rate),
            ([*self.actor.parameters(), self.log_alpha], config.actor_rate),
        )
        self.optimizer = torch.optim.Adam([{"params": p, "lr": rate} for p, rate in groups], fused=True)

    def _target(self, batch: Batch, next_obs: Tensor, alpha: Tensor) -> Tensor:
        return super()._target(batch, next_obs, torch.zeros_like(alpha))

    def _critic_losses(self, obs: Tensor, next_obs: Tensor, action: Tensor, target: Tensor) -> dict[str, Tensor]:
        values = self.critics(obs, action)
        penalty = self.penalty_weight * conservative_loss(*self._draw_values(obs, next_obs), values)
        return {"critic_loss": critic_loss(values, target), "conservative_loss": penalty}

    def _draw_values(self, obs: Tensor, next_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Values of drawn actions, `(members, batch, 3 samples)`, and their log densities, `(batch, 3 samples)`."""
        drawn, log_density = self._draw_actions(obs, next_obs)
        count = drawn.shape[1]
        repeated = obs[:, None].expand(-1, count, -1)
        return self.critics(repeated.flatten(0, 1), drawn.flatten(0, 1)).unflatten(1, (-1, count)), log_density

    @torch.no_grad()
    def _draw_actions(self, obs: Tensor, next_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `(batch, 3 samples, act_dim)`, uniform and of the policy at s and at s', and their log densities."""
        mean, log_std = (values[:, None] for values in self.actor.distribution(torch.cat([obs, next_obs])))
        own = squash(mean, log_std, self.noise_like(mean.expand(-1, self.samples, -1)))
        here, there = own.action.chunk(2)
        uniform = 2.0 * torch.rand(here.shape, generator=self.generator, device=here.device) - 1.0
        log_uniform = torch.full(here.shape[:2], -here.shape[-1] * math.log(2.0), device=here.device)
        return torch.cat([uniform, here, there], 1), torch.cat([log_uniform, *own.log_prob.chunk(2)], 1)
