"""EDAC and SAC-N (An et al. 2021, "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble").

SAC-N is SAC with N critics in place of two. Where the log says little they differ, and the smallest of many is small:
clipped Q-learning alone is penalty enough. EDAC needs fewer critics for the same, because it keeps their gradients by
the action apart at the log's actions,

    minimise  eta / (N - 1) sum_{i != j} E[ <g_i, g_j> ],    g_i = grad_a Q_i(s, a) / |grad_a Q_i(s, a)|,

beside the Bellman error (arXiv 2110.01548, algorithm 1). SAC-N is EDAC with eta = 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from offline_train.algorithms.model_free import ModelFreeConfig
from offline_train.algorithms.sac import Sac, SacConfig, critic_loss
from offline_train.networks import Critics, Mlp

LOG_STD_RANGE = (-5.0, 2.0)


class EdacConfig(ModelFreeConfig):
    """Settings of EDAC and SAC-N; the defaults are the authors' for HalfCheetah, but for fewer updates."""

    name: Literal["edac", "sac-n"] = "edac"
    critics: int = Field(default=10, ge=2, description="N, how many critics")
    eta: float = Field(default=1.0, ge=0, description="weight of the critics' diversity; 0 is SAC-N")
    sac: SacConfig = SacConfig(hidden=[256, 256, 256], target_entropy=None)

    @model_validator(mode="after")
    def _is_what_it_is_called(self) -> EdacConfig:
        if (self.name == "sac-n") != (self.eta == 0):
            raise ValueError("eta is 0 for sac-n and above 0 for edac; choose the algorithm by its name")
        return self


def diversity_loss(gradient: Tensor) -> Tensor:
    """1 / (N - 1) sum_{i != j} E[ <g_i, g_j> ] for gradients scaled to a length of 1.

    The sum over pairs is |sum_i g_i|^2 - sum_i |g_i|^2.

    Args:
        gradient: of every critic's value by the action, `(members, batch, act_dim)`.
    """
    unit = gradient / (torch.linalg.vector_norm(gradient, dim=-1, keepdim=True) + 1e-10)
    pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, -1))
    return pairs.mean() / (len(gradient) - 1)


def begin_near_zero(network: Mlp | Critics, bound: float, generator: torch.Generator) -> None:
    """Draw the last layer from [-bound, bound], so that outputs begin near 0, and set the other biases to 0.1."""
    for layer in network.layers[:-1]:
        nn.init.constant_(layer.bias, 0.1)
    for parameter in network.layers[-1].parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)


class Edac(Sac):
    """SAC with many critics that are kept diverse; its averaged actor acts and is exported.

    The authors have no average, and compare a random few critics where there are more of them than dimensions of the
    action; here, as the paper has it, all are compared.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights and every action.
    """

    def __init__(
        self, obs_mean: Tensor, obs_std: Tensor, act_dim: int, config: EdacConfig, generator: torch.Generator
    ) -> None:
        super().__init__(
            obs_mean,
            obs_std,
            act_dim,
            config.sac,
            generator,
            members=config.critics,
            log_std_range=LOG_STD_RANGE,
        )
        self.eta = config.eta
        begin_near_zero(self.actor, 1e-3, generator)
        begin_near_zero(self.critics, 3e-3, generator)
        self.average_actor.load_state_dict(self.actor.state_dict())
        self.target_critics.load_state_dict(self.critics.state_dict())

    def _critic_losses(self, obs: Tensor, next_obs: Tensor, action: Tensor, target: Tensor) -> dict[str, Tensor]:
        if not self.eta:
            return super()._critic_losses(obs, next_obs, action, target)
        values, gradient = self.critics.action_gradient(obs, action)
        return {"critic_loss": critic_loss(values, target), "diversity_loss": self.eta * diversity_loss(gradient)}
