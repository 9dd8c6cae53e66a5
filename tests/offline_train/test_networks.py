"""Networks against plain torch."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import distributions
from torch.nn import functional

from offline_train import networks
from offline_train.networks import (
    LOG_STD_RANGE,
    Actor,
    Critics,
    DeterministicActor,
    EnsembleLinear,
    GaussianActor,
    squash,
    squashed_density,
    squashed_log_prob,
    training_precision,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ensemble_linear_is_one_linear_layer_a_member() -> None:
    layer = EnsembleLinear(3, 4, 5, seeded())
    inputs = torch.randn(3, 7, 4, generator=seeded(1))
    output = layer(inputs)
    for member in range(3):
        expected = inputs[member] @ layer.weight[member] + layer.bias[member]
        torch.testing.assert_close(output[member], expected)
    torch.testing.assert_close(layer(inputs[[2, 0]], torch.tensor([2, 0])), output[[2, 0]])


def test_weights_are_a_function_of_the_seed_and_bounded_by_the_fan_in() -> None:
    first, second, other = (EnsembleLinear(2, 16, 8, seeded(s)) for s in (5, 5, 6))
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert not torch.equal(first.weight, other.weight)
    # 1 / sqrt(16) = 0.25, and 256 uniform draws come close to it.
    assert 0.2 < float(first.weight.detach().abs().max()) <= 0.25


def test_critics_are_independent_networks() -> None:
    critics = Critics(3, 2, [8, 8], seeded())
    obs, action = torch.randn(6, 3, generator=seeded(1)), torch.randn(6, 2, generator=seeded(2))
    values = critics(obs, action)
    assert values.shape == (2, 6)
    for member in range(2):
        hidden = torch.cat([obs, action], -1)
        for layer in critics.layers[:-1]:
            hidden = functional.relu(hidden @ layer.weight[member] + layer.bias[member])
        last = critics.layers[-1]
        torch.testing.assert_close(values[member], (hidden @ last.weight[member] + last.bias[member]).squeeze(-1))
    torch.testing.assert_close(critics(obs, action, torch.tensor([1])), values[1:])


def test_squashed_log_prob_equals_torch_distributions() -> None:
    mean, log_std, noise = 0.5 * torch.randn(3, 50, 3, generator=seeded(1), dtype=torch.float64)
    pre_tanh = mean + log_std.exp() * noise
    squashed = distributions.TransformedDistribution(
        distributions.Independent(distributions.Normal(mean, log_std.exp()), 1),
        [distributions.TanhTransform(cache_size=1)],
    )
    expected = squashed.log_prob(torch.tanh(pre_tanh))
    torch.testing.assert_close(squashed_log_prob(pre_tanh, noise, log_std), expected)


def test_squashed_log_prob_by_hand() -> None:
    # u = 0, noise = 0, std = 1: log N(0) = -0.5 log(2 pi); 1 - tanh(0)^2 = 1, so nothing is subtracted.
    zero = torch.zeros(1, 1)
    assert float(squashed_log_prob(zero, zero, zero)) == pytest.approx(-0.5 * math.log(2 * math.pi), abs=1e-6)


def test_squashed_log_prob_is_finite_where_tanh_saturates() -> None:
    # At u = 40, 1 - tanh(u)^2 rounds to 0; the log density is log N(0; 0, 1) - 2 (log 2 - 40).
    u, zero = torch.full((1, 1), 40.0), torch.zeros(1, 1)
    expected = -0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - 40.0)
    assert float(squashed_log_prob(u, zero, zero)) == pytest.approx(expected, rel=1e-6)


def test_actor_samples_its_own_distribution() -> None:
    actor = Actor(3, 2, [16], seeded())
    obs = torch.randn(1, 3, generator=seeded(1)).expand(20_000, 3)
    with torch.no_grad():
        sample = actor.sample(obs, seeded(2))
        mean, log_std = actor.distribution(obs)
    assert sample.action.shape == (20_000, 2) and sample.log_prob.shape == (20_000,)
    assert float(sample.action.abs().max()) < 1.0
    # 20,000 draws: the standard error of the mean is std / 141.
    pre_tanh = torch.atanh(sample.action.double())
    torch.testing.assert_close(pre_tanh.mean(0), mean[0].double(), atol=0.03, rtol=0)
    torch.testing.assert_close(pre_tanh.std(0), log_std[0].exp().double(), atol=0.03, rtol=0)


def test_actor_is_deterministic_and_bounds_its_spread() -> None:
    actor = Actor(3, 2, [16], seeded())
    obs = 1e4 * torch.randn(64, 3, generator=seeded(1))
    torch.testing.assert_close(actor(obs), torch.tanh(actor.distribution(obs)[0]), rtol=0, atol=0)
    log_std = actor.distribution(obs)[1].detach()
    assert float(log_std.min()) == LOG_STD_RANGE[0] and float(log_std.max()) == LOG_STD_RANGE[1]


def test_first_critic_alone() -> None:
    critics = Critics(3, 2, [8, 8], seeded(), members=3)
    obs, action = torch.randn(6, 3, generator=seeded(1)), torch.randn(6, 2, generator=seeded(2))
    torch.testing.assert_close(critics.first(obs, action), critics(obs, action)[0])


def test_deterministic_actor_is_squashed() -> None:
    actor = DeterministicActor(3, 2, [8], seeded())
    obs = torch.randn(50, 3, generator=seeded(1))
    hidden = functional.relu(actor.layers[0](obs))
    torch.testing.assert_close(actor(obs), torch.tanh(actor.layers[1](hidden)))
    assert float(actor(1e6 * obs).detach().abs().max()) <= 1.0


def test_gaussian_actor_equals_torch_distributions() -> None:
    actor = GaussianActor(3, 2, [8], seeded(), log_std_range=(-1.0, 2.0))
    obs, action = torch.randn(50, 3, generator=seeded(1)), torch.rand(50, 2, generator=seeded(2))
    mean = actor(obs)
    with torch.no_grad():
        # Below the range and inside it: standard deviations exp(-1) and exp(0.5).
        actor.log_std.copy_(torch.tensor([-3.0, 0.5]))
    std = torch.tensor([math.exp(-1.0), math.exp(0.5)])
    expected = distributions.Independent(distributions.Normal(mean, std), 1).log_prob(action)
    torch.testing.assert_close(actor.log_prob(mean, action), expected)
    drawn = actor.sample(mean, seeded(3))
    noise = torch.randn(50, 2, generator=seeded(3))
    torch.testing.assert_close(drawn, (mean + std * noise).clamp(-1.0, 1.0))
    assert float(drawn.abs().max()) == 1.0


def test_density_of_a_given_action_is_that_of_the_draw() -> None:
    mean, log_std = 0.3 * torch.randn(2, 50, 3, generator=seeded(1), dtype=torch.float64)
    drawn = squash(mean, log_std, torch.randn(50, 3, generator=seeded(2), dtype=torch.float64))
    inside = (drawn.action.abs() < 0.999).all(-1)
    density = squashed_density(drawn.action, mean, log_std)
    torch.testing.assert_close(density[inside], drawn.log_prob[inside])
    assert inside.float().mean() > 0.8
    assert torch.isfinite(squashed_density(torch.ones(1, 3), mean[:1], log_std[:1])).all()


def test_bf16_rounds_products_between_hidden_layers_alone() -> None:
    # All weights are 1 but the last layer's, which are n = 1 + 2^-10, as the observation is. Two units each give n;
    # bfloat16 has 8 bits and takes that for 1, so that the next two give 2 and the value is 2 n + 2 n; in float32 they
    # give 2 n and the value is 4 n^2. Without a layer in between the value is 2 n^2, and nothing is rounded.
    near_one = 1 + 2**-10
    deep, shallow = Critics(1, 0, [2, 2], seeded(), members=1), Critics(1, 0, [2], seeded(), members=1)
    for critics in (deep, shallow):
        for layer in critics.layers:
            torch.nn.init.ones_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        torch.nn.init.constant_(critics.layers[-1].weight, near_one)
    obs, action = torch.full((1, 1), near_one), torch.zeros(1, 0)
    with training_precision("cpu", True):
        rounded, plain = deep(obs, action), shallow(obs, action)
        first = deep.first(obs, action)
    assert rounded.dtype == plain.dtype == first.dtype == torch.float32
    assert rounded.item() == first.item() == 4 * near_one
    assert plain.item() == 2 * near_one**2
    assert deep(obs, action).item() == 4 * near_one**2
    with training_precision("cpu", False):
        assert deep(obs, action).item() == 4 * near_one**2


def test_bf16_sees_weights_that_an_optimiser_has_changed_since() -> None:
    actor, obs = DeterministicActor(2, 1, [4, 4], seeded()), torch.ones(1, 2)
    with training_precision("cpu", True):
        actor(obs).sum().backward()
        with torch.no_grad():
            actor.layers[1].weight.zero_()
            actor.layers[1].bias.zero_()
        # Nothing comes through the layer in between any more: tanh of the last bias.
        torch.testing.assert_close(actor(obs)[0], torch.tanh(actor.layers[-1].bias))


def test_bf16_gradients_are_near_and_float32() -> None:
    critics = Critics(3, 2, [32, 32, 32], seeded(), members=3)
    obs, action = torch.randn(6, 3, generator=seeded(1)), torch.randn(6, 2, generator=seeded(2))
    values, gradient = critics.action_gradient(obs, action)
    with training_precision("cpu", True):
        near, near_gradient = critics.action_gradient(obs, action)
    assert near.dtype == near_gradient.dtype == torch.float32
    # A product is off by 2^-8 of its size at most, three of them by some hundredths.
    torch.testing.assert_close(near, values, atol=0.02, rtol=0.02)
    torch.testing.assert_close(near_gradient, gradient, atol=0.02, rtol=0.02)
    assert not torch.equal(near, values)


@pytest.mark.parametrize(("slowdown", "warned"), [(30.0, True), (0.5, False)])
def test_warns_where_bf16_is_slower(slowdown: float, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "bf16_slowdown", lambda device: slowdown)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        networks.warn_of_slow_bf16("cpu")
    assert ["30 times as long" in str(each.message) for each in caught] == [True] * warned
