"""Behaviour cloning: the policy does what the log did.

A deterministic policy is fitted to the logged actions by least squares,

    minimise  E[ |pi(s) - a|^2 ],

as in the comparisons of TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860), which tends to it as alpha goes to 0. Its
minimum is the mean of what the log did, one action, which is what a robot is sent. The likelihood of a tanh-Gaussian,
the other usual loss, also fits a spread that nobody asks for here, and has no bound at actions of -1 and 1, which logs
are full of. Cloning weighted by advantage is AWAC (awac.py); the clone that BRAC takes its divergence from needs a
density, and is fitted by likelihood (brac.py).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from offline_train.algorithms.base import Learner
from offline_train.algorithms.model_free import ModelFreeConfig
from offline_train.networks import DeterministicActor
from offline_train.replay import Batch


class BcConfig(ModelFreeConfig):
    """Settings of behaviour cloning."""

    name: Literal["bc"] = "bc"
    hidden: list[int] = Field(default=[256, 256], description="width of each hidden layer")
    learning_rate: float = Field(default=3e-4, gt=0, description="Adam's step size")


def cloning_loss(action: Tensor, logged: Tensor) -> Tensor:
    """Mean squared error of actions, `(batch, act_dim)` each, over rows and dimensions."""
    return functional.mse_loss(action, logged)


class Bc(Learner):
    """The actor; the last one acts and is exported.

    Args:
        obs_mean: `(obs_dim,)`, subtracted from every observation.
        obs_std: `(obs_dim,)`, divided by.
        act_dim: size of an action.
        config: settings.
        generator: draws initial weights.
    """

    def __init__(
        self, obs_mean: Tensor, obs_std: Tensor, act_dim: int, config: BcConfig, generator: torch.Generator
    ) -> None:
        super().__init__(obs_mean, obs_std, generator)
        self.actor = DeterministicActor(len(obs_mean), act_dim, config.hidden, generator)
        self.optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.learning_rate, fused=True)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One gradient step of the actor."""
        loss = cloning_loss(self(batch.obs), batch.action)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"actor_loss": loss.detach()}
