"""One battery for every prior; a new one gets all of it for one line in `SMALL`."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from torch import Tensor
from toy import state_equal

from adapters.errors import UserError
from offline_train.bench_priors import shipped_prior
from offline_train.export import PRIOR_TOLERANCE
from offline_train.graphs import PriorGraph, check_parity, to_onnx
from offline_train.networks import training_precision
from offline_train.priors import deep_gp, exact_gp, sparse_gp
from offline_train.priors.base import Prior, log_density
from offline_train.priors.deep_gp import CachedLayer, DeepGpConfig
from offline_train.priors.dropout import DropoutConfig
from offline_train.priors.ensemble import EnsembleConfig, mixture_moments
from offline_train.priors.exact_gp import ExactGpConfig, MultitaskModel, log_marginal_likelihood
from offline_train.priors.fit import FITS, AnyPriorConfig, fit_prior, load_prior, save_prior
from offline_train.priors.gp_posterior import GpPosterior, Hyperparameters, Kernel
from offline_train.priors.sparse_gp import SparseGpConfig

NETWORK: dict[str, Any] = {"steps": 300, "hidden": [32, 32], "batch_size": 64, "learning_rate": 1e-2}
SMALL: dict[str, AnyPriorConfig] = {
    "exact-gp": ExactGpConfig(steps=40, fit_rows=60, rows=150),
    "sparse-gp": SparseGpConfig(steps=40, fit_rows=60, inducing=50),
    "deep-gp": DeepGpConfig(steps=100, learning_rate=0.05, inducing=12, hidden=2, batch_size=60, samples=3),
    "mle": EnsembleConfig(name="mle", members=1, **NETWORK),
    "ensemble": EnsembleConfig(members=3, **NETWORK),
    "mc-dropout": DropoutConfig(samples=5, **NETWORK),
}
PROCESSES = ("exact-gp", "sparse-gp")
KERNELS: tuple[Kernel, ...] = ("rbf", "matern12", "matern32", "matern52")
every = pytest.mark.parametrize("name", SMALL)


def demonstrations(rows: int = 400) -> tuple[Tensor, Tensor]:
    """States in [-1, 1]^2 and actions sin(3 x), x y with noise of 0.1."""
    generator = torch.Generator().manual_seed(0)
    obs = 2.0 * torch.rand(rows, 2, generator=generator) - 1.0
    mean = torch.stack([torch.sin(3.0 * obs[:, 0]), obs.prod(1)], 1)
    return obs, mean + 0.1 * torch.randn(rows, 2, generator=generator)


def fresh(name: str) -> Prior:
    """A prior fitted to the first 300 demonstrations."""
    obs, action = demonstrations()
    return fit_prior(SMALL[name], obs[:300], action[:300], 0, lambda step, note: None)


fitted = functools.cache(fresh)


def test_every_prior_is_in_the_battery() -> None:
    assert SMALL.keys() == FITS.keys()
    for name in SMALL:
        # Every setting is spelled out in its file, which is where it is explained, with the default's value.
        changed = {"members": 1, "name": "mle"} if name == "mle" else {}
        assert shipped_prior(name, 1.0) == type(SMALL[name])(**changed)


@every
def test_says_what_the_demonstrator_does(name: str) -> None:
    obs, action = demonstrations()
    mean, std = fitted(name).predict(obs[300:])
    # The noise alone is 0.1; a constant would be off by the actions' own spread, about 0.55.
    assert (mean - action[300:]).square().mean().sqrt() < 0.25
    # log N of noise of 0.1 with the right deviation is 2 (-0.5 - log 0.1 - 0.92) = 1.77.
    assert log_density(action[300:], mean, std).mean() > (0.0 if name == "deep-gp" else 0.5)


@every
def test_noise_widens_and_leaves_the_mean(name: str) -> None:
    obs = demonstrations()[0]
    (mean, std), (same, less) = fitted(name).predict(obs), fitted(name).predict(obs, noise=False)
    assert torch.equal(mean, same) and mean.shape == std.shape == (400, 2)
    assert (std > less).all() and (less >= 0).all()
    if name == "mle":
        assert not less.any()


@pytest.mark.parametrize("name", PROCESSES)
def test_process_is_unsure_far_away(name: str) -> None:
    prior = fitted(name)
    assert isinstance(prior, GpPosterior)
    near, far = prior.predict(torch.zeros(1, 2))[1], prior.predict(torch.full((1, 2), 60.0))[1]
    # Far from all data nothing is left but the process itself and its noise.
    torch.testing.assert_close(far[0], (prior.prior_variance + prior.noise).sqrt(), rtol=1e-3, atol=0.0)
    assert (far > 2.0 * near).all()


@every
def test_is_a_function_of_state_and_seed(name: str) -> None:
    obs = demonstrations()[0]
    again = fresh(name)
    assert state_equal(again.state_dict(), fitted(name).state_dict())
    assert torch.equal(again.predict(obs)[1], again.predict(obs)[1])
    for part in again.predict_all(obs, at_once=7):
        assert part.shape == (400, 2)
    torch.testing.assert_close(again.predict_all(obs, at_once=7), again.predict(obs), rtol=1e-3, atol=1e-4)


@every
def test_says_the_same_while_a_training_around_it_is_in_bfloat16(name: str) -> None:
    obs = demonstrations()[0]
    with training_precision("cpu", bf16=True):
        found = fitted(name).predict_all(obs)
    for part, expected in zip(found, fitted(name).predict_all(obs), strict=True):
        assert torch.equal(part, expected)


@every
def test_saved_and_loaded_to_the_bit(name: str, tmp_path: Path) -> None:
    save_prior(tmp_path / "prior.safetensors", SMALL[name], fitted(name))
    config, loaded = load_prior(tmp_path / "prior.safetensors")
    assert config == SMALL[name]
    obs = demonstrations()[0]
    for ours, theirs in zip(loaded.predict(obs), fitted(name).predict(obs), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match="no checkpoint"):
        load_prior(tmp_path / "nothing.safetensors")


@every
def test_exports_with_parity(name: str) -> None:
    obs = torch.cat([demonstrations()[0][:60], torch.full((4, 2), 30.0)])
    graph = PriorGraph(fitted(name), [-2.0, 0.0], [2.0, 10.0])
    onnx = to_onnx(graph, {"obs": obs}, ["prior_mean", "prior_std"])
    assert check_parity(graph, onnx, {"obs": obs}, "prior.onnx", PRIOR_TOLERANCE) < PRIOR_TOLERANCE
    assert check_parity(graph, onnx, {"obs": obs[:1]}, "prior.onnx", PRIOR_TOLERANCE) < PRIOR_TOLERANCE
    mean, std = fitted(name).predict(obs)
    # [-1, 1] to [-2, 2] and [0, 10]: the deviation grows by 2 and by 5.
    expected = torch.stack([2.0 * mean[:, 0], 5.0 + 5.0 * mean[:, 1]], 1), std * torch.tensor([2.0, 5.0])
    with torch.no_grad():
        torch.testing.assert_close(graph(obs), expected)


@every
def test_wrong_shapes_are_refused(name: str) -> None:
    for wrong in (torch.zeros(5, 3), torch.zeros(2)):
        with pytest.raises(ValueError, match="reads observations"):
            fitted(name).predict(wrong)
    with pytest.raises(ValueError, match="5 states and 4 actions"):
        fit_prior(SMALL[name], torch.zeros(5, 2), torch.zeros(4, 2), 0, lambda step, note: None)


@pytest.mark.parametrize(("name", "setting", "value"), [
    ("exact-gp", "rows", 1), ("exact-gp", "kernel", "cubic"), ("sparse-gp", "inducing", 0), ("mle", "steps", 0),
    ("mc-dropout", "rate", 1.0), ("deep-gp", "hidden", 0), ("ensemble", "members", 0), ("mle", "depth", 3),
])  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        type(SMALL[name])(**{setting: value})


def few(rows: int = 12) -> tuple[Tensor, Tensor]:
    obs, action = demonstrations(rows)
    return obs.double(), action.double()


def model_with(kernel: Kernel, rows: int = 12) -> tuple[MultitaskModel, Tensor, Tensor]:
    """A model whose hyper-parameters are none of the initial ones."""
    obs, action = few(rows)
    model = exact_gp.new_model(obs, action, kernel, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return model, obs, action


@pytest.mark.parametrize("kernel", KERNELS)
def test_marginal_likelihood_is_gpytorchs(kernel: Kernel) -> None:
    model, obs, action = model_with(kernel)
    theirs = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    model.train()
    ours = log_marginal_likelihood(model.hyperparameters(), obs, action)
    expected = theirs(model(obs), action)
    # gpytorch gives the mean over the numbers, 12 rows of 2.
    torch.testing.assert_close(ours / 24, expected, rtol=1e-6, atol=1e-6)
    for mine, other in zip(
        torch.autograd.grad(ours / 24, [*model.parameters()]),
        torch.autograd.grad(expected, [*model.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_cached_prediction_is_gpytorchs(kernel: Kernel) -> None:
    model, obs, action = model_with(kernel, rows=40)
    with torch.no_grad():
        ours = exact_gp.exact_posterior(model.hyperparameters(), obs, action)
        model.eval()
        asked = torch.cat([obs[:5] + 0.05, torch.full((1, 2), 4.0, dtype=torch.float64)])
        latent = model(asked)
        noisy = model.likelihood(latent)
    for theirs, noise in ((latent, False), (noisy, True)):
        mean, std = ours.predict(asked.float(), noise=noise)
        torch.testing.assert_close(mean.double(), theirs.mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(std.double(), theirs.variance.sqrt(), rtol=1e-4, atol=1e-4)


def test_posterior_of_one_demonstration_by_hand() -> None:
    # One task, one row: k = 1, T = b^2 + v = 0.64 + 0.16 = 0.8, d = 0.2, y - c = 0.5. At the row the mean is
    # c + 0.8 / (0.8 + 0.2) x 0.5 = 0.1 + 0.4 and the variance 0.8 - 0.8^2 / 1 = 0.16.
    one = {"lengthscale": [2.0], "mean": [0.1], "factor": [0.8], "diagonal": [0.16], "noise": [0.2]}
    parameters = Hyperparameters("rbf", **{name: torch.tensor(v, dtype=torch.float64) for name, v in one.items()})
    row, action = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[0.6]], dtype=torch.float64)
    for posterior in (
        exact_gp.exact_posterior(parameters, row, action),
        sparse_gp.sparse_posterior(parameters, row, row, action),
    ):
        mean, variance, noise = posterior.moments(torch.zeros(1, 1))
        np.testing.assert_allclose([mean, variance, noise], np.array([0.5, 0.16, 0.2])[:, None, None], rtol=1e-5)
        # Two units away, one lengthscale: k = exp(-1/2) = 0.6065; variance 0.8 - (0.8 x 0.6065)^2 = 0.5646.
        away = posterior.moments(torch.full((1, 1), 2.0))
        assert float(away.mean) == pytest.approx(0.1 + 0.8 * 0.60653 * 0.5, rel=1e-4)
        assert float(away.variance) == pytest.approx(0.5646, rel=1e-3)


def test_sparse_process_with_all_rows_is_the_exact_one() -> None:
    model, obs, action = model_with("matern32", rows=40)
    with torch.no_grad():
        parameters = model.hyperparameters()
    whole = exact_gp.exact_posterior(parameters, obs, action)
    same = sparse_gp.sparse_posterior(parameters, obs, obs, action)
    for ours, theirs in zip(same.predict(obs.float() + 0.1), whole.predict(obs.float() + 0.1), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_mixture_by_hand() -> None:
    # Means 1 and 3 with deviations 1 and 2: mean 2, the means' variance 1, mean noise (1 + 4) / 2.
    means = torch.tensor([[[1.0]], [[3.0]]])
    found = mixture_moments(means, torch.tensor([[[0.0]], [[np.log(2.0)]]]))
    np.testing.assert_allclose([float(part) for part in found], [2.0, 1.0, 2.5], rtol=1e-6)


def test_cached_layer_is_gpytorchs() -> None:
    obs, action = demonstrations(50)
    torch.manual_seed(0)
    model = deep_gp.TwoLayers(obs, 2, DeepGpConfig(inducing=8, hidden=1), torch.Generator().manual_seed(0))
    bound = gpytorch.mlls.DeepApproximateMLL(gpytorch.mlls.VariationalELBO(model.likelihood, model, num_data=50))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with gpytorch.settings.num_likelihood_samples(1):
        for _ in range(5):
            optimizer.zero_grad()
            (-bound(model(obs), action)).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        theirs = gpytorch.models.deep_gps.DeepGPLayer.__call__(model.first, obs, are_samples=False)
        mean, variance = CachedLayer.of(model.first)(obs.double())
    torch.testing.assert_close(mean.float(), theirs.mean[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(variance.float(), theirs.variance[0], rtol=1e-2, atol=1e-3)


def test_large_weights_that_nearly_cancel_leave_no_error() -> None:
    # Pairs of centres 1e-3 apart with weights of 90 and -90: what is left of them is what they are apart.
    generator, pairs = torch.Generator().manual_seed(0), 1_000
    first = torch.randn(pairs, 3, generator=generator, dtype=torch.float64)
    second = first + 1e-3 * torch.randn(pairs, 3, generator=generator, dtype=torch.float64)
    centres, weights = torch.cat([first, second]), torch.full((2 * pairs, 1), 90.0, dtype=torch.float64)
    weights[pairs:] *= -1.0
    posterior = GpPosterior(
        {
            "lengthscale": torch.ones(3, dtype=torch.float64),
            "origin": torch.zeros(3, dtype=torch.float64),
            "centres": centres,
            "smoothness": torch.tensor(math.inf),
            "projection": torch.zeros(2 * pairs, 1),
            "weights": weights,
            "reductions": torch.zeros(1, 1),
            "mean": torch.zeros(1),
            "prior_variance": torch.ones(1),
            "noise": torch.ones(1),
        }
    )
    obs = torch.randn(20, 3, generator=generator)
    expected = torch.exp(-0.5 * torch.cdist(obs.double(), centres).square()) @ weights
    torch.testing.assert_close(posterior.moments(obs)[0].double(), expected, atol=1e-5, rtol=1e-6)
