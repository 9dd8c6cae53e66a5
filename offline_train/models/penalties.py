"""Uncertainty penalties of offline model-based RL, by name.

Each takes every member's mean and standard deviation of the change of state and the reward,
`(members, batch, obs_dim + 1)` in the units of the data, and returns `(batch,)`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Penalty = Callable[[Tensor, Tensor], Tensor]


def max_aleatoric(mean: Tensor, std: Tensor) -> Tensor:
    """MOPO's penalty: max over members of || std ||_2 over state and reward (Yu et al. 2020, section 4.3)."""
    return torch.linalg.vector_norm(std, dim=-1).amax(dim=0)


def ensemble_std(mean: Tensor, std: Tensor) -> Tensor:
    """Standard deviation of the members' mixture, averaged over dimensions.

    mean_d sqrt( mean_i std_i^2 + Var_i(mean_i) ), the law of total variance (Lu et al. 2022, "Revisiting Design
    Choices in Offline Model-Based RL", section 3).
    """
    return (std.square().mean(0) + mean.var(0, unbiased=False)).sqrt().mean(-1)


PENALTIES: dict[str, Penalty] = {"max_aleatoric": max_aleatoric, "ensemble_std": ensemble_std}
