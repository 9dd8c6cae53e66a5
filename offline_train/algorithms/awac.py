"""AWAC, advantage-weighted actor-critic (Nair et al. 2020, arXiv 2006.09359): cloning of what was better than usual.

The critics judge the policy's own actions, and the policy is cloned from the log with weights that grow with the
advantage over them,

    pi = argmax  E[ exp(A(s, a) / lambda) log pi(a|s) ],    A(s, a) = Q(s, a) - Q(s, a~),  a~ from pi.

As in the authors' code the weights of a batch are normalised to sum to its size: a softmax.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from offline_train.algorithms.base import Learner, bellman_target, move_towards
from offline_train.algorithms.model_free import ActorCriticConfig
from offline_train.algorithms.sac import critic_loss
from offline_train.networks import Critics, GaussianActor
from offline_train.replay import Batch

LOG_STD_RANGE = (-6.0, 0.0)


class AwacConfig(ActorCriticConfig):
    """Settings of AWAC; the defaults are those of the authors' code for locomotion, but for the number of updates."""

    name: Literal["awac"] = "awac"
    batch_size: int = Field(default=1_024, ge=2, description="transitions a gradient step")
    actor_hidden: list[int] = Field(default=[256] * 4, description="width of each hidden layer of the actor")
    temperature: float = Field(default=2.0, gt=0, description="lambda; a small one clones the best actions alone")
    actor_decay: float = Field(default=1e-4, ge=0, description="weight decay of the actor")


def weighted_cloning_loss(advantage: Tensor, log_prob: Tensor, temperature: float) -> Tensor:
    """-sum_i softmax_i(A / lambda) log pi(a_i|s_i) over the rows of a batch; advantage, log_prob: `(batch,)`."""
    return -(torch.softmax(advantage / temperature, 0) * log_prob).sum()


class Awac(Learner):
    """Actor, twin critics and their targets; the mean of the last actor acts and is exported.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights and actions.
    """

    actor: GaussianActor

    def __init__(
        self, obs_mean: Tensor, obs_std: Tensor, act_dim: int, config: AwacConfig, generator: torch.Generator
    ) -> None:
        super().__init__(obs_mean, obs_std, generator)
        self.config, obs_dim = config, len(obs_mean)
        self.actor = GaussianActor(obs_dim, act_dim, config.actor_hidden, generator, LOG_STD_RANGE)
        self.critics = Critics(obs_dim, act_dim, config.hidden, generator)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        groups = (([*self.critics.parameters()], 0.0), ([*self.actor.parameters()], config.actor_decay))
        self.optimizer = torch.optim.Adam(
            [{"params": p, "weight_decay": decay} for p, decay in groups], lr=config.learning_rate, fused=True
        )

    def explore(self, obs: Tensor) -> Tensor:
        """Draw an action `(batch, act_dim)` for raw observations `(batch, obs_dim)`."""
        return self.actor.sample(self.actor(self.normalise(obs)), self.generator)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One gradient step of critics and actor, each with the other as it was at its start; then of the targets."""
        config = self.config
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        mean, values = self.actor(obs), self.critics(obs, batch.action)
        with torch.no_grad():
            following = self.actor.sample(self.actor(next_obs), self.generator)
            next_value = self.target_critics(next_obs, following).amin(0)
            target = bellman_target(batch.reward, batch.terminal, next_value, config.discount)
            usual = self.critics(obs, self.actor.sample(mean, self.generator)).amin(0)
            advantage = values.amin(0) - usual
        value_loss = critic_loss(values, target)
        policy_loss = weighted_cloning_loss(advantage, self.actor.log_prob(mean, batch.action), config.temperature)
        self.optimizer.zero_grad()
        (value_loss + policy_loss).backward()
        self.optimizer.step()
        move_towards(self.target_critics, self.critics, config.target_rate)
        return {
            "critic_loss": value_loss.detach(),
            "actor_loss": policy_loss.detach(),
            "target_value": target.mean(),
            "advantage": advantage.mean(),
        }
