r"""N-PPAC, non-parametric prior actor-critic (Rudner, Lu et al. 2021, arXiv 2212.13936): SAC held to a prior.

A behavioural prior p0(a|s) = N(mu0(s), s0(s)^2) is fitted to demonstrations without rewards (offline_train/priors), and
the policy learns in the simulator with the reverse KL to it in place of SAC's entropy (equation 5.1 of Lu's thesis):

    y    = r + gamma (1 - d) ( min_i Q'_i(s', a') - alpha KL(s') ),    KL(s) = KL( pi(.|s) || p0(.|s) )
    L_pi = E[ alpha KL(s) - min_i Q_i(s, a) ],  a from pi.

The gap of the means weighs 1 / s0^2 in the divergence, so a prior whose standard deviation collapses away from its
data holds the policy hardest where it knows least, and its gradient explodes there. That of a Gaussian process grows.

As in the authors' code alpha is fixed, the divergence is estimated from the one action that is drawn, the prior's
density takes its variance for the standard deviation (`scale`; their alpha was chosen so), and the replay starts empty.
Unlike there the networks read standardised observations, unless told otherwise, as on raw ones the policy does not come
close to its prior in as many steps; and the policy is not first fitted to the prior on the demonstrations' states, by
the optimizer that learns on, unless `pretrain_epochs` says so: critics that know nothing soon undo it. As the prior
stays as it is, the replay keeps with every observation what the prior says of it, so that it is asked once for every
step of the robots and not for every row of every batch.
"""

from __future__ import annotations

import copy
import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from offline_train.algorithms.base import Learner, move_towards
from offline_train.algorithms.demonstrated import Demonstrated, DemonstratedConfig
from offline_train.algorithms.model_free import STD_MARGIN
from offline_train.algorithms.sac import actor_loss, critic_loss, critic_target
from offline_train.networks import LOG_STD_RANGE, ActionSample, Actor, Critics
from offline_train.priors.base import Prior, Report, log_density
from offline_train.replay import Batch
from sim.online_robots import OnlineRobots


class NppacConfig(DemonstratedConfig):
    """Settings of N-PPAC.

    The defaults are those of the authors' code for HalfCheetah, but for fewer updates, standardised observations and no
    pretraining; its prior is an exact process of every row.
    """

    name: Literal["nppac", "brac-online"] = "nppac"
    alpha: float = Field(default=0.1, ge=0, description="weight of the divergence from the prior")
    policy: Literal["squashed", "gaussian"] = Field(
        default="squashed", description="Gaussian squashed by tanh, or around a squashed mean, as for the Adroit hand"
    )
    actor_hidden: list[int] = Field(default=[256, 256], description="width of each hidden layer of the actor")
    hidden: list[int] = Field(default=[256, 256], description="width of each hidden layer of the critics")
    divergence: Literal["sampled", "closed-form"] = Field(
        default="sampled", description="how the KL is computed; in closed form for the unsquashed policy alone"
    )
    scale: Literal["deviation", "variance"] = Field(
        default="variance", description="what of the prior its density takes for the standard deviation"
    )
    standardise: bool = Field(
        default=True, description="whether the networks read observations in standard deviations of the demonstrations'"
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="Adam's step size")
    discount: float = Field(default=0.99, ge=0, lt=1, description="gamma, the weight of the next step's value")
    target_rate: float = Field(default=5e-3, gt=0, le=1, description="tau, how far targets move at every update")
    pretrain_epochs: int = Field(default=0, ge=0, description="passes over the demonstrations before all else")

    @model_validator(mode="after")
    def _known_divergence(self) -> NppacConfig:
        if self.divergence == "closed-form" and self.policy == "squashed":
            raise ValueError("divergence closed-form is that of two Gaussians; it takes policy gaussian")
        return self


class PriorTold(NamedTuple):
    """What the prior says of observations, `(batch, act_dim)` each: its mean, and what its density takes for scale."""

    mean: Tensor
    scale: Tensor


def sampled_divergence(log_prob: Tensor, action: Tensor, prior: PriorTold) -> Tensor:
    """Log pi(a|s) - log p0(a|s), one sample's estimate of the KL: `(batch,)`.

    Args:
        log_prob: log pi(a|s), `(batch,)`.
        action: a, drawn so that gradients reach the policy through it too, `(batch, act_dim)`.
        prior: at the same observations.
    """
    return log_prob - log_density(action, prior.mean, prior.scale)


def gaussian_divergence(mean: Tensor, log_std: Tensor, prior: PriorTold) -> Tensor:
    """KL( N(mean, std^2) || p0 ), summed over the action's dimensions (equation 5.2): `(batch,)`.

    Args:
        mean: of the policy, `(batch, act_dim)`.
        log_std: log of its standard deviation, `(batch, act_dim)`.
        prior: at the same observations.
    """
    gap = (log_std.exp().square() + (mean - prior.mean).square()) / prior.scale.square()
    return (prior.scale.log() - log_std + 0.5 * (gap - 1.0)).sum(-1)


class UnsquashedActor(Actor):
    """A Gaussian around a mean that tanh keeps in [-1, 1]; what it draws is not bound to that range."""

    def distribution(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation, each `(batch, act_dim)`."""
        mean, log_std = super().distribution(obs)
        return torch.tanh(mean), log_std

    def forward(self, obs: Tensor) -> Tensor:
        """Return the deterministic action, the mean, `(batch, act_dim)`."""
        return self.distribution(obs)[0]

    def sample(self, obs: Tensor, generator: torch.Generator) -> ActionSample:
        """Draw an action by the reparameterisation trick."""
        mean, log_std = self.distribution(obs)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        log_prob = (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        return ActionSample(mean + log_std.exp() * noise, log_prob)


class PriorActorCritic(Learner):
    """Actor, twin critics and their targets; the mean of the last actor acts and is exported.

    The observations of its batches have the prior's mean and scale after them, `(batch, obs_dim + 2 act_dim)`.

    Args:
        obs_dim: size of an observation.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights and every action.
    """

    actor: Actor

    def __init__(self, obs_dim: int, act_dim: int, config: NppacConfig, generator: torch.Generator) -> None:
        super().__init__(torch.zeros(obs_dim), torch.ones(obs_dim), generator)
        self.config, self.sizes = config, [obs_dim, act_dim, act_dim]
        kind = Actor if config.policy == "squashed" else UnsquashedActor
        self.actor = kind(obs_dim, act_dim, config.actor_hidden, generator, LOG_STD_RANGE)
        self.critics = Critics(obs_dim, act_dim, config.hidden, generator)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        learned = [*self.actor.parameters(), *self.critics.parameters()]
        self.optimizer = torch.optim.Adam(learned, lr=config.learning_rate, fused=True)

    @torch.no_grad()
    def explore(self, obs: Tensor) -> Tensor:
        """Draw an action `(batch, act_dim)` for raw observations `(batch, obs_dim)`."""
        return self.actor.sample(self.normalise(obs), self.generator).action

    def update(self, batch: Batch, step: int = 0) -> dict[str, Tensor]:
        """One gradient step of critics and actor, each with the other as it was at its start; then of the targets."""
        config = self.config
        obs, prior = self._split(batch.obs)
        next_obs, next_prior = self._split(batch.next_obs)
        with torch.no_grad():
            following, next_divergence = self._draw(next_obs, next_prior)
            next_values = self.target_critics(next_obs, following)
            target = critic_target(
                batch.reward, batch.terminal, next_values, next_divergence, config.alpha, config.discount
            )
        self.optimizer.zero_grad()
        value_loss = critic_loss(self.critics(obs, batch.action), target)
        value_loss.backward()

        action, divergence = self._draw(obs, prior)
        self.critics.requires_grad_(False)
        policy_loss = actor_loss(self.critics(obs, action), divergence, config.alpha)
        self.critics.requires_grad_(True)
        policy_loss.backward()
        self.optimizer.step()
        move_towards(self.target_critics, self.critics, config.target_rate)
        return {
            "critic_loss": value_loss.detach(),
            "actor_loss": policy_loss.detach(),
            "target_value": target.mean(),
            "divergence": divergence.detach().mean(),
        }

    def pretrain_loss(self, told: Tensor) -> Tensor:
        """E[ KL(s) ] over observations with what the prior says of them, `(batch, obs_dim + 2 act_dim)`."""
        return self._draw(*self._split(told))[1].mean()

    def _split(self, told: Tensor) -> tuple[Tensor, PriorTold]:
        obs, mean, scale = told.split(self.sizes, dim=-1)
        return self.normalise(obs), PriorTold(mean, scale)

    def _draw(self, obs: Tensor, prior: PriorTold) -> tuple[Tensor, Tensor]:
        """Draw the policy's actions `(batch, act_dim)`; return them and the divergence from the prior, `(batch,)`."""
        drawn = self.actor.sample(obs, self.generator)
        if self.config.divergence == "closed-form":
            return drawn.action, gaussian_divergence(*self.actor.distribution(obs), prior)
        return drawn.action, sampled_divergence(drawn.log_prob, drawn.action, prior)


class Nppac(Demonstrated):
    """The learner with its robots and its prior.

    Args:
        config: settings.
        robots: what it learns on.
        prior: fitted to the demonstrations; it stays as it is.
        demonstrations: their transitions, actions in [-1, 1].
        seed: of everything that is random here.
        device: where the networks and the replay live.
    """

    config: NppacConfig
    learner: PriorActorCritic

    def __init__(
        self,
        config: NppacConfig,
        robots: OnlineRobots,
        prior: Prior,
        demonstrations: Batch,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.prior, self.as_scale = prior.to(device), config.scale
        generator = torch.Generator(device).manual_seed(seed)
        with torch.device(device):
            learner = PriorActorCritic(robots.obs_dim, robots.act_dim, config, generator)
        if config.standardise:
            learner.obs_mean.copy_(demonstrations.obs.mean(0))
            learner.obs_std.copy_(demonstrations.obs.std(0) + STD_MARGIN)
        super().__init__(config, learner, robots, demonstrations, generator, told=2 * robots.act_dim)

    def tell(self, obs: Tensor) -> Tensor:
        """Observations with the prior's mean and scale after them, `(batch, obs_dim + 2 act_dim)`."""
        mean, std = self.prior.predict_all(obs)
        return torch.cat([obs, mean, std if self.as_scale == "deviation" else std.square()], -1)

    def pretrain(self, report: Report) -> None:
        """Fit the policy to the prior on the demonstrations' states."""
        told = self.tell(self.demonstrations.obs)
        self._fit_actor(lambda rows: self.learner.pretrain_loss(told[rows]), report)
