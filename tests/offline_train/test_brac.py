"""BRAC-v: its losses by hand, its divergence against the closed form, and its phases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributions, nn
from toy import toy_batch

from offline_train.algorithms.brac import (
    LOG_STD_RANGE,
    BoundedActor,
    Brac,
    BracConfig,
    behaviour_loss,
    divergence_estimate,
)


def make(**settings: Any) -> Brac:
    small = {"hidden": [16, 16], "actor_hidden": [16, 16], "behaviour_updates": 2, "warm_up": 2, "updates": 10}
    config = BracConfig(**small | settings)
    return Brac(torch.zeros(2), torch.ones(2), 2, config, torch.Generator().manual_seed(0))


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_behaviour_loss() -> None:
    # Row 0: 0.5 x 2 - (-1) = 2; row 1: 0.5 x (-4) - 3 = -5; mean -1.5.
    loss = behaviour_loss(torch.tensor([-1.0, 3.0]), torch.tensor([2.0, -4.0]), torch.tensor(0.5))
    assert float(loss) == pytest.approx(-1.5)


def test_divergence_estimate() -> None:
    # Row 0: mean(1 - 0, 3 - 1) = 1.5; row 1: mean(2 - 3, 0 - 1) = -1.
    log_prob, behaviour = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    torch.testing.assert_close(divergence_estimate(log_prob, behaviour), torch.tensor([1.5, -1.0]))


def test_divergence_is_that_of_the_gaussians() -> None:
    # tanh is one to one, so that the divergence is that before it, which has a closed form.
    learner, obs = make(samples=20_000), toy_batch(5, seed=1).obs
    with torch.no_grad():
        estimate = learner._draw(obs).divergence
        policy, behaviour = (
            distributions.Independent(distributions.Normal(mean, log_std.exp()), 1)
            for mean, log_std in (learner.actor.distribution(obs), learner.behaviour.distribution(obs))
        )
    expected = distributions.kl_divergence(policy, behaviour)
    torch.testing.assert_close(estimate, expected, atol=0.05, rtol=0.05)
    assert float(expected.min()) > 0.05


def test_a_policy_that_is_the_clone_does_not_diverge() -> None:
    learner, obs = make(), toy_batch(50, seed=1).obs
    learner.actor.load_state_dict(learner.behaviour.state_dict())
    divergence = learner._draw(obs).divergence
    torch.testing.assert_close(divergence, torch.zeros(50), atol=1e-3, rtol=0.0)


def test_standard_deviation_is_bounded() -> None:
    actor = BoundedActor(2, 2, [8], torch.Generator().manual_seed(0))
    _, log_std = actor.distribution(1e6 * toy_batch(100, seed=1).obs)
    low, high = LOG_STD_RANGE
    assert float(log_std.detach().min()) == pytest.approx(low) and float(log_std.detach().max()) == pytest.approx(high)


def test_each_phase_learns_its_own() -> None:
    learner, batch = make(), toy_batch(64, seed=1)
    for step in range(6):
        before = {name: weights(getattr(learner, name)) for name in ("behaviour", "actor", "critics", "target_critics")}
        figures = learner.update(batch, step)
        learned = {
            name for name, old in before.items() if not all(map(torch.equal, old, weights(getattr(learner, name))))
        }
        assert learned == ({"behaviour"} if step < 2 else {"actor", "critics", "target_critics"})
        assert ("behaviour_loss" in figures) == (step < 2) and ("actor_loss" in figures) == (step >= 2)


@pytest.mark.parametrize(("step", "looks"), [(3, False), (4, True)])
def test_actor_sees_values_after_the_warm_up(step: int, looks: bool) -> None:
    batch, actors = toy_batch(64, seed=1), []
    for scale in (1.0, 50.0):
        learner = make()
        with torch.no_grad():
            learner.critics.layers[-1].weight.mul_(scale)
        learner.update(batch, step)
        actors.append(weights(learner.actor))
    assert all(map(torch.equal, *actors)) != looks


def test_clone_fits_actions_at_the_bounds() -> None:
    # The log's actions are 1 and -1 exactly, whose density has no bound; the clone's stays finite and goes there.
    learner, batch = make(behaviour_updates=400, updates=500, behaviour_rate=3e-3), toy_batch(128, seed=1)
    batch = batch._replace(action=torch.ones_like(batch.action) * torch.tensor([1.0, -1.0]))
    for step in range(300):
        figures = learner.update(batch, step)
    assert torch.isfinite(figures["behaviour_loss"])
    torch.testing.assert_close(learner.behaviour(batch.obs), batch.action, atol=0.1, rtol=0.0)


def test_phases_that_leave_no_policy_are_refused() -> None:
    with pytest.raises(ValueError, match="behaviour_updates and warm_up are part of the updates"):
        make(behaviour_updates=8, warm_up=2)


def test_divergence_is_taken_off_the_targets() -> None:
    # y = r + gamma (min Q - alpha D): between alpha 0 and 5 lies gamma x 5 x D at the next observations.
    batch, targets = toy_batch(64, seed=1), []
    for alpha in (0.0, 5.0):
        learner = make(alpha=alpha)
        learner.generator.manual_seed(3)
        targets.append(float(learner.update(batch, 5)["target_value"]))
    again = make()
    again.generator.manual_seed(3)
    expected = 0.99 * 5.0 * float(again._draw(batch.next_obs).divergence.detach().mean())
    assert targets[0] - targets[1] == pytest.approx(expected, rel=1e-4) and expected > 0.1


def test_clones_entropy_is_tuned() -> None:
    # A clone that has more entropy than -2, as at first, needs no help: the temperature falls.
    learner = make()
    learner.update(toy_batch(64, seed=1), 0)
    assert float(learner.log_temperature.detach()) == pytest.approx(-5e-4, rel=1e-3)
