"""BRAC-v, behaviour-regularised actor-critic with a value penalty (Wu et al. 2019, arXiv 1911.11361).

First the log's behaviour b is cloned. Then actor and critics learn as in SAC, with the divergence from b in place of
the entropy, in the critics' target (the value penalty) as in the actor's loss:

    y    = r + gamma (1 - d) ( min_i Q_i(s', a') - alpha D(s') ),    D(s) = KL( pi(.|s) || b(.|s) )
    L_pi = E[ alpha D(s) - min_i Q_i(s, a) ],  a from pi.

D is estimated by a few samples of the policy (the primal form), and alpha is fixed, which the paper found no worse
than the dual form and a tuned alpha.
"""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from offline_train.algorithms.base import Learner, move_towards
from offline_train.algorithms.model_free import ActorCriticConfig
from offline_train.algorithms.sac import actor_loss, critic_loss, critic_target, temperature_loss
from offline_train.networks import Actor, Critics, Mlp, squash, squashed_density
from offline_train.replay import Batch

LOG_STD_RANGE = (-5.0, 0.0)


class BracConfig(ActorCriticConfig):
    """Settings of BRAC-v; the defaults are those of the authors' code, but for fewer updates."""

    name: Literal["brac-v"] = "brac-v"
    updates: int = Field(default=130_000, ge=1, description="gradient steps in all, those of the clone first")
    behaviour_updates: int = Field(default=30_000, ge=1, description="gradient steps of the clone")
    warm_up: int = Field(default=5_000, ge=0, description="updates after it in which the actor sees no values yet")
    hidden: list[int] = Field(default=[300, 300], description="width of each hidden layer of the critics")
    actor_hidden: list[int] = Field(default=[200, 200], description="the same of actor and clone")
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's step size for the critics")
    actor_rate: float = Field(default=3e-4, gt=0, description="the same for the actor")
    behaviour_rate: float = Field(default=5e-4, gt=0, description="the same for the clone and its temperature")
    alpha: float = Field(default=0.1, ge=0, description="weight of the divergence")
    samples: int = Field(default=4, ge=1, description="actions that the divergence is estimated from")

    @model_validator(mode="after")
    def _leaves_a_policy(self) -> BracConfig:
        if self.behaviour_updates + self.warm_up >= self.updates:
            raise ValueError("behaviour_updates and warm_up are part of the updates and must be fewer")
        return self


class Drawn(NamedTuple):
    """Actions of the policy, `(batch, act_dim)`, and its divergence from the clone there, `(batch,)`."""

    action: Tensor
    divergence: Tensor


def behaviour_loss(logged_log_prob: Tensor, own_log_prob: Tensor, temperature: Tensor) -> Tensor:
    """E[ temperature log b(a~|s) - log b(a|s) ]: the likelihood of the log's a and the entropy of the clone's a~.

    Args:
        logged_log_prob: log b(a|s), `(batch,)`.
        own_log_prob: log b(a~|s), `(batch,)`.
        temperature: a scalar.
    """
    return (temperature * own_log_prob - logged_log_prob).mean()


def divergence_estimate(log_prob: Tensor, behaviour_log_prob: Tensor) -> Tensor:
    """KL( pi || b ) as the mean over samples of log pi(a) - log b(a): `(samples, batch)` each to `(batch,)`."""
    return (log_prob - behaviour_log_prob).mean(0)


class BoundedActor(Actor):
    """An actor whose log standard deviation tanh keeps in `LOG_STD_RANGE`, as the authors' does."""

    def distribution(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing, each `(batch, act_dim)`."""
        mean, raw = Mlp.forward(self, obs).chunk(2, dim=-1)
        low, high = LOG_STD_RANGE
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)


class Brac(Learner):
    """Clone, actor, twin critics and their targets; the squashed mean of the last actor acts and is exported.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights and every action.
    """

    actor: Actor

    def __init__(
        self, obs_mean: Tensor, obs_std: Tensor, act_dim: int, config: BracConfig, generator: torch.Generator
    ) -> None:
        super().__init__(obs_mean, obs_std, generator)
        self.config, obs_dim = config, len(obs_mean)
        self.target_entropy = -float(act_dim)
        self.behaviour = BoundedActor(obs_dim, act_dim, config.actor_hidden, generator)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.actor = BoundedActor(obs_dim, act_dim, config.actor_hidden, generator)
        self.critics = Critics(obs_dim, act_dim, config.hidden, generator)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        groups = (
            ([*self.critics.parameters()], config.learning_rate),
            ([*self.actor.parameters()], config.actor_rate),
            ([*self.behaviour.parameters(), self.log_temperature], config.behaviour_rate),
        )
        self.optimizer = torch.optim.Adam([{"params": p, "lr": rate} for p, rate in groups], fused=True)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One gradient step of the clone, or, once that is done, of critics and actor and then of the targets."""
        # Adam leaves alone what has no gradient: each phase touches its own networks only.
        self.optimizer.zero_grad()
        since = step - self.config.behaviour_updates
        figures = self._clone(batch) if since < 0 else self._improve(batch, warm_up=since < self.config.warm_up)
        self.optimizer.step()
        if since >= 0:
            move_towards(self.target_critics, self.critics, self.config.target_rate)
        return figures

    def _clone(self, batch: Batch) -> dict[str, Tensor]:
        """Fill the gradients of the clone and of the temperature that keeps its entropy up."""
        mean, log_std = self.behaviour.distribution(self.normalise(batch.obs))
        own = squash(mean, log_std, self.noise_like(mean)).log_prob
        likelihood = squashed_density(batch.action, mean, log_std)
        loss = behaviour_loss(likelihood, own, self.log_temperature.detach().exp())
        (loss + temperature_loss(self.log_temperature, own.detach(), self.target_entropy)).backward()
        return {"behaviour_loss": loss.detach(), "behaviour_entropy": -own.detach().mean()}

    def _improve(self, batch: Batch, *, warm_up: bool) -> dict[str, Tensor]:
        """Fill the gradients of critics and actor, each with the other as it is; in the warm-up the actor clones b."""
        config, alpha = self.config, self.config.alpha
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        with torch.no_grad():
            following = self._draw(next_obs)
            next_values = self.target_critics(next_obs, following.action)
            target = critic_target(
                batch.reward, batch.terminal, next_values, following.divergence, alpha, config.discount
            )
        value_loss = critic_loss(self.critics(obs, batch.action), target)
        value_loss.backward()

        proposal = self._draw(obs)
        if warm_up:
            policy_loss = alpha * proposal.divergence.mean()
        else:
            self.critics.requires_grad_(False)
            policy_loss = actor_loss(self.critics(obs, proposal.action), proposal.divergence, alpha)
            self.critics.requires_grad_(True)
        policy_loss.backward()
        return {
            "critic_loss": value_loss.detach(),
            "actor_loss": policy_loss.detach(),
            "target_value": target.mean(),
            "divergence": proposal.divergence.detach().mean(),
        }

    def _draw(self, obs: Tensor) -> Drawn:
        """Draw the policy's actions at standardised observations; the first of those that the divergence is told by."""
        mean, log_std = self.actor.distribution(obs)
        own = squash(mean, log_std, self.noise_like(mean.expand(self.config.samples, -1, -1)))
        with torch.no_grad():
            behaviour = self.behaviour.distribution(obs)
        return Drawn(own.action[0], divergence_estimate(own.log_prob, squashed_density(own.action, *behaviour)))
