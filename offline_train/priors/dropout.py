"""A parametric prior with Monte Carlo dropout as its doubt (Gal and Ghahramani 2016, arXiv 1506.02142).

The masks that a prediction averages over are drawn once, after the fit, so that the prior is a function of the state.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from offline_train.networks import Mlp
from offline_train.priors.base import Moments, Prior, Report, log_density
from offline_train.priors.ensemble import LOG_STD_RANGE, NetworkConfig, mixture_moments


class DropoutConfig(NetworkConfig):
    """Settings of MC dropout."""

    name: Literal["mc-dropout"] = "mc-dropout"
    rate: float = Field(default=0.1, gt=0, lt=1, description="share of the hidden units that are left out")
    samples: int = Field(default=20, ge=1, description="masks that a prediction averages over")


class DropoutPrior(Prior):
    """One network with heads for mean and log standard deviation, averaged over masks of its hidden units.

    Args:
        obs_dim: size of an observation.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights and masks.
    """

    masks: Tensor

    def __init__(self, obs_dim: int, act_dim: int, config: DropoutConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.obs_dim, self.act_dim, self.config = obs_dim, act_dim, config
        self.network = Mlp([obs_dim, *config.hidden, 2 * act_dim], generator)
        self.register_buffer("masks", self.draw_masks((config.samples, 1), generator))

    def draw_masks(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Masks for all hidden layers side by side, `(*shape, sum of the widths)`: 0, or 1 over the share kept."""
        keep = 1.0 - self.config.rate
        return (torch.rand(*shape, sum(self.config.hidden), generator=generator) < keep).float() / keep

    def heads(self, obs: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations `(..., batch, act_dim)` under masks `(..., batch or 1, widths)`."""
        hidden = obs
        layers = zip(self.network.layers[:-1], masks.split(self.config.hidden, dim=-1), strict=True)
        for layer, mask in layers:
            hidden = functional.relu(layer(hidden)) * mask
        mean, log_std = self.network.layers[-1](hidden).chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def moments(self, obs: Tensor) -> Moments:
        """Mean and variances for observations `(batch, obs_dim)`."""
        return mixture_moments(*self.heads(obs, self.masks))


def fit_dropout(
    config: DropoutConfig, obs: Tensor, action: Tensor, generator: torch.Generator, report: Report
) -> DropoutPrior:
    """Fit by maximum likelihood under masks drawn anew for every row; arguments as those of `fit_ensemble`."""
    prior = DropoutPrior(obs.shape[1], action.shape[1], config, generator)
    optimizer = torch.optim.Adam(prior.parameters(), lr=config.learning_rate)
    for step in range(config.steps):
        rows = torch.randint(len(obs), (config.batch_size,), generator=generator)
        mean, log_std = prior.heads(obs[rows], prior.draw_masks((len(rows),), generator))
        loss = -log_density(action[rows], mean, log_std.exp()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step + 1, f"log-likelihood {-loss.item():.2f} an action" if step % 100 == 0 else "")
    return prior.requires_grad_(False)
