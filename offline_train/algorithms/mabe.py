"""MABE: model-based offline RL with adaptive behavioural priors (Cang et al. 2021, arXiv 2106.09119, algorithm 1).

First a prior p is cloned from the log, good actions more than bad ones (awbc.py). Then the policy learns on model
rollouts as in MOPO, held to p by an explicit divergence in the place of the entropy,

    D(s)  = KL( pi(.|s) || p(.|s) )
    y     = r + gamma (1 - d) ( min_i Q_i(s', a') - beta D(s') )
    L_pi  = E[ beta D(s) - min_i Q_i(s, a) ],  a from pi,

with beta as the dual variable of D <= delta: it grows while the divergence is above delta. A penalty for the model's
uncertainty may come on top (`penalty`, with xi as `penalty_weight`); the paper calls it optional.

Three signs in the paper cannot be meant as they are printed, and are settled here by what the text says:
- equation 6 has `- beta (log pi + log p)`; a divergence is `log pi - log p`, which algorithm 1 uses.
- line 12 has `beta <- beta - rate (KL - delta)`; a multiplier grows where the constraint is broken, so `+`.
- line 10 has the actor descend on `Q - beta KL`, which it has to ascend.

Policy and prior are squashed Gaussians. Squashing changes both alike, so that D is that of the Gaussians before it, in
closed form. The paper's eta, delta, xi and horizon are not published.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from offline_train.algorithms.awbc import Awbc, AwbcConfig
from offline_train.algorithms.base import mean_figures
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.sac import Sac, SacConfig
from offline_train.networks import ActionSample, Actor, squash
from offline_train.replay import Batch, draw


class MabeConfig(MopoConfig):
    """Settings beyond MOPO's.

    Of `sac`, the initial temperature is that of beta, and the target entropy is not read: delta stands in its place.
    """

    name: Literal["mabe"] = "mabe"  # type: ignore[assignment]
    updates: int = Field(default=60_000, ge=1, description="gradient steps in all, those of the prior first")
    target_divergence: float = Field(default=0.5, gt=0, description="delta, in nats, that beta is tuned to")
    prior: AwbcConfig = AwbcConfig(updates=20_000)

    @model_validator(mode="after")
    def _leaves_a_policy(self) -> MabeConfig:
        if self.prior.updates >= self.updates:
            raise ValueError("prior.updates are part of the updates and must be fewer")
        return self


def gaussian_kl(mean: Tensor, log_std: Tensor, prior_mean: Tensor, prior_log_std: Tensor) -> Tensor:
    """KL( N(mean, std) || N(prior mean, prior std) ) of diagonal Gaussians, `(batch, dims)` each to `(batch,)`.

    sum_d  log(s0 / s) + (s^2 + (m - m0)^2) / (2 s0^2) - 1/2.
    """
    ratio = (2.0 * (log_std - prior_log_std)).exp()
    distance = ((mean - prior_mean) * (-prior_log_std).exp()).square()
    return (prior_log_std - log_std + 0.5 * (ratio + distance - 1.0)).sum(-1)


class MabeSac(Sac):
    """SAC with the divergence from a prior in the place of log pi, and so of the entropy.

    The temperature is beta, and minus delta its target: SAC's loss of the temperature, -log beta (D - delta), is then
    the dual's, which raises beta where D is above delta.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings of SAC.
        generator: draws initial weights and every action.
        prior: reads observations standardised as here.
        prior_dim: how much of the policy's input the prior reads, from its beginning: no context.
        target_divergence: delta.
    """

    def __init__(
        self,
        obs_mean: Tensor,
        obs_std: Tensor,
        act_dim: int,
        config: SacConfig,
        generator: torch.Generator,
        *,
        prior: Actor,
        prior_dim: int,
        target_divergence: float,
    ) -> None:
        config = config.model_copy(update={"target_entropy": -target_divergence})
        super().__init__(obs_mean, obs_std, act_dim, config, generator)
        self.prior, self.prior_dim = copy.deepcopy(prior).requires_grad_(False), prior_dim

    def _propose(self, obs: Tensor) -> ActionSample:
        mean, log_std = self.actor.distribution(obs)
        action = squash(mean, log_std, self.noise_like(mean)).action
        return ActionSample(action, gaussian_kl(mean, log_std, *self.prior.distribution(obs[:, : self.prior_dim])))

    def update(self, batch: Batch, step: int = 0) -> dict[str, Tensor]:
        """One gradient step as in SAC; the figures call beta and the divergence by their names."""
        figures = super().update(batch, step)
        return figures | {"divergence": -figures.pop("entropy")}


class Mabe(Mopo):
    """The prior, then MOPO's rollouts with a learner that is held to it; takes what `Mopo` takes.

    Attributes:
        prior: what is cloned first.
    """

    config: MabeConfig
    sac: MabeSac

    def _make_learner(self) -> MabeSac:
        config, scale = self.config, super()._input_scale()
        self.prior = Awbc(*scale, self.act_dim, config.prior, self.generator)
        return MabeSac(
            *self._input_scale(),
            self.act_dim,
            config.sac,
            self.generator,
            prior=self.prior.actor,
            prior_dim=self.obs_dim,
            target_divergence=config.target_divergence,
        )

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Go on from MOPO's networks, or from MABE's with the prior, whose updates then count as done."""
        super().start_from(state)
        if any(name.startswith("prior.") for name in state):
            self.updates = self.config.prior.updates

    def train_epoch(self) -> dict[str, float]:
        """Learn the prior; once that is done, generate rollouts and update."""
        prior = self.config.prior
        left = prior.updates - self.updates
        if left <= 0:
            return super().train_epoch()
        budget = min(prior.steps_per_epoch, left)
        figures = mean_figures(self._learn_prior(self.updates + step) for step in range(budget))
        self.updates += budget
        self.sac.prior.load_state_dict(self.prior.actor.state_dict())
        return {f"prior_{name}": value for name, value in figures.items()}

    def _learn_prior(self, step: int) -> dict[str, Tensor]:
        rows = draw(self.replay.real, len(self.replay.real), self.config.prior.batch_size, self.generator)
        batch = Batch.unpack(rows, self.obs_dim + self.context_dim, self.act_dim)
        obs, next_obs = (values[:, : self.obs_dim] for values in (batch.obs, batch.next_obs))
        return self.prior.update(batch._replace(obs=obs, next_obs=next_obs), step)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-equal."""
        return super().state_dict() | {
            "prior": self.prior.state_dict(),
            "prior_optimizer": self.prior.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict(state)
        self.prior.load_state_dict(state["prior"])
        self.prior.optimizer.load_state_dict(state["prior_optimizer"])
