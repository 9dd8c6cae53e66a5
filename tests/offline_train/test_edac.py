"""EDAC and SAC-N: the loss by hand, the written-out gradient against autograd, and the ensemble."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import toy_batch

from offline_train.algorithms.edac import Edac, EdacConfig, begin_near_zero, diversity_loss
from offline_train.algorithms.sac import SacConfig
from offline_train.networks import Critics


def make(**settings: Any) -> Edac:
    sac = SacConfig(hidden=[16, 16], target_entropy=None)
    config = EdacConfig(**{"sac": sac, "critics": 4} | settings)
    return Edac(torch.zeros(2), torch.ones(2), 2, config, torch.Generator().manual_seed(0))


def test_diversity_loss() -> None:
    # Scaled to (1, 0), (0, 1) and (-1, 0): the pairs' products are 0, -1 and 0, each twice: -2 / (3 - 1) = -1.
    # The other row's gradients are alike: 6 / 2 = 3. Mean 1.
    apart = [[2.0, 0.0], [0.0, 3.0], [-0.5, 0.0]]
    alike = [[0.6, 0.8]] * 3
    gradient = torch.tensor([apart, alike]).transpose(0, 1)
    assert float(diversity_loss(gradient)) == pytest.approx(1.0)


def test_diversity_of_gradients_that_vanish_is_zero() -> None:
    gradient = torch.zeros(3, 5, 2, requires_grad=True)
    loss = diversity_loss(gradient)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert gradient.grad is not None and torch.isfinite(gradient.grad).all()


@pytest.mark.parametrize("hidden", [[8], [8, 7, 6]])
def test_written_out_gradient_is_autograds_to_the_second_order(hidden: list[int]) -> None:
    critics = Critics(3, 2, hidden, torch.Generator().manual_seed(0), members=4).double()
    obs = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    action = torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    values, gradient = critics.action_gradient(obs, action)
    tiled = action.expand(4, -1, -1).clone().requires_grad_(True)
    rows = torch.cat([obs.expand(4, -1, -1), tiled], -1)
    for layer in critics.layers[:-1]:
        rows = torch.relu(layer(rows))
    expected_values = critics.layers[-1](rows).squeeze(-1)
    (expected,) = torch.autograd.grad(expected_values.sum(), tiled, create_graph=True)
    torch.testing.assert_close(values, expected_values)
    torch.testing.assert_close(values, critics(obs, action))
    torch.testing.assert_close(gradient, expected)
    weights = [layer.weight for layer in critics.layers]
    ours = torch.autograd.grad(diversity_loss(gradient), weights)
    theirs = torch.autograd.grad(diversity_loss(expected), weights)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted)


def test_outputs_begin_near_zero() -> None:
    critics = Critics(3, 2, [16, 16], torch.Generator().manual_seed(0), members=3)
    begin_near_zero(critics, 3e-3, torch.Generator().manual_seed(1))
    assert float(critics.layers[-1].weight.detach().abs().max()) <= 3e-3
    assert all(bool((layer.bias == 0.1).all()) for layer in critics.layers[:-1])


def test_average_and_targets_begin_as_what_is_learned() -> None:
    learner, batch = make(), toy_batch(20, seed=1)
    torch.testing.assert_close(learner(batch.obs), learner.actor(batch.obs))
    assert float(learner(batch.obs).detach().abs().max()) < 0.05
    values = learner.critics(batch.obs, batch.action)
    torch.testing.assert_close(learner.target_critics(batch.obs, batch.action), values)
    assert values.shape == (4, 20) and float(values.detach().abs().max()) < 0.2


def test_diversity_grows_with_its_weight() -> None:
    batch, similarity = toy_batch(256, seed=1), []
    for settings in ({"name": "sac-n", "eta": 0.0}, {"eta": 1.0}):
        learner = make(**settings)
        for _ in range(100):
            figures = learner.update(batch)
        _, gradient = learner.critics.action_gradient(batch.obs, batch.action)
        similarity.append(float(diversity_loss(gradient).detach()))
        assert ("diversity_loss" in figures) == (settings["eta"] > 0)
    # At least -N / (N - 1) = -4/3, where the gradients add up to nothing.
    assert -4 / 3 <= similarity[1] < similarity[0] - 0.5


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"name": "sac-n"}, {"name": "sac-n", "eta": 2.0}])
def test_what_is_called_by_the_wrong_name_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="eta is 0 for sac-n and above 0 for edac"):
        make(**settings)


def test_one_critic_is_refused() -> None:
    with pytest.raises(ValueError, match="critics"):
        make(critics=1)
