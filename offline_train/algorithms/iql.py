"""IQL, implicit Q-learning (Kostrikov et al. 2021, arXiv 2110.06169): no action but the log's is ever judged.

V is an upper expectile of Q over the log's actions, Q learns from V, and the policy is cloned from the log with weights
that grow with the advantage:

    L_V = E[ |tau - 1(u < 0)| u^2 ],  u = Q(s, a) - V(s)                          (equation 5)
    L_Q = E[ (r + gamma V(s') - Q(s, a))^2 ]                                      (equation 6)
    L_pi = -E[ exp(beta (Q(s, a) - V(s))) log pi(a|s) ]                           (equation 7)

For locomotion the authors' code first multiplies rewards by 1,000 and divides them by the range of the log's returns.
Here rewards stay as they are, which is as theirs with a beta that is greater by that range / 1,000.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from offline_train.algorithms.base import Learner, bellman_target, move_towards
from offline_train.algorithms.model_free import ActorCriticConfig
from offline_train.algorithms.sac import critic_loss
from offline_train.networks import Critics, GaussianActor, Mlp
from offline_train.replay import Batch

LOG_STD_RANGE = (-5.0, 2.0)
# Most that one row may weigh in the policy's loss.
MOST_WEIGHT = 100.0


class IqlConfig(ActorCriticConfig):
    """Settings of IQL; the defaults are the authors' for locomotion, but for fewer updates and unscaled rewards."""

    name: Literal["iql"] = "iql"
    expectile: float = Field(default=0.7, gt=0, lt=1, description="tau of the expectile; 0.5 is the mean")
    beta: float = Field(default=3.0, ge=0, description="how much a better action weighs in cloning; 0 clones all alike")


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """E[ |tau - 1(u < 0)| u^2 ] for errors u `(batch,)`, whose minimum is the expectile tau of u at 0 (equation 5)."""
    weight = torch.where(error < 0, 1.0 - expectile, expectile)
    return (weight * error.square()).mean()


def extraction_loss(advantage: Tensor, log_prob: Tensor, beta: float) -> Tensor:
    """-E[ min(exp(beta A), 100) log pi(a|s) ], equation 7 with its authors' limit; advantage, log_prob: `(batch,)`."""
    weight = (beta * advantage).exp().clamp(max=MOST_WEIGHT)
    return -(weight * log_prob).mean()


class Iql(Learner):
    """Actor, value network, twin critics and their targets; the mean of the last actor acts and is exported.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights.
    """

    actor: GaussianActor

    def __init__(
        self, obs_mean: Tensor, obs_std: Tensor, act_dim: int, config: IqlConfig, generator: torch.Generator
    ) -> None:
        super().__init__(obs_mean, obs_std, generator)
        self.config, obs_dim = config, len(obs_mean)
        self.actor = GaussianActor(obs_dim, act_dim, config.hidden, generator, LOG_STD_RANGE)
        self.value = Mlp([obs_dim, *config.hidden, 1], generator)
        self.critics = Critics(obs_dim, act_dim, config.hidden, generator)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        groups = [[*self.value.parameters(), *self.critics.parameters()], [*self.actor.parameters()]]
        self.optimizer = torch.optim.Adam([{"params": g} for g in groups], lr=config.learning_rate, fused=True)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One gradient step of all, each loss with the other networks as they were at its start; then of the targets.

        The actor's step size falls to 0 along a cosine.
        """
        config = self.config
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        with torch.no_grad():
            logged_value = self.target_critics(obs, batch.action).amin(0)
            next_value = self.value(next_obs).squeeze(-1)
            target = bellman_target(batch.reward, batch.terminal, next_value, config.discount)
        advantage = logged_value - self.value(obs).squeeze(-1)
        losses = {
            "value_loss": expectile_loss(advantage, config.expectile),
            "critic_loss": critic_loss(self.critics(obs, batch.action), target),
            "actor_loss": extraction_loss(
                advantage.detach(), self.actor.log_prob(self.actor(obs), batch.action), config.beta
            ),
        }
        done = step / config.updates
        self.optimizer.param_groups[1]["lr"] = 0.5 * (1.0 + math.cos(math.pi * done)) * config.learning_rate
        self.optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        self.optimizer.step()
        move_towards(self.target_critics, self.critics, config.target_rate)
        figures = {name: loss.detach() for name, loss in losses.items()}
        return figures | {"target_value": target.mean(), "advantage": advantage.detach().mean()}
