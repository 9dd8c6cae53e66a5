"""TD3+BC (Fujimoto and Gu 2021, "A Minimalist Approach to Offline Reinforcement Learning", arXiv 2106.06860).

TD3 (Fujimoto et al. 2018, arXiv 1802.09477: twin critics, smoothed targets, a delayed actor) whose actor is held to
what the log did, with values scaled to a mean size of 1:

    pi = argmax  E[ lambda Q_1(s, pi(s)) - |pi(s) - a|^2 ],    lambda = alpha / E|Q_1(s, pi(s))|.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from offline_train.algorithms.base import Learner, bellman_target, move_towards
from offline_train.algorithms.model_free import ActorCriticConfig
from offline_train.algorithms.sac import critic_loss
from offline_train.networks import Critics, DeterministicActor
from offline_train.replay import Batch


class Td3BcConfig(ActorCriticConfig):
    """Settings of TD3+BC; the defaults are the authors', but for fewer updates."""

    name: Literal["td3-bc"] = "td3-bc"
    alpha: float = Field(default=2.5, gt=0, description="weight of the values against the log's actions")
    policy_noise: float = Field(default=0.2, ge=0, description="standard deviation of the noise on target actions")
    noise_clip: float = Field(default=0.5, ge=0, description="most of that noise")
    policy_delay: int = Field(default=2, ge=1, description="updates of the critics for one of actor and targets")


def smoothed_action(action: Tensor, noise: Tensor, clip: float) -> Tensor:
    """clamp(a + clamp(noise, -c, c), -1, 1), target policy smoothing, section 5.3 of TD3; all `(batch, act_dim)`."""
    return (action + noise.clamp(-clip, clip)).clamp(-1.0, 1.0)


def actor_loss(value: Tensor, action: Tensor, logged: Tensor, alpha: float) -> Tensor:
    """-lambda E[Q] + mean (pi(s) - a)^2 with lambda = alpha / E|Q|, equations 3 and 5.

    Args:
        value: of the policy's actions, `(batch,)`; lambda is no part of the gradient.
        action: the policy's, `(batch, act_dim)`.
        logged: the log's, `(batch, act_dim)`.
        alpha: weight of the values.
    """
    scale = alpha / value.detach().abs().mean()
    return functional.mse_loss(action, logged) - scale * value.mean()


class Td3Bc(Learner):
    """Actor, twin critics and their targets; the last actor acts and is exported.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights and target noise.
    """

    def __init__(
        self, obs_mean: Tensor, obs_std: Tensor, act_dim: int, config: Td3BcConfig, generator: torch.Generator
    ) -> None:
        super().__init__(obs_mean, obs_std, generator)
        self.config = config
        self.actor = DeterministicActor(len(obs_mean), act_dim, config.hidden, generator)
        self.critics = Critics(len(obs_mean), act_dim, config.hidden, generator)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        learned = [*self.actor.parameters(), *self.critics.parameters()]
        self.optimizer = torch.optim.Adam(learned, lr=config.learning_rate, fused=True)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One gradient step of the critics, at every `policy_delay`-th also of the actor, and then of the targets."""
        config, obs = self.config, self.normalise(batch.obs)
        with torch.no_grad():
            next_obs = self.normalise(batch.next_obs)
            noise = config.policy_noise * self.noise_like(batch.action)
            following = smoothed_action(self.target_actor(next_obs), noise, config.noise_clip)
            next_value = self.target_critics(next_obs, following).amin(0)
            target = bellman_target(batch.reward, batch.terminal, next_value, config.discount)
        value_loss = critic_loss(self.critics(obs, batch.action), target)
        # Adam leaves alone what has no gradient, here the actor and below the critics.
        self.optimizer.zero_grad()
        value_loss.backward()
        self.optimizer.step()
        figures = {"critic_loss": value_loss.detach(), "target_value": target.mean()}
        if (step + 1) % config.policy_delay == 0:
            figures["actor_loss"] = self._update_actor(obs, batch.action)
            move_towards(self.target_critics, self.critics, config.target_rate)
            move_towards(self.target_actor, self.actor, config.target_rate)
        return figures

    def _update_actor(self, obs: Tensor, logged: Tensor) -> Tensor:
        """One gradient step of the actor; returns its loss."""
        action = self.actor(obs)
        self.critics.requires_grad_(False)
        value = self.critics.first(obs, action)
        self.critics.requires_grad_(True)
        loss = actor_loss(value, action, logged, self.config.alpha)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()
