"""Uncertainty penalties of offline model-based RL, by name.

What is called uncertainty differs from method to method; each is a function of what an ensemble's members say of
(change of state, reward), in the units of the data. Those that compare members come in two forms where the published
formula and the published code differ: by the members' means, and, with `_sampled` at the end of the name, by one draw
of each member, which counts the noise that the members predict as disagreement too. Formulas and their sources: Lu et
al. 2022, "Revisiting Design Choices in Offline Model-Based RL" (arXiv 2110.04135), and the papers named below.

All members are asked, not the elites alone. With one member nobody disagrees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Below this a variance is rounding, and nothing is divided by it.
LEAST_VARIANCE = 1e-8


class Prediction(NamedTuple):
    """What an ensemble says of (change of state, reward), and the transitions drawn of it.

    Attributes:
        mean: every member's mean, `(members, batch, obs_dim + 1)`.
        std: every member's standard deviation, likewise.
        member: which member each row was drawn from, `(batch,)`.
        drawn: the rows drawn, `(batch, obs_dim + 1)`.
    """

    mean: Tensor
    std: Tensor
    member: Tensor
    drawn: Tensor

    def samples(self, generator: torch.Generator) -> Tensor:
        """One draw of every member, `(members, batch, obs_dim + 1)`; the rows drawn already are among them."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        samples = self.mean + self.std * noise
        samples[self.member, torch.arange(len(self.member), device=self.mean.device)] = self.drawn
        return samples


def max_aleatoric(std: Tensor) -> Tensor:
    """MOPO: max_i || std_i ||_2, of standard deviations `(members, batch, dims)` (Yu et al. 2020, section 4.3)."""
    return torch.linalg.vector_norm(std, dim=-1).amax(0)


def max_pairwise_difference(points: Tensor) -> Tensor:
    """MOReL: max_ij || x_i - x_j ||_2 (Kidambi et al. 2020, arXiv 2005.05951, section 4).

    Args:
        points: of each member its mean, as the paper has it, or a draw, `(members, batch, dims)`.
    """
    points = points.transpose(0, 1)
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").amax((1, 2))


def mixture_variance(std: Tensor, points: Tensor) -> Tensor:
    """Variance of the members' mixture by dimension, mean_i std_i^2 + Var_i(x_i), `(batch, dims)`.

    With means for x it is the law of total variance (Lakshminarayanan et al. 2017, arXiv 1612.01474, section 2.4).

    Args:
        std: `(members, batch, dims)`.
        points: of each member its mean or a draw, likewise.
    """
    return std.square().mean(0) + points.var(0, correction=0)


def sample_variance(std: Tensor, samples: Tensor) -> Tensor:
    """The same with draws and the unbiased variance, as the code of Lu et al. 2022 has it: `(batch, dims)`."""
    return std.square().mean(0) + samples.var(0, correction=min(1, len(samples) - 1))


def loo_kl(mean: Tensor, std: Tensor, member: Tensor) -> Tensor:
    """M2AC: KL of the member that was drawn from to all the others (Pan et al. 2020, arXiv 2010.04893).

    KL( N_i || N_-i ), N_-i the Gaussian with mean and variance of the others' mixture, diagonal, summed over dims.

    Args:
        mean: `(members, batch, dims)`.
        std: `(members, batch, dims)`.
        member: i of each row, `(batch,)`.
    """
    members, row = len(mean), torch.arange(len(member), device=mean.device)
    own_mean, own_variance = mean[member, row], std[member, row].square()
    if members == 1:
        return own_mean.new_zeros(len(member))
    other = (torch.arange(members, device=mean.device)[:, None] != member)[..., None]
    rest_mean = (other * mean).sum(0) / (members - 1)
    spread = std.square() + (mean - rest_mean).square()
    rest_variance = ((other * spread).sum(0) / (members - 1)).clamp(min=LEAST_VARIANCE)
    ratio = own_variance.clamp(min=LEAST_VARIANCE) / rest_variance
    distance = (own_mean - rest_mean).square() / rest_variance
    return 0.5 * (ratio - ratio.log() + distance - 1.0).sum(-1)


def log_likelihood_variance(mean: Tensor, std: Tensor, drawn: Tensor) -> Tensor:
    """LOMPO: Var_i[ log N(x; mean_i, std_i) ] of the x drawn, unbiased (Rafailov et al. 2021, arXiv 2012.11547).

    Args:
        mean: `(members, batch, dims)`.
        std: `(members, batch, dims)`.
        drawn: x, `(batch, dims)`.
    """
    std = std.clamp(min=LEAST_VARIANCE**0.5)
    # The constant of the density is the same for all members.
    log_likelihood = -(0.5 * ((drawn - mean) / std).square() + std.log()).sum(-1)
    return log_likelihood.var(0, correction=min(1, len(mean) - 1))


def _state(values: Tensor) -> Tensor:
    """The change of state, without the reward."""
    return values[..., :-1]


Penalty = Callable[[Prediction, torch.Generator], Tensor]
"""Of what was predicted to `(batch,)`; the generator draws samples, for those that need them."""

PENALTIES: dict[str, Penalty] = {
    # Of state and reward, as MOPO's paper has it, or of the state alone, as the code of Lu et al. 2022 has it.
    "max_aleatoric": lambda p, _: max_aleatoric(p.std),
    "max_aleatoric_state": lambda p, _: max_aleatoric(_state(p.std)),
    "max_pairwise_difference": lambda p, _: max_pairwise_difference(_state(p.mean)),
    "max_pairwise_difference_sampled": lambda p, g: max_pairwise_difference(_state(p.samples(g))),
    # The mean over dimensions of the state of the mixture's variance, and of its root (Lu et al. 2022, section 3).
    "ensemble_variance": lambda p, _: mixture_variance(_state(p.std), _state(p.mean)).mean(-1),
    "ensemble_variance_sampled": lambda p, g: sample_variance(_state(p.std), _state(p.samples(g))).mean(-1),
    "ensemble_std": lambda p, _: mixture_variance(_state(p.std), _state(p.mean)).sqrt().mean(-1),
    "ensemble_std_sampled": lambda p, g: sample_variance(_state(p.std), _state(p.samples(g))).sqrt().mean(-1),
    # State and reward.
    "loo_kl": lambda p, _: loo_kl(p.mean, p.std, p.member),
    "log_likelihood_variance": lambda p, _: log_likelihood_variance(_state(p.mean), _state(p.std), _state(p.drawn)),
}


def measure(name: str | None, prediction: Prediction, generator: torch.Generator) -> Tensor:
    """The penalty of that name `(batch,)`; zero where none is asked for."""
    if name is None:
        return prediction.drawn.new_zeros(len(prediction.drawn))
    return PENALTIES[name](prediction, generator)
