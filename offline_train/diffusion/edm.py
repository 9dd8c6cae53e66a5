"""EDM: preconditioning, loss and samplers as pure functions (Karras et al. 2022, arXiv 2206.00364).

A network F sees rows x to which noise of standard deviation sigma was added, and the denoiser made of it,

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))                      (equation 7),

tells the mean of what x may have been without the noise. Its gap to x points towards the data, so a sampler that begins
with noise alone and follows it while sigma falls ends with rows of the data's distribution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

# Standard deviation of the data: its rows are standardised.
SIGMA_DATA = 1.0

# The logarithm of the noise that a row gets in training is normal with this mean and standard deviation (table 1).
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2

Network = Callable[[Tensor, Tensor], Tensor]
"""F: scaled rows `(batch, dim)` and c_noise `(batch or 1, 1)` to `(batch, dim)`."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""D: noisy rows `(batch, dim)` and sigma `(batch or 1, 1)` to the rows `(batch, dim)` expected without the noise."""


class SamplerConfig(BaseModel):
    """Settings of the sampler; the defaults are those of SynthER's table 7, EDM's for ImageNet but for the steps."""

    model_config = ConfigDict(extra="forbid")

    solver: Literal["heun", "multistep"] = Field(
        default="heun", description="heun: two evaluations of the network a step; multistep: one"
    )
    steps: int = Field(default=128, ge=1, description="noise levels")
    sigma_min: float = Field(default=0.002, gt=0, description="least noise before none")
    sigma_max: float = Field(default=80.0, gt=0, description="noise that sampling begins with")
    rho: float = Field(default=7.0, gt=0, description="how much closer the levels are where noise is little")
    churn: float = Field(default=80.0, ge=0, description="S_churn, noise added anew on the way; 0: deterministic Heun")
    churn_min: float = Field(default=0.05, ge=0, description="S_tmin, least sigma at which noise is added")
    churn_max: float = Field(default=50.0, ge=0, description="S_tmax, greatest sigma at which noise is added")
    churn_noise: float = Field(default=1.003, gt=0, description="S_noise, standard deviation of the noise added")

    @model_validator(mode="after")
    def _check_churn(self) -> SamplerConfig:
        if self.solver == "multistep" and self.churn:
            raise ValueError("solver=multistep adds no noise on the way; give churn=0 with it")
        return self

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated for a row."""
        return self.steps if self.solver == "multistep" else 2 * self.steps - 1


class Preconditioning(NamedTuple):
    """c_skip, c_out, c_in and c_noise at a noise level, each of the shape of sigma."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def preconditioning(sigma: Tensor) -> Preconditioning:
    """The factors that keep what the network reads and says at a variance of 1 (table 1, last column).

    c_skip = sd^2 / (sigma^2 + sd^2), c_out = sigma sd / sqrt(sigma^2 + sd^2), c_in = 1 / sqrt(sigma^2 + sd^2),
    c_noise = log(sigma) / 4.
    """
    variance = sigma.square() + SIGMA_DATA**2
    root = variance.sqrt()
    return Preconditioning(SIGMA_DATA**2 / variance, sigma * SIGMA_DATA / root, 1.0 / root, sigma.log() / 4.0)


def denoise(network: Network, noisy: Tensor, sigma: Tensor) -> Tensor:
    """D(x; sigma), `(batch, dim)`; sigma is `(batch, 1)`, or `(1, 1)` for all rows alike."""
    skip, out, into, noise = preconditioning(sigma)
    return skip * noisy + out * network(into * noisy, noise)


def denoising_losses(network: Network, rows: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Each row's lambda(sigma) mean_i (D(x + sigma n; sigma) - x)_i^2, `(batch,)` (equations 2 and 8).

    With lambda = 1 / c_out^2 that is the squared error of F against (x - c_skip (x + sigma n)) / c_out, which is what
    is computed: it divides by no small number after the network.

    Args:
        network: F.
        rows: x, `(batch, dim)`.
        sigma: noise level of each row, `(batch, 1)`.
        noise: n, standard normal, `(batch, dim)`.
    """
    noisy = rows + sigma * noise
    skip, out, into, level = preconditioning(sigma)
    return (network(into * noisy, level) - (rows - skip * noisy) / out).square().mean(-1)


def draw_sigma(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels of training rows, `(count, 1)`: log sigma ~ N(-1.2, 1.2^2)."""
    normal = torch.randn(count, 1, generator=generator, device=generator.device)
    return (LOG_SIGMA_MEAN + LOG_SIGMA_STD * normal).exp()


def noise_levels(config: SamplerConfig) -> list[float]:
    """The sampler's sigma_0 = sigma_max > ... > sigma_(n-1) = sigma_min and sigma_n = 0 (equation 5)."""
    last = max(config.steps - 1, 1)
    high, low = (sigma ** (1.0 / config.rho) for sigma in (config.sigma_max, config.sigma_min))
    return [(high + i / last * (low - high)) ** config.rho for i in range(config.steps)] + [0.0]


@torch.no_grad()
def sample(denoiser: Denoise, start: Tensor, config: SamplerConfig, generator: torch.Generator) -> Tensor:
    """Draw rows by the configured solver.

    Args:
        denoiser: D.
        start: standard normal noise `(batch, dim)`.
        config: settings.
        generator: draws the noise added on the way.

    Returns:
        Rows `(batch, dim)`.
    """
    if config.solver == "multistep":
        return _multistep(denoiser, start, config)
    return _heun(denoiser, start, config, generator)


def _heun(denoiser: Denoise, start: Tensor, config: SamplerConfig, generator: torch.Generator) -> Tensor:
    """Heun's second-order steps, with noise added on the way where `churn` asks for it (algorithm 2)."""

    def slope(at: Tensor, sigma: float) -> Tensor:
        return (at - denoiser(at, at.new_full((1, 1), sigma))) / sigma

    levels = noise_levels(config)
    rows = config.sigma_max * start
    for sigma, following in itertools.pairwise(levels):
        raised = sigma * (1.0 + _churn(sigma, config))
        if raised > sigma:
            fresh = torch.randn(rows.shape, generator=generator, device=rows.device)
            rows = rows + math.sqrt(raised**2 - sigma**2) * config.churn_noise * fresh
        first = slope(rows, raised)
        ahead = rows + (following - raised) * first
        if following > 0:
            ahead = rows + (following - raised) * 0.5 * (first + slope(ahead, following))
        rows = ahead
    return rows


def _multistep(denoiser: Denoise, start: Tensor, config: SamplerConfig) -> Tensor:
    """Second-order steps that take what the step before saw in place of a second look (DPM-Solver++(2M)).

    Lu et al. 2022, arXiv 2211.01095, algorithm 2, for rows that noise is added to without scaling them. Along the flow
    rows are x' = (sigma' / sigma) x + (1 - sigma' / sigma) D where D stays what it is, and D is taken to go on, in
    log sigma, as from the step before to this one until half of the step is done.
    """
    levels = noise_levels(config)
    rows, before, step_before = config.sigma_max * start, None, 0.0
    for sigma, following in itertools.pairwise(levels):
        seen = denoiser(rows, rows.new_full((1, 1), sigma))
        # The last step takes away all noise, which is infinitely far in log sigma: no going on from there.
        step = math.log(sigma / following) if following > 0 else math.inf
        ahead = seen if before is None or not following else seen + 0.5 * step / step_before * (seen - before)
        rows = torch.lerp(ahead, rows, following / sigma)
        before, step_before = seen, step
    return rows


def _churn(sigma: float, config: SamplerConfig) -> float:
    """Gamma of algorithm 2: by what share of itself sigma is raised before a step."""
    if not config.churn_min <= sigma <= config.churn_max:
        return 0.0
    return min(config.churn / config.steps, math.sqrt(2.0) - 1.0)
