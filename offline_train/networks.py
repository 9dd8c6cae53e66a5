"""Networks that every algorithm shares: linear layers in parallel, a twin critic, a tanh-Gaussian actor.

Weights are drawn from an explicit generator, so that a network is a function of its shape and the seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

LOG_STD_RANGE = (-20.0, 2.0)


class EnsembleLinear(nn.Module):
    """`members` independent linear layers as one batched product.

    Shapes: input `(members, batch, in_features)`, output `(members, batch, out_features)`.
    """

    def __init__(self, members: int, in_features: int, out_features: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(members, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(members, 1, out_features))
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, inputs: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Apply each member's layer, or only those of the `chosen` members, to its own slice."""
        if chosen is None:
            return torch.baddbmm(self.bias, inputs, self.weight)
        return torch.baddbmm(self.bias[chosen], inputs, self.weight[chosen])


class Critics(nn.Module):
    """Independent action-value networks, evaluated together."""

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        *,
        members: int = 2,
    ) -> None:
        super().__init__()
        self.members = members
        sizes = [obs_dim + act_dim, *hidden, 1]
        self.layers = nn.ModuleList(EnsembleLinear(members, a, b, generator) for a, b in itertools.pairwise(sizes))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return every member's value, `(members, batch)`."""
        hidden = torch.cat([obs, action], dim=-1).expand(self.members, -1, -1)
        for layer in self.layers[:-1]:
            hidden = functional.relu(layer(hidden))
        return self.layers[-1](hidden).squeeze(-1)


class ActionSample(NamedTuple):
    """Actions drawn from a policy, `(batch, act_dim)`, and their log density, `(batch,)`."""

    action: Tensor
    log_prob: Tensor


class Actor(nn.Module):
    """A diagonal Gaussian squashed by tanh: actions in [-1, 1] (Haarnoja et al. 2018, appendix C)."""

    def __init__(self, obs_dim: int, act_dim: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        sizes = [obs_dim, *hidden, 2 * act_dim]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        for layer in layers:
            bound = 1.0 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        self.layers = nn.ModuleList(layers)

    def distribution(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing, each `(batch, act_dim)`."""
        for layer in self.layers[:-1]:
            obs = functional.relu(layer(obs))
        mean, log_std = self.layers[-1](obs).chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def forward(self, obs: Tensor) -> Tensor:
        """Return the deterministic action, the squashed mean, `(batch, act_dim)`."""
        return torch.tanh(self.distribution(obs)[0])

    def sample(self, obs: Tensor, generator: torch.Generator) -> ActionSample:
        """Draw an action by the reparameterisation trick."""
        mean, log_std = self.distribution(obs)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        pre_tanh = mean + log_std.exp() * noise
        return ActionSample(torch.tanh(pre_tanh), squashed_log_prob(pre_tanh, noise, log_std))


def squashed_log_prob(pre_tanh: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
    """Log density of `tanh(pre_tanh)` where `pre_tanh = mean + exp(log_std) * noise`; all `(batch, act_dim)`.

    log N(noise; 0, 1) - log_std - log(1 - tanh(u)^2), the last term as 2 (log 2 - u - softplus(-2u)), which does not
    overflow where tanh saturates.
    """
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    squash = 2.0 * (math.log(2.0) - pre_tanh - functional.softplus(-2.0 * pre_tanh))
    return (gaussian - squash).sum(-1)
