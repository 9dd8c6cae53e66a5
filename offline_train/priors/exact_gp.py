"""The exact multitask Gaussian process of N-PPAC (Rudner, Lu et al. 2021), in gpytorch's parametrisation.

As in the authors' code: a constant mean for each dimension of the action, one data kernel with a lengthscale for each
dimension of the observation and no output scale, a task covariance of rank 1, and noise that is the sum of a global
and a task's own variance; all of it learned by Adam on the marginal likelihood. The marginal likelihood is gpytorch's,
computed after the rotation of gp_posterior.py by one decomposition of the rows' size for all tasks, which takes a
fraction of the time.
"""

from __future__ import annotations

import math
from typing import Literal

import gpytorch
import torch
from pydantic import Field
from torch import Tensor

from offline_train.priors.base import PriorConfig, Report
from offline_train.priors.gp_posterior import GpPosterior, Hyperparameters, Kernel, condition

# Below this an eigenvalue of a covariance matrix is rounding, as where rows are alike.
JITTER = 1e-9
NOISE_FLOOR = 1e-4


class GpConfig(PriorConfig):
    """Settings that the processes share."""

    kernel: Kernel = Field(default="rbf", description="rbf, matern12, matern32 or matern52")
    fit_rows: int = Field(default=500, ge=2, description="rows that the hyper-parameters are learned from")


class ExactGpConfig(GpConfig):
    """Settings of the exact process."""

    name: Literal["exact-gp"] = "exact-gp"
    rows: int = Field(default=1_000, ge=2, description="rows that the posterior is conditioned on at most")


class MultitaskModel(gpytorch.models.ExactGP):
    """The process as gpytorch has it; it holds the hyper-parameters, and tests hold our formulae to its own.

    Args:
        obs: `(rows, obs_dim)`.
        action: `(rows, act_dim)`.
        kernel: its name.
    """

    def __init__(self, obs: Tensor, action: Tensor, kernel: Kernel) -> None:
        tasks, dims = action.shape[1], obs.shape[1]
        likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(
            num_tasks=tasks, noise_constraint=gpytorch.constraints.GreaterThan(NOISE_FLOOR)
        )
        super().__init__(obs, action, likelihood)
        self.kernel_name = kernel
        smooth = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}
        base = (
            gpytorch.kernels.RBFKernel(ard_num_dims=dims)
            if kernel == "rbf"
            else gpytorch.kernels.MaternKernel(nu=smooth[kernel], ard_num_dims=dims)
        )
        self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ConstantMean(), num_tasks=tasks)
        self.covar_module = gpytorch.kernels.MultitaskKernel(base, num_tasks=tasks, rank=1)
        self.double()

    def forward(self, obs: Tensor) -> gpytorch.distributions.MultitaskMultivariateNormal:
        """The prior at the observations, as gpytorch's own prediction asks for it."""
        return gpytorch.distributions.MultitaskMultivariateNormal(self.mean_module(obs), self.covar_module(obs))

    def hyperparameters(self) -> Hyperparameters:
        """The present ones, with their gradients."""
        tasks = self.covar_module.task_covar_module
        return Hyperparameters(
            self.kernel_name,
            self.covar_module.data_covar_module.lengthscale[0],
            torch.cat([mean.constant.reshape(1) for mean in self.mean_module.base_means]),
            tasks.covar_factor[:, 0],
            tasks.var,
            self.likelihood.task_noises + self.likelihood.noise,
        )


def log_marginal_likelihood(parameters: Hyperparameters, obs: Tensor, action: Tensor) -> Tensor:
    """Log p(Y | X) of all rows and tasks, a scalar; obs `(rows, obs_dim)`, action `(rows, act_dim)`.

    sum_i log N(z_i; 0, s_i K + I) - rows / 2 sum_t log d_t, the last term from the change of variables. One
    decomposition K = Q diag(l) Q^T serves all tasks. Nothing is differentiated through it, as gradients of
    eigenvectors blow up where eigenvalues are close: those of the eigenvalues are d l_j = q_j^T dK q_j, and with
    w = (s K + I)^-1 z held fixed, 2 w^T z - w^T (s K + I) w has the value and the gradient of z^T (s K + I)^-1 z.
    """
    rows = len(obs)
    rotated, values = parameters.rotated(action)
    covariance = parameters.covariance(obs, obs)
    with torch.no_grad():
        gains, vectors = torch.linalg.eigh(covariance)
        solved = vectors @ ((vectors.T @ rotated) / (1.0 + gains.clamp(min=0.0)[:, None] * values))
    gains = (vectors * (covariance @ vectors)).sum(0).clamp(min=0.0)
    squares = 2.0 * (solved * rotated).sum() - solved.square().sum() - (values * solved * (covariance @ solved)).sum()
    log_det = torch.log1p(gains[:, None] * values).sum() + rows * parameters.noise.log().sum()
    return -0.5 * (squares + log_det + rows * action.shape[1] * math.log(2.0 * math.pi))


def chosen_rows(rows: int, most: int, generator: torch.Generator) -> Tensor:
    """At most so many of the rows, drawn at random, in order."""
    return torch.randperm(rows, generator=generator)[:most].sort().values


def new_model(obs: Tensor, action: Tensor, kernel: Kernel, generator: torch.Generator) -> MultitaskModel:
    """A model with initial hyper-parameters that are a function of the generator."""
    model = MultitaskModel(obs, action, kernel)
    tasks = model.covar_module.task_covar_module
    with torch.no_grad():
        # gpytorch draws both from torch's own generator.
        for parameter in (tasks.covar_factor, tasks.raw_var):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def fit_exact_gp(
    config: ExactGpConfig, obs: Tensor, action: Tensor, generator: torch.Generator, report: Report
) -> GpPosterior:
    """Learn the hyper-parameters and condition on the demonstrations.

    Args:
        config: settings.
        obs: `(rows, obs_dim)`.
        action: `(rows, act_dim)`.
        generator: draws the rows that are used, where there are more than the settings allow, and the first task
            covariance.
        report: told of every step.
    """
    parameters = learned(config, obs, action, generator, report)
    kept = chosen_rows(len(obs), config.rows, generator)
    return exact_posterior(parameters, obs[kept].double(), action[kept].double())


def learned(
    config: GpConfig, obs: Tensor, action: Tensor, generator: torch.Generator, report: Report
) -> Hyperparameters:
    """The hyper-parameters that make some of the rows likely; arguments as those of `fit_exact_gp`."""
    some = chosen_rows(len(obs), config.fit_rows, generator)
    x, y = obs[some].double(), action[some].double()
    model = new_model(x, y, config.kernel, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    for step in range(config.steps):
        optimizer.zero_grad()
        loss = -log_marginal_likelihood(model.hyperparameters(), x, y) / y.numel()
        loss.backward()
        optimizer.step()
        report(step + 1, f"log-likelihood {-loss.item():.3f} a number")
    with torch.no_grad():
        return model.hyperparameters()


@torch.no_grad()
def exact_posterior(parameters: Hyperparameters, obs: Tensor, action: Tensor) -> GpPosterior:
    """Condition on rows `(rows, obs_dim)` and `(rows, act_dim)` in float64."""
    covariance = parameters.covariance(obs, obs)
    gains, vectors = torch.linalg.eigh(covariance)
    gains = gains.clamp(min=JITTER)
    projection = vectors * gains.rsqrt()
    rotated, _ = parameters.rotated(action)
    return condition(parameters, obs, projection, gains, gains.sqrt()[:, None] * (vectors.T @ rotated))
