"""Parametric priors: one network by maximum likelihood, and deep ensembles of them (Lakshminarayanan et al. 2017).

These are the ones whose standard deviation collapses away from the demonstrations; they are here to be compared with.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from offline_train.networks import EnsembleLinear, in_float32
from offline_train.priors.base import Moments, Prior, PriorConfig, Report, log_density

LOG_STD_RANGE = (-6.0, 2.0)


class NetworkConfig(PriorConfig):
    """Settings that the networks share."""

    steps: int = Field(default=10_000, ge=1, description="gradient steps of the fit")
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's step size")
    hidden: list[int] = Field(default=[256, 256], description="width of each hidden layer")
    batch_size: int = Field(default=256, ge=1, description="rows a gradient step, for each network")


class EnsembleConfig(NetworkConfig):
    """Settings of the ensemble; a single network is one of one member."""

    name: Literal["mle", "ensemble"] = "ensemble"
    members: int = Field(default=5, ge=1, description="networks")


def mixture_moments(means: Tensor, log_stds: Tensor) -> Moments:
    """Moments of an even mixture of Gaussians, `(members, batch, act_dim)` each to `(batch, act_dim)`.

    The variance of the members' means is what they do not agree on, the mean of their variances is noise.
    """
    return Moments(means.mean(0), means.var(0, unbiased=False), (2.0 * log_stds).exp().mean(0))


class EnsemblePrior(Prior):
    """Networks with heads for mean and log standard deviation, each with weights of its own.

    Args:
        obs_dim: size of an observation.
        act_dim: size of an action.
        config: settings.
        generator: draws the initial weights.
    """

    def __init__(self, obs_dim: int, act_dim: int, config: EnsembleConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.obs_dim, self.act_dim, self.members = obs_dim, act_dim, config.members
        sizes = itertools.pairwise([obs_dim, *config.hidden, 2 * act_dim])
        self.layers = nn.ModuleList(EnsembleLinear(config.members, a, b, generator) for a, b in sizes)

    def heads(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations `(members, batch, act_dim)` of observations `(members, batch, obs_dim)`."""
        hidden = functional.relu(in_float32(self.layers[0], obs))
        for layer in self.layers[1:-1]:
            hidden = functional.relu(layer(hidden))
        mean, log_std = in_float32(self.layers[-1], hidden).chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def moments(self, obs: Tensor) -> Moments:
        """Mean and variances for observations `(batch, obs_dim)`."""
        return mixture_moments(*self.heads(obs.expand(self.members, -1, -1)))


def fit_ensemble(
    config: EnsembleConfig, obs: Tensor, action: Tensor, generator: torch.Generator, report: Report
) -> EnsemblePrior:
    """Fit every member by maximum likelihood, on batches of its own.

    Args:
        config: settings.
        obs: `(rows, obs_dim)`.
        action: `(rows, act_dim)`.
        generator: draws initial weights and batches.
        report: told of every step.
    """
    prior = EnsemblePrior(obs.shape[1], action.shape[1], config, generator)
    optimizer = torch.optim.Adam(prior.parameters(), lr=config.learning_rate)
    for step in range(config.steps):
        rows = torch.randint(len(obs), (config.members, config.batch_size), generator=generator)
        mean, log_std = prior.heads(obs[rows])
        loss = -log_density(action[rows], mean, log_std.exp()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step + 1, f"log-likelihood {-loss.item():.2f} an action" if step % 100 == 0 else "")
    return prior.requires_grad_(False)
