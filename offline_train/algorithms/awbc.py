"""Advantage-weighted behaviour cloning: MABE's behavioural prior by itself (Cang et al. 2021, arXiv 2106.09119).

The policy is cloned from the log by likelihood, good actions more than bad ones (equation 5),

    p = argmax  E[ exp(w(s, a) / eta) log p(a|s) ],    w(s, a) = Q(s, a) (1 - gamma) / r_max,

where Q is learned from the log by its TD error. The largest reward for ever is worth r_max / (1 - gamma), so that w is
1 at most, whatever the reward's unit. What the paper leaves open is settled here: the next action in the TD target is
the prior's own, so that Q is the prior's value; the weights of a batch are normalised to sum to 1, as AWAC's (awac.py);
r_max is the largest absolute reward met, which keeps the sign of w where no reward is positive. AWAC weighs by the
advantage over the policy's own actions in the place of w.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from offline_train.algorithms.awac import weighted_cloning_loss
from offline_train.algorithms.base import Learner, bellman_target, move_towards
from offline_train.algorithms.model_free import ActorCriticConfig
from offline_train.algorithms.sac import critic_loss
from offline_train.networks import Actor, Critics, squashed_density
from offline_train.replay import Batch

# Where the log's actions are all at an end of their range the likelihood has no bound, and a prior so narrow would
# make the divergence from it enormous.
LOG_STD_RANGE = (-2.0, 1.0)


class AwbcConfig(ActorCriticConfig):
    """Settings of the clone; the paper's are not published."""

    name: Literal["awbc"] = "awbc"
    temperature: float = Field(default=0.1, gt=0, description="eta; a small one clones the best actions alone")


def relative_value(values: Tensor, discount: float, largest_reward: Tensor) -> Tensor:
    """The weight w = min_i Q_i (1 - gamma) / r_max below equation 5: `(members, batch), (), () -> (batch,)`."""
    return values.amin(0) * (1.0 - discount) / largest_reward


class Awbc(Learner):
    """Actor, twin critics and their targets; the squashed mean of the last actor acts and is exported.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights and actions.

    Attributes:
        largest_reward: the largest absolute reward met.
    """

    actor: Actor
    largest_reward: Tensor

    def __init__(
        self, obs_mean: Tensor, obs_std: Tensor, act_dim: int, config: AwbcConfig, generator: torch.Generator
    ) -> None:
        super().__init__(obs_mean, obs_std, generator)
        self.config, obs_dim = config, len(obs_mean)
        # Not zero, which would be divided by where no reward is anything else.
        self.register_buffer("largest_reward", torch.tensor(1e-6))
        self.actor = Actor(obs_dim, act_dim, config.hidden, generator, LOG_STD_RANGE)
        self.critics = Critics(obs_dim, act_dim, config.hidden, generator)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        parameters = [*self.actor.parameters(), *self.critics.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One gradient step of critics and actor, each with the other as it was at its start; then of the targets."""
        config = self.config
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        values = self.critics(obs, batch.action)
        with torch.no_grad():
            self.largest_reward.copy_(torch.maximum(self.largest_reward, batch.reward.abs().max()))
            following = self.actor.sample(next_obs, self.generator).action
            next_value = self.target_critics(next_obs, following).amin(0)
            target = bellman_target(batch.reward, batch.terminal, next_value, config.discount)
            relative = relative_value(values, config.discount, self.largest_reward)
        value_loss = critic_loss(values, target)
        log_prob = squashed_density(batch.action, *self.actor.distribution(obs))
        policy_loss = weighted_cloning_loss(relative, log_prob, config.temperature)
        self.optimizer.zero_grad()
        (value_loss + policy_loss).backward()
        self.optimizer.step()
        move_towards(self.target_critics, self.critics, config.target_rate)
        return {
            "critic_loss": value_loss.detach(),
            "actor_loss": policy_loss.detach(),
            "target_value": target.mean(),
            "relative_value": relative.mean(),
        }
