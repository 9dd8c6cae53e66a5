"""EDM: preconditioning and loss by hand, and the sampler on a Gaussian, whose best denoiser is known."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from offline_train.diffusion.edm import (
    LOG_SIGMA_MEAN,
    LOG_SIGMA_STD,
    SamplerConfig,
    denoise,
    denoising_losses,
    draw_sigma,
    noise_levels,
    preconditioning,
    sample,
)

MEAN, STD = 2.0, 0.5
Solver = Literal["heun", "multistep"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
FAST: dict[str, Any] = {"solver": "multistep", "steps": 32, "churn": 0.0}


def gaussian_denoiser(rows: Tensor, sigma: Tensor) -> Tensor:
    """E[x | x + sigma n] for x ~ N(MEAN, STD^2): (STD^2 y + sigma^2 MEAN) / (STD^2 + sigma^2)."""
    return (STD**2 * rows + sigma.square() * MEAN) / (STD**2 + sigma.square())


def test_preconditioning_by_hand() -> None:
    # sigma 1: variance 2, so 1/2, 1/sqrt 2, 1/sqrt 2, log(1)/4 = 0. sigma sqrt 3: variance 4: 1/4, sqrt 3/2, 1/2.
    found = preconditioning(torch.tensor([[1.0], [math.sqrt(3.0)]]))
    for name, expected in {
        "skip": [0.5, 0.25],
        "out": [1 / math.sqrt(2), math.sqrt(3) / 2],
        "into": [1 / math.sqrt(2), 0.5],
        "noise": [0.0, math.log(3) / 8],
    }.items():
        torch.testing.assert_close(getattr(found, name)[:, 0], torch.tensor(expected))


def test_denoise_by_hand() -> None:
    # Row 2 at sigma 1, F says 3: 0.5 * 2 + 3 / sqrt 2. F is shown 2 / sqrt 2.
    seen = []

    def network(rows: Tensor, level: Tensor) -> Tensor:
        seen.append((float(rows), float(level)))
        return torch.full_like(rows, 3.0)

    found = denoise(network, torch.tensor([[2.0]]), torch.tensor([[1.0]]))
    assert float(found) == pytest.approx(1.0 + 3.0 / math.sqrt(2.0))
    assert seen == [(pytest.approx(math.sqrt(2.0)), 0.0)]


def test_denoising_losses_by_hand() -> None:
    # F = 0, so D is half the noisy row. x 1, noise 1: D(2) = 1, no error. x 1, noise -1: D(0) = 0, error 1, weighted
    # by lambda = 1 / c_out^2 = 2. The mean over the two columns is 1.
    rows, noise = torch.ones(1, 2), torch.tensor([[1.0, -1.0]])
    losses = denoising_losses(lambda x, level: torch.zeros_like(x), rows, torch.ones(1, 1), noise)
    torch.testing.assert_close(losses, torch.ones(1))


@given(st.floats(0.01, 50.0), st.integers(0, 1_000))
def test_loss_is_the_weighted_error_of_the_denoiser(sigma: float, seed: int) -> None:
    # lambda = (sigma^2 + 1) / sigma^2 with a data deviation of 1 (table 1).
    rows, noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    levels = torch.full((4, 1), sigma, dtype=torch.float64)

    def network(x: Tensor, level: Tensor) -> Tensor:
        return torch.sin(x) + level

    error = (denoise(network, rows + sigma * noise, levels) - rows).square().mean(-1)
    expected = (sigma**2 + 1.0) / sigma**2 * error
    torch.testing.assert_close(denoising_losses(network, rows, levels, noise), expected)


def test_training_noise_is_log_normal() -> None:
    drawn = draw_sigma(50_000, torch.Generator().manual_seed(0)).log()
    assert float(drawn.mean()) == pytest.approx(LOG_SIGMA_MEAN, abs=0.02)
    assert float(drawn.std()) == pytest.approx(LOG_SIGMA_STD, abs=0.02)


def test_noise_levels_by_hand() -> None:
    # rho 2 from 9 to 1: the roots 3, 2 and 1, squared, and then none.
    assert noise_levels(SamplerConfig(steps=3, sigma_min=1.0, sigma_max=9.0, rho=2.0)) == pytest.approx([9, 4, 1, 0])


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_level_is_one_look_at_the_denoiser(solver: Solver) -> None:
    start = torch.tensor([[1.0], [-2.0]])
    config = SamplerConfig(solver=solver, steps=1, sigma_max=3.0, churn=0.0)
    found = sample(gaussian_denoiser, start, config, torch.Generator())
    torch.testing.assert_close(found, gaussian_denoiser(3.0 * start, torch.tensor([[3.0]])))


@pytest.mark.parametrize("solver", SOLVERS)
def test_deterministic_sampler_solves_the_flow(solver: Solver) -> None:
    # dx/dsigma = (x - D) / sigma = sigma (x - m) / (s^2 + sigma^2): x - m shrinks as sqrt(s^2 + sigma^2).
    start, config = torch.tensor([[-1.5], [0.0], [0.7]]), SamplerConfig(solver=solver, churn=0.0)
    found = sample(gaussian_denoiser, start, config, torch.Generator())
    shrink = STD / math.sqrt(STD**2 + config.sigma_max**2)
    torch.testing.assert_close(found, MEAN + shrink * (config.sigma_max * start - MEAN), atol=2e-3, rtol=0)


def test_multistep_by_hand() -> None:
    # Levels 4, 2, 1, 0 and D(x; sigma) = x + sigma, from x = 4. At 4 D is 8: half way, x = 6. At 2 D is 8 as well, so
    # it goes on as 8: half way, x = 7. At 1 D is 8, where it ends. D of 2 sigma instead: 8, x = 4 / 2 + 8 / 2 = 6;
    # 4, which goes on, for a step in log sigma as long as the one before, to 4 + (4 - 8) / 2 = 2: x = 3 + 1 = 4; 2.
    config = SamplerConfig(solver="multistep", steps=3, sigma_min=1.0, sigma_max=4.0, rho=1e6, churn=0.0)
    assert noise_levels(config) == pytest.approx([4, 2, 1, 0], rel=1e-4)
    start, seen = torch.ones(1, 1, dtype=torch.float64), []

    def twice(rows: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(rows))
        return 2.0 * sigma

    found = [float(sample(denoiser, start, config, torch.Generator())) for denoiser in (torch.add, twice)]
    assert found == pytest.approx([8.0, 2.0], rel=1e-4)
    assert seen == pytest.approx([4.0, 6.0, 4.0], rel=1e-4)


@pytest.mark.parametrize(("solver", "evaluations"), [("heun", 15), ("multistep", 8)])
def test_evaluations_are_counted(solver: Solver, evaluations: int) -> None:
    # Eight steps: two evaluations each, but one for the last; or one each.
    seen = []

    def watch(rows: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma))
        return torch.zeros_like(rows)

    config = SamplerConfig(solver=solver, steps=8, churn=0.0)
    sample(watch, torch.ones(1, 1), config, torch.Generator())
    assert len(seen) == config.evaluations == evaluations


def test_multistep_refuses_noise() -> None:
    with pytest.raises(ValueError, match="churn=0"):
        SamplerConfig(solver="multistep")


@pytest.mark.parametrize("solver", SOLVERS)
def test_error_falls_with_the_square_of_the_steps(solver: Solver) -> None:
    # Both are of second order: twice the steps, a quarter of the error, or less.
    start, shrink = torch.full((1, 1), 1.0, dtype=torch.float64), STD / math.sqrt(STD**2 + 80.0**2)
    exact = MEAN + shrink * (80.0 - MEAN)
    errors = []
    for steps in (16, 32, 64):
        config = SamplerConfig(solver=solver, steps=steps, churn=0.0)
        found = sample(gaussian_denoiser, start, config, torch.Generator())
        errors.append(abs(float(found) - exact))
    assert errors[1] < 0.35 * errors[0] and errors[2] < 0.35 * errors[1]


@pytest.mark.parametrize("settings", [{}, {"churn": 0.0}, {"steps": 32, "churn": 0.0}, {"steps": 300}, FAST])
def test_sampler_gives_mean_and_deviation(settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    config = SamplerConfig(**settings)
    found = sample(gaussian_denoiser, torch.randn(20_000, 1, generator=generator), config, generator)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
    # S_noise = 1.003 makes up for what a learned denoiser loses, so an exact one ends a little wide.
    assert float(found.std()) == pytest.approx(STD, abs=0.02)


def test_noise_is_added_within_its_range_alone() -> None:
    # 100 levels, churn 20: sigma is raised by a fifth from 0.05 to 50, not above and not below.
    levels: list[float] = []

    def watch(rows: Tensor, sigma: Tensor) -> Tensor:
        levels.append(float(sigma))
        return torch.zeros_like(rows)

    config = SamplerConfig(steps=100, churn=20.0)
    sample(watch, torch.ones(1, 1), config, torch.Generator().manual_seed(0))
    firsts = [*levels[0:-1:2], levels[-1]]
    assert len(firsts) == 100
    for sigma, looked in zip(noise_levels(config), firsts, strict=False):
        assert looked == pytest.approx(1.2 * sigma if 0.05 <= sigma <= 50.0 else sigma)


def test_sampling_is_a_function_of_the_generator() -> None:
    start = torch.ones(3, 1)
    drawn = [
        sample(gaussian_denoiser, start, SamplerConfig(steps=8), torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
