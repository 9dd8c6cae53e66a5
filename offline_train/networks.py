"""Networks that every algorithm shares: linear layers in parallel, critics, and actors of three kinds.

Weights are drawn from an explicit generator, so that a network is a function of its shape and the seed. Where a
training asks for `bf16`, products between hidden layers are made in bfloat16 (torch.autocast); the first and the last
layer, which read observations and give values and actions, stay in float32, and so does what is learned.
"""

from __future__ import annotations

import itertools
import math
import timeit
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

LOG_STD_RANGE = (-20.0, 2.0)
# How near to -1 and 1 a given action may come where its density is asked for, which has no bound there.
ACTION_MARGIN = 1e-3
# From how many times as long as in float32 on a product in bfloat16 is worth a warning.
SLOW_BF16 = 2.0


def training_precision(device: str, bf16: bool) -> torch.autocast:
    """The context in which algorithms update: with `bf16`, products between hidden layers are made in bfloat16."""
    # Autocast's cache would go on with the weights as they were when the context was entered.
    return torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False)


def bf16_slowdown(device: str, size: int = 128, repeats: int = 5) -> float:
    """How many times as long as in float32 a product of two `(size, size)` matrices takes in bfloat16, best of some.

    A processor without instructions for bfloat16 takes thirty times as long and more.
    """

    def fastest(precision: torch.dtype) -> float:
        matrix = torch.ones(size, size, dtype=precision, device=device)
        return min(timeit.repeat(lambda: (matrix @ matrix).sum().item(), number=1, repeat=repeats))

    return fastest(torch.bfloat16) / fastest(torch.float32)


def warn_of_slow_bf16(device: str) -> None:
    """Warn a person who asks for bfloat16 where it is what slows a training down."""
    slowdown = bf16_slowdown(device)
    if slowdown > SLOW_BF16:
        warnings.warn(
            f"bf16=true is slow here: a product in bfloat16 takes {slowdown:.0f} times as long as in float32 on this "
            "processor; leave it out.",
            stacklevel=2,
        )


def in_float32(layer: Callable[..., Tensor], inputs: Tensor, *others: Any) -> Tensor:
    """Apply a layer in float32, whatever precision the training around it has."""
    if not torch.is_autocast_enabled(inputs.device.type):
        return layer(inputs, *others)
    with torch.autocast(inputs.device.type, enabled=False):
        return layer(inputs.float(), *others)


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

    def first(self, inputs: Tensor) -> Tensor:
        """Apply the first member's layer alone, `(batch, in_features)` to `(batch, out_features)`."""
        return torch.addmm(self.bias[0], inputs, self.weight[0])


class Critics(nn.Module):
    """Independent action-value networks, evaluated together."""

    layers: Sequence[EnsembleLinear]

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
        layers = nn.ModuleList(EnsembleLinear(members, a, b, generator) for a, b in itertools.pairwise(sizes))
        self.layers = layers  # type: ignore[assignment]  # torch's list does not say of what

    def forward(self, obs: Tensor, action: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Return every member's value, or those of the `chosen` members alone, `(members, batch)`."""
        members = self.members if chosen is None else len(chosen)
        inputs = torch.cat([obs, action], dim=-1).expand(members, -1, -1)
        hidden = functional.relu(in_float32(self.layers[0], inputs, chosen))
        for layer in self.layers[1:-1]:
            hidden = functional.relu(layer(hidden, chosen))
        return in_float32(self.layers[-1], hidden, chosen).squeeze(-1)

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the first member's value alone, `(batch,)`, at a share of the cost."""
        hidden = functional.relu(in_float32(self.layers[0].first, torch.cat([obs, action], dim=-1)))
        for layer in self.layers[1:-1]:
            hidden = functional.relu(layer.first(hidden))
        return in_float32(self.layers[-1].first, hidden).squeeze(-1)

    def action_gradient(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return every member's value, `(members, batch)`, and its gradient by the action, `(members, batch, act_dim)`.

        The gradient is written out layer by layer, so that a loss of it is differentiated once and not twice.
        """
        inputs = torch.cat([obs, action], dim=-1).expand(self.members, -1, -1)
        hidden = functional.relu(in_float32(self.layers[0], inputs))
        active = [(hidden > 0).to(hidden.dtype)]
        for layer in self.layers[1:-1]:
            hidden = functional.relu(layer(hidden))
            active.append((hidden > 0).to(hidden.dtype))
        values = in_float32(self.layers[-1], hidden).squeeze(-1)
        gradient = self.layers[-1].weight.mT * active[-1]
        for layer, mask in zip(reversed(self.layers[1:-1]), reversed(active[:-1]), strict=True):
            gradient = (gradient @ layer.weight.mT) * mask
        # Of the first layer only what the action enters by.
        entrance = self.layers[0].weight[:, obs.shape[-1] :].mT
        return values, in_float32(torch.matmul, gradient, entrance)


def new_linear(in_features: int, out_features: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer whose weights are drawn from the generator, uniform within 1 / sqrt(in_features)."""
    layer = nn.Linear(in_features, out_features)
    bound = 1.0 / math.sqrt(in_features)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


class Mlp(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        sizes: width of the input, of each hidden layer and of the output.
        generator: draws the initial weights.
    """

    layers: Sequence[nn.Linear]

    def __init__(self, sizes: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        layers = nn.ModuleList(new_linear(a, b, generator) for a, b in itertools.pairwise(sizes))
        self.layers = layers  # type: ignore[assignment]  # torch's list does not say of what

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the last layer's output, `(batch, sizes[-1])`."""
        hidden = functional.relu(in_float32(self.layers[0], inputs))
        for layer in self.layers[1:-1]:
            hidden = functional.relu(layer(hidden))
        return in_float32(self.layers[-1], hidden)


class ActionSample(NamedTuple):
    """Actions drawn from a policy, `(batch, act_dim)`, and their log density, `(batch,)`."""

    action: Tensor
    log_prob: Tensor


class Actor(Mlp):
    """A diagonal Gaussian squashed by tanh: actions in [-1, 1] (Haarnoja et al. 2018, appendix C).

    Args:
        obs_dim: size of an observation.
        act_dim: size of an action.
        hidden: width of each hidden layer.
        generator: draws the initial weights.
        log_std_range: to which the log of the standard deviation before squashing is held.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        log_std_range: tuple[float, float] = LOG_STD_RANGE,
    ) -> None:
        super().__init__([obs_dim, *hidden, 2 * act_dim], generator)
        self.log_std_range = log_std_range

    def distribution(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing, each `(batch, act_dim)`."""
        mean, log_std = super().forward(obs).chunk(2, dim=-1)
        return mean, log_std.clamp(*self.log_std_range)

    def forward(self, obs: Tensor) -> Tensor:
        """Return the deterministic action, the squashed mean, `(batch, act_dim)`."""
        return torch.tanh(self.distribution(obs)[0])

    def sample(self, obs: Tensor, generator: torch.Generator) -> ActionSample:
        """Draw an action by the reparameterisation trick."""
        mean, log_std = self.distribution(obs)
        return squash(mean, log_std, torch.randn(mean.shape, generator=generator, device=mean.device))


class DeterministicActor(Mlp):
    """A network squashed by tanh: one action in [-1, 1] for an observation."""

    def __init__(self, obs_dim: int, act_dim: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__([obs_dim, *hidden, act_dim], generator)

    def forward(self, obs: Tensor) -> Tensor:
        """Return the action, `(batch, act_dim)`."""
        return torch.tanh(super().forward(obs))


class GaussianActor(DeterministicActor):
    """A diagonal Gaussian around a squashed mean, its standard deviation the same for every observation.

    Its density is finite at every action in [-1, 1], as regression on logged actions needs; what it draws is not
    bound to that range.

    Args:
        obs_dim: size of an observation.
        act_dim: size of an action.
        hidden: width of each hidden layer.
        generator: draws the initial weights.
        log_std_range: to which the log of the standard deviation is held; it begins at 0.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        log_std_range: tuple[float, float],
    ) -> None:
        super().__init__(obs_dim, act_dim, hidden, generator)
        self.log_std_range = log_std_range
        self.log_std = nn.Parameter(torch.zeros(act_dim))

    def log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        """Return the log density of actions under the Gaussian around `mean`, both `(batch, act_dim)`: `(batch,)`."""
        log_std = self.log_std.clamp(*self.log_std_range)
        noise = (action - mean) / log_std.exp()
        return (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    @torch.no_grad()
    def sample(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions around `mean`, `(batch, act_dim)`, cut to [-1, 1] as the robot would."""
        std = self.log_std.clamp(*self.log_std_range).exp()
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return (mean + std * noise).clamp(-1.0, 1.0)


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> ActionSample:
    """Turn standard normal noise `(..., batch, act_dim)` into actions of a squashed Gaussian and their log density."""
    pre_tanh = mean + log_std.exp() * noise
    return ActionSample(torch.tanh(pre_tanh), squashed_log_prob(pre_tanh, noise, log_std))


def squashed_density(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log density of given actions `(..., batch, act_dim)` under a squashed Gaussian, `(..., batch)`.

    Actions nearer than `ACTION_MARGIN` to -1 or 1 are taken to be that near.
    """
    pre_tanh = torch.atanh(action.clamp(ACTION_MARGIN - 1.0, 1.0 - ACTION_MARGIN))
    return squashed_log_prob(pre_tanh, (pre_tanh - mean) * (-log_std).exp(), log_std)


def squashed_log_prob(pre_tanh: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
    """Log density of `tanh(pre_tanh)` where `pre_tanh = mean + exp(log_std) * noise`; all `(batch, act_dim)`.

    log N(noise; 0, 1) - log_std - log(1 - tanh(u)^2), the last term as 2 (log 2 - u - softplus(-2u)), which does not
    overflow where tanh saturates.
    """
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    squash = 2.0 * (math.log(2.0) - pre_tanh - functional.softplus(-2.0 * pre_tanh))
    return (gaussian - squash).sum(-1)
