"""A sparse variational Gaussian process, for demonstrations of more than some thousands of rows (Titsias 2009).

Inducing points stand for the rows: the posterior is the best Gaussian that knows the process at those points alone,
which for Gaussian noise is known in closed form from all rows. The points are rows drawn at random, so that they lie as
the demonstrations lie (points spread greedily, Burt et al. 2020, go to outliers: held-out log-likelihood on HalfCheetah
is then lower than that of the exact process on as many rows), and the hyper-parameters those of the exact process on
some of the rows, so that all of the demonstrations cost one product.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from offline_train.priors.base import Report
from offline_train.priors.exact_gp import GpConfig, chosen_rows, learned
from offline_train.priors.gp_posterior import GpPosterior, Hyperparameters, condition

# Added to the inducing points' covariance, so that it has a Cholesky factor.
JITTER = 1e-6


class SparseGpConfig(GpConfig):
    """Settings of the sparse process."""

    name: Literal["sparse-gp"] = "sparse-gp"
    inducing: int = Field(default=1_000, ge=1, description="inducing points")


def fit_sparse_gp(
    config: SparseGpConfig, obs: Tensor, action: Tensor, generator: torch.Generator, report: Report
) -> GpPosterior:
    """Learn the hyper-parameters, choose the inducing points and condition on all demonstrations.

    Args:
        config: settings.
        obs: `(rows, obs_dim)`.
        action: `(rows, act_dim)`.
        generator: draws the rows that hyper-parameters are learned from, the first task covariance and the points.
        report: told of every step.
    """
    parameters = learned(config, obs, action, generator, report)
    chosen = chosen_rows(len(obs), config.inducing, generator)
    return sparse_posterior(parameters, obs[chosen].double(), obs.double(), action.double())


def whitened(parameters: Hyperparameters, points: Tensor, obs: Tensor) -> tuple[Tensor, Tensor]:
    """L and A = L^-1 K_zx for inducing points `(M, obs_dim)` and rows `(rows, obs_dim)`."""
    covariance = parameters.covariance(points, points) + JITTER * torch.eye(len(points), dtype=points.dtype)
    factor = torch.linalg.cholesky(covariance)
    return factor, torch.linalg.solve_triangular(factor, parameters.covariance(points, obs), upper=False)


@torch.no_grad()
def sparse_posterior(parameters: Hyperparameters, points: Tensor, obs: Tensor, action: Tensor) -> GpPosterior:
    """Condition on rows `(rows, obs_dim)` and `(rows, act_dim)` through inducing points `(M, obs_dim)`; float64."""
    factor, basis = whitened(parameters, points, obs)
    gains, vectors = torch.linalg.eigh(basis @ basis.T)
    projection = torch.linalg.solve_triangular(factor.T, vectors, upper=True)
    rotated, _ = parameters.rotated(action)
    return condition(parameters, points, projection, gains.clamp(min=0.0), vectors.T @ (basis @ rotated))
