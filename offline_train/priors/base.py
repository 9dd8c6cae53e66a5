"""What every behavioural prior gives: mean and standard deviation of the demonstrator's action in a state.

A prior is fitted once, to states and actions of demonstrations without rewards, and stays as it is from then on. Both
are taken as they are, without normalising them, as N-PPAC has it (Rudner, Lu et al. 2021, arXiv 2212.13936).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Report = Callable[[int, str], None]
"""Takes how many steps of a fit are done, and a note."""


class PriorConfig(BaseModel):
    """Settings that all priors have."""

    model_config = ConfigDict(extra="forbid")

    name: str
    steps: int = Field(default=200, ge=1, description="gradient steps of the fit")
    learning_rate: float = Field(default=0.1, gt=0, description="Adam's step size")


class Moments(NamedTuple):
    """What a prior says of the action in each state, all `(batch, act_dim)`.

    Attributes:
        mean: of the action.
        variance: of what the demonstrator means to do, for want of demonstrations near by.
        noise: variance of what it does around that.
    """

    mean: Tensor
    variance: Tensor
    noise: Tensor


class Prior(nn.Module, ABC):
    """A Gaussian over actions for every state; its tensors are all that there is to save.

    Attributes:
        obs_dim: size of an observation.
        act_dim: size of an action.
    """

    obs_dim: int
    act_dim: int

    @abstractmethod
    def moments(self, obs: Tensor) -> Moments:
        """Mean and variances for observations `(batch, obs_dim)` in the data's units."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, noise included, `(batch, act_dim)` each; differentiable."""
        mean, variance, noise = self.moments(obs)
        return mean, (variance + noise).sqrt()

    @torch.no_grad()
    def predict(self, obs: Tensor, noise: bool = True) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the action, `(batch, act_dim)` each.

        They are computed in full precision, whatever a training around it has: a variance is a small difference of
        large numbers, of which bfloat16 leaves nothing.

        Args:
            obs: `(batch, obs_dim)`.
            noise: whether the standard deviation is that of an action, or of what the demonstrator means to do.

        Raises:
            ValueError: the observations are of another size.
        """
        if obs.ndim != 2 or obs.shape[1] != self.obs_dim:
            raise ValueError(f"the prior reads observations (batch, {self.obs_dim}), and these are {tuple(obs.shape)}")
        with torch.autocast(obs.device.type, enabled=False):
            mean, variance, about = self.moments(obs)
        return mean, (variance + about if noise else variance).sqrt()

    @torch.no_grad()
    def predict_all(self, obs: Tensor, at_once: int = 1_024) -> tuple[Tensor, Tensor]:
        """The same, with noise, for any number of rows, a part at a time."""
        means, stds = zip(*(self.predict(rows) for rows in obs.split(at_once)), strict=True)
        return torch.cat(means), torch.cat(stds)


def log_density(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log N(action; mean, std^2) summed over the dimensions: three `(batch, act_dim)` to `(batch,)`."""
    return torch.distributions.Normal(mean, std, validate_args=False).log_prob(action).sum(-1)
