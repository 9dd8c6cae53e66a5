"""A deep Gaussian process: one process over the output of another (Damianou and Lawrence 2013), for richer priors.

It is fitted by doubly stochastic variational inference (Salimbeni and Deisenroth 2017, arXiv 1705.08933), which
gpytorch has: inducing points in every layer, batches of rows, samples of the hidden layer. The hidden layer adds
the first dimensions of the observation to its output, so that it begins with those (theirs: with as many principal
components). The samples that a prediction averages over are drawn once, after the fit, so that the prior is a
function of the state.
"""

from __future__ import annotations

from typing import Any, Literal

import gpytorch
import torch
from pydantic import Field
from torch import Tensor

from offline_train.priors.base import Moments, Prior, PriorConfig, Report

FIRST_NOISE = 0.05


class DeepGpConfig(PriorConfig):
    """Settings of the deep process."""

    name: Literal["deep-gp"] = "deep-gp"
    steps: int = Field(default=500, ge=1, description="gradient steps of the fit")
    learning_rate: float = Field(default=0.01, gt=0, description="Adam's step size")
    inducing: int = Field(default=64, ge=1, description="inducing points of each layer")
    hidden: int = Field(default=4, ge=1, description="width of the hidden layer, at most that of an observation")
    batch_size: int = Field(default=256, ge=1, description="rows a gradient step")
    samples: int = Field(default=8, ge=1, description="samples of the hidden layer that a prediction averages over")


class Layer(gpytorch.models.deep_gps.DeepGPLayer):
    """One layer: a sparse process for each output dimension, RBF with a lengthscale for each input.

    Args:
        points: initial inducing points, `(M, input_dim)`.
        outputs: size of the output.
    """

    def __init__(self, points: Tensor, outputs: int) -> None:
        shape = torch.Size([outputs])
        count, inputs = points.shape
        distribution = gpytorch.variational.CholeskyVariationalDistribution(count, batch_shape=shape)
        strategy = gpytorch.variational.VariationalStrategy(
            self, points.expand(outputs, -1, -1).clone(), distribution, learn_inducing_locations=True
        )
        super().__init__(strategy, inputs, outputs)
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=shape)
        self.covar_module = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.RBFKernel(batch_shape=shape, ard_num_dims=inputs), batch_shape=shape
        )

    def forward(self, inputs: Tensor) -> gpytorch.distributions.MultivariateNormal:
        """The prior at the inputs, as gpytorch asks for it."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(inputs), self.covar_module(inputs))


class TwoLayers(gpytorch.models.deep_gps.DeepGP):
    """The deep process as gpytorch fits it; the observations are standardised, so that one lengthscale fits all."""

    def __init__(self, obs: Tensor, act_dim: int, config: DeepGpConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = min(config.hidden, obs.shape[1])
        points = obs[torch.randperm(len(obs), generator=generator)[: config.inducing]]
        self.width = width
        self.first = Layer(points, width)
        self.second = Layer(points[:, :width].clone(), act_dim)
        self.likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=act_dim)
        self.likelihood.noise = self.likelihood.task_noises = FIRST_NOISE

    def forward(self, obs: Tensor) -> Any:
        """The last layer's distribution over samples of the first's."""
        hidden = self.first(obs)
        shifted = gpytorch.distributions.MultitaskMultivariateNormal(
            hidden.mean + obs[..., : self.width], hidden.lazy_covariance_matrix
        )
        return self.second(shifted)


class CachedLayer(torch.nn.Module):
    """A fitted layer, cached: mean and variance are two products with the kernel (Hensman et al. 2015, whitened).

    Args:
        tensors: `lengthscale (outputs, 1, inputs)`, `points (outputs, M, inputs)`,
            `weights (outputs, M, 1)`, `shrink (outputs, M, M)`, `scale` and `constant (outputs, 1)`.
    """

    lengthscale: Tensor
    points: Tensor
    weights: Tensor
    shrink: Tensor
    scale: Tensor
    constant: Tensor

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value.detach().clone())

    @classmethod
    @torch.no_grad()
    def of(cls, layer: Layer) -> CachedLayer:
        """Cache a layer. With K = L L^T, q(u) = N(L m, L S L^T): mean k^T L^-T m, variance k - |a|^2 + a^T S a."""
        strategy = layer.variational_strategy
        points = strategy.inducing_points.double()
        base, scale = layer.covar_module.base_kernel, layer.covar_module.outputscale.double()
        lengthscale = base.lengthscale.double()
        scaled = points / lengthscale
        covariance = scale[:, None, None] * torch.exp(-0.5 * torch.cdist(scaled, scaled).square())
        jitter = strategy.jitter_val * torch.eye(points.shape[1], dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance + jitter)
        posterior = strategy._variational_distribution()
        told = posterior.covariance_matrix.double() - torch.eye(points.shape[1], dtype=torch.float64)
        inverse = torch.linalg.solve_triangular(factor, torch.eye(points.shape[1], dtype=torch.float64), upper=False)
        weights = inverse.mT @ posterior.mean.double()[..., None]
        shrink = inverse.mT @ told @ inverse
        tensors = {"lengthscale": lengthscale, "points": scaled, "weights": weights, "shrink": shrink}
        tensors |= {"scale": scale[:, None], "constant": layer.mean_module.constant.double()[:, None]}
        return cls(tensors)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance `(batch, outputs)` for inputs `(batch, input_dim)`, in float64."""
        squared = torch.cdist(inputs / self.lengthscale, self.points).square()
        kernel = self.scale[..., None] * torch.exp(-0.5 * squared)
        mean = (kernel @ self.weights)[..., 0] + self.constant
        variance = self.scale + (kernel @ self.shrink * kernel).sum(-1)
        return mean.T, variance.T.clamp(min=0.0)


class DeepGpPrior(Prior):
    """The fitted deep process.

    Args:
        tensors: of both layers (`first.NAME`, `second.NAME`), `origin` and `spread (obs_dim,)` by which observations
            are standardised, `hidden_noise (samples, width)`, standard normal, and `noise (act_dim,)` variances.
    """

    origin: Tensor
    spread: Tensor
    hidden_noise: Tensor
    noise: Tensor

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        layers: dict[str, dict[str, Tensor]] = {"first": {}, "second": {}}
        for name, value in tensors.items():
            layer, _, rest = name.partition(".")
            if rest:
                layers[layer][rest] = value
            else:
                self.register_buffer(name, value.detach().clone())
        self.first, self.second = (CachedLayer(values) for values in layers.values())
        self.obs_dim, self.act_dim = len(self.origin), len(self.noise)

    def moments(self, obs: Tensor) -> Moments:
        """Mean and variances for observations `(batch, obs_dim)`, those of the mixture over the hidden samples."""
        standard = (obs.double() - self.origin) / self.spread
        mean, variance = self.first(standard)
        width = self.hidden_noise.shape[1]
        hidden = mean + standard[:, :width] + variance.sqrt() * self.hidden_noise[:, None]
        samples = len(self.hidden_noise)
        means, variances = (part.unflatten(0, (samples, -1)) for part in self.second(hidden.flatten(0, 1)))
        total = variances.mean(0) + means.var(0, unbiased=False)
        mean = means.mean(0)
        return Moments(mean.float(), total.float(), self.noise.float().expand_as(mean))


def fit_deep_gp(
    config: DeepGpConfig, obs: Tensor, action: Tensor, generator: torch.Generator, report: Report
) -> DeepGpPrior:
    """Fit by stochastic variational inference; arguments as those of `fit_exact_gp`."""
    origin, spread = obs.double().mean(0), obs.double().std(0) + 1e-3
    standard = ((obs.double() - origin) / spread).float()
    # gpytorch draws the hidden layer's samples from torch's own generator.
    with torch.random.fork_rng(devices=[]), gpytorch.settings.num_likelihood_samples(1):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = TwoLayers(standard, action.shape[1], config, generator)
        bound = gpytorch.mlls.DeepApproximateMLL(
            gpytorch.mlls.VariationalELBO(model.likelihood, model, num_data=len(obs))
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        for step in range(config.steps):
            rows = torch.randint(len(obs), (config.batch_size,), generator=generator)
            loss = -bound(model(standard[rows]), action[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            report(step + 1, f"evidence {-loss.item():.3f} an action" if step % 20 == 0 else "")
        model.eval()
        layers = {"first": CachedLayer.of(model.first), "second": CachedLayer.of(model.second)}
    noise = (model.likelihood.task_noises + model.likelihood.noise).detach()
    tensors = {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    hidden_noise = torch.randn(config.samples, model.width, generator=generator).double()
    return DeepGpPrior(
        {**tensors, "origin": origin, "spread": spread, "hidden_noise": hidden_noise, "noise": noise.double()}
    )
