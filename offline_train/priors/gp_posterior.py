r"""The posterior of a multitask Gaussian process, exact or sparse, cached so that a prediction is two products.

The prior is f(x) ~ GP(c, k(x, x') T), one task for each dimension of the action, with task covariance T = b b^T +
diag(v), and actions are y = f(x) + noise of variances D = diag(d). With D^-1/2 T D^-1/2 = U diag(s) U^T, the rotated
targets Z = (Y - c) D^-1/2 U are independent processes s_i k with unit noise, so that nothing is ever larger than the
number of rows, N, where the joint covariance has N act_dim rows (Bonilla et al. 2007; Rakitsch et al. 2013).

All of them share one kernel, so one basis makes all of their covariances diagonal. With M centres X_z (inducing points;
for the exact process the rows themselves), K_zz = L L^T and L^-1 K_zx K_xz L^-T = V diag(g) V^T, the features

    a(x) = P^T k(X_z, x),   P = L^-T V

give the posterior of every task at once (Titsias 2009, equation 6, in this basis):

    mean_t     = c_t + sum_m k(z_m, x) W_mt
    variance_t = T_tt - sum_j a_j(x)^2 R_jt,   R_jt = d_t sum_i U_ti^2 s_i^2 g_j / (1 + s_i g_j).

Features whose R_jt are below a tolerance are left out; as sum_j a_j^2 <= 1, no variance is then off by more than that.
For the exact process K = Q diag(l) Q^T gives P = Q l^-1/2 and g = l, and the formulae are the exact ones.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from offline_train.priors.base import Moments, Prior

Kernel = Literal["rbf", "matern12", "matern32", "matern52"]
# What a cached variance may be off by, in shares of the largest prior variance.
TOLERANCE = 1e-6
SMOOTHNESS: dict[Kernel, float] = {"rbf": math.inf, "matern12": 0.5, "matern32": 1.5, "matern52": 2.5}


def kernel_of_distance(squared: Tensor, smoothness: float) -> Tensor:
    """The stationary kernel at squared scaled distances: RBF for infinite smoothness, else Matern 1/2, 3/2 or 5/2."""
    if math.isinf(smoothness):
        return torch.exp(-0.5 * squared)
    # Away from 0, where the square root has no gradient.
    distance = squared.clamp(min=1e-12).sqrt()
    if smoothness == 0.5:
        return torch.exp(-distance)
    r = math.sqrt(2.0 * smoothness) * distance
    return (1.0 + r if smoothness == 1.5 else 1.0 + r + r.square() / 3.0) * torch.exp(-r)


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared Euclidean distances of scaled rows, `(n, dim)` and `(m, dim)` to `(n, m)`, as one product."""
    norms = first.square().sum(-1)[:, None] + second.square().sum(-1)
    return torch.addmm(norms, first, second.T, alpha=-2.0).clamp(min=0.0)


class Hyperparameters:
    """What the marginal likelihood is maximised over, in float64.

    Attributes:
        kernel: its name.
        lengthscale: `(obs_dim,)`, in the observation's units.
        mean: c, `(act_dim,)`.
        factor: b, `(act_dim,)`.
        diagonal: v, `(act_dim,)`.
        noise: d, `(act_dim,)` variances.
    """

    def __init__(
        self, kernel: Kernel, lengthscale: Tensor, mean: Tensor, factor: Tensor, diagonal: Tensor, noise: Tensor
    ) -> None:
        self.kernel, self.lengthscale, self.mean, self.noise = kernel, lengthscale, mean, noise
        self.factor, self.diagonal = factor, diagonal

    @property
    def task_covariance(self) -> Tensor:
        """T = b b^T + diag(v)."""
        return torch.outer(self.factor, self.factor) + torch.diag(self.diagonal)

    def rotation(self) -> tuple[Tensor, Tensor]:
        """U `(act_dim, act_dim)` and s `(act_dim,)`, the eigenvectors and eigenvalues of D^-1/2 T D^-1/2."""
        scale = self.noise.rsqrt()
        values, vectors = torch.linalg.eigh(scale[:, None] * self.task_covariance * scale)
        return vectors, values

    def rotated(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Z `(rows, act_dim)` and s of actions `(rows, act_dim)`."""
        vectors, values = self.rotation()
        return (action - self.mean) * self.noise.rsqrt() @ vectors, values

    def covariance(self, first: Tensor, second: Tensor) -> Tensor:
        """The kernel between observations `(n, obs_dim)` and `(m, obs_dim)`, `(n, m)`."""
        squared = squared_distances(first / self.lengthscale, second / self.lengthscale)
        return kernel_of_distance(squared, SMOOTHNESS[self.kernel])


class GpPosterior(Prior):
    """The cached posterior; see the top of this file.

    Args:
        smoothness: of the kernel, infinite for RBF.
        tensors: `lengthscale (obs_dim,)`, `origin (obs_dim,)`, `centres (M, obs_dim)` scaled and about the origin,
            `projection (M, features)`, `weights (M, act_dim)`, `reductions (features, act_dim)`, and `mean`,
            `prior_variance` and `noise`, `(act_dim,)` each.
    """

    lengthscale: Tensor
    origin: Tensor
    centres: Tensor
    projection: Tensor
    weights: Tensor
    reductions: Tensor
    mean: Tensor
    prior_variance: Tensor
    noise: Tensor
    smoothness: Tensor

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value.detach().clone())
        self.obs_dim, self.act_dim = len(self.lengthscale), len(self.mean)
        self._smoothness = float(self.smoothness)

    def kernel(self, obs: Tensor) -> Tensor:
        """k(x, X_z), `(batch, M)` float64: far from all centres distances are small differences of large numbers."""
        scaled = (obs.double() - self.origin) / self.lengthscale
        return kernel_of_distance(squared_distances(scaled, self.centres), self._smoothness)

    def moments(self, obs: Tensor) -> Moments:
        """Mean and variances for observations `(batch, obs_dim)`."""
        kernel = self.kernel(obs)
        # Thousands of large weights nearly cancel in the mean, which float32 leaves with errors of 3e-4; the variance,
        # a sum of squares and by far the most of the work, has none above 1e-5.
        mean = self.mean + (kernel @ self.weights).to(self.mean.dtype)
        reduction = (kernel.to(self.projection.dtype) @ self.projection).square() @ self.reductions
        # Rounding may take a variance next to the data below 0.
        variance = (self.prior_variance - reduction).clamp(min=0.0)
        return Moments(mean, variance, self.noise.expand_as(mean))


def condition(
    parameters: Hyperparameters, centres: Tensor, projection: Tensor, gains: Tensor, features: Tensor
) -> GpPosterior:
    """Make the cached posterior.

    Args:
        parameters: of the process.
        centres: X_z, `(M, obs_dim)`.
        projection: P, `(M, M)`.
        gains: g, `(M,)`.
        features: P^T K_zx Z, `(M, act_dim)`, what the features have in common with the rotated targets.
    """
    vectors, values = parameters.rotation()
    shrunk = 1.0 + gains[:, None] * values
    unrotate = parameters.noise.sqrt()[:, None] * vectors
    weights = projection @ (values / shrunk * features) @ unrotate.T
    reductions = (values.square() * gains[:, None] / shrunk) @ unrotate.square().T
    variance = parameters.task_covariance.diagonal()
    kept = reductions.amax(1) > TOLERANCE * variance.max()
    origin = centres.mean(0)
    single = {
        "projection": projection[:, kept],
        "reductions": reductions[kept],
        "mean": parameters.mean,
        "prior_variance": variance,
        "noise": parameters.noise,
    }
    return GpPosterior(
        {
            "lengthscale": parameters.lengthscale,
            "origin": origin,
            "centres": (centres - origin) / parameters.lengthscale,
            "smoothness": torch.tensor(SMOOTHNESS[parameters.kernel]),
            "weights": weights,
            **{name: value.float().contiguous() for name, value in single.items()},
        }
    )
