"""CQL: its loss by hand, the densities of what it draws, and that it is conservative."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from toy import toy_batch

from offline_train.algorithms.cql import Cql, CqlConfig, conservative_loss
from offline_train.algorithms.sac import SacConfig
from offline_train.networks import squashed_density
from offline_train.replay import Batch


def make(**settings: Any) -> Cql:
    sac = SacConfig(hidden=[16, 16], target_entropy=None)
    config = CqlConfig(**{"sac": sac, "samples": 5} | settings)
    return Cql(torch.zeros(2), torch.ones(2), 2, config, torch.Generator().manual_seed(0))


def test_conservative_loss() -> None:
    # Critic 0: log((exp(0) + exp(log 3)) / 2) - 0.5 = log 2 - 0.5. Critic 1 is worth 1 everywhere, with nothing
    # between the integral and the log's action: 0.
    sampled = torch.tensor([[[0.0, math.log(3.0)]], [[1.0, 1.0]]])
    loss = conservative_loss(sampled, torch.zeros(1, 2), torch.tensor([[0.5], [1.0]]))
    assert float(loss) == pytest.approx(math.log(2.0) - 0.5)


def test_integral_is_that_over_all_actions() -> None:
    # int_-1^1 exp(a) da = e - 1/e = 2.3504, from a grid of actions as uniform draws would be, of density 1/2.
    grid = (torch.arange(10_000) + 0.5) / 5_000 - 1.0
    density = torch.full((1, len(grid)), -math.log(2.0))
    loss = conservative_loss(grid[None, None], density, torch.zeros(1, 1))
    assert float(loss) == pytest.approx(math.log(math.e - 1.0 / math.e), abs=1e-4)


def test_drawn_actions_come_with_their_densities() -> None:
    learner, batch = make(), toy_batch(40, seed=1)
    actions, log_density = learner._draw_actions(batch.obs, batch.next_obs)
    assert actions.shape == (40, 15, 2) and log_density.shape == (40, 15) and float(actions.abs().max()) <= 1.0
    # A density of 1/4 over the square, then the policy's at s and at s'.
    torch.testing.assert_close(log_density[:, :5], torch.full((40, 5), -2.0 * math.log(2.0)))
    for obs, columns in ((batch.obs, slice(5, 10)), (batch.next_obs, slice(10, 15))):
        mean, log_std = (values[:, None] for values in learner.actor.distribution(obs))
        inside = (actions[:, columns].abs() < 0.999).all(-1)
        expected = squashed_density(actions[:, columns], mean, log_std)
        torch.testing.assert_close(log_density[:, columns][inside], expected[inside], atol=1e-3, rtol=1e-3)
        assert inside.float().mean() > 0.9


def test_no_entropy_is_backed_up() -> None:
    learner, batch = make(), toy_batch(40, seed=1)
    learner.generator.manual_seed(7)
    target = learner._target(batch, batch.next_obs, torch.tensor(100.0))
    learner.generator.manual_seed(7)
    action = learner.actor.sample(batch.next_obs, learner.generator).action
    values = learner.target_critics(batch.next_obs, action).amin(0)
    torch.testing.assert_close(target, batch.reward + 0.99 * values)


def test_actor_has_a_rate_of_its_own() -> None:
    learner = make(actor_rate=1e-5)
    critics, actor = learner.optimizer.param_groups
    assert (critics["lr"], actor["lr"]) == (3e-4, 1e-5)
    assert {id(p) for p in critics["params"]} == {id(p) for p in learner.critics.parameters()}
    assert id(learner.log_alpha) in {id(p) for p in actor["params"]}


def gap(learner: Cql, batch: Batch) -> float:
    """How much more the log's actions are worth than others."""
    with torch.no_grad():
        return float((learner.critics(batch.obs, batch.action) - learner.critics(batch.obs, -batch.action)).mean())


def test_actions_that_the_log_lacks_are_worth_less() -> None:
    batch = toy_batch(256, seed=1)
    batch = batch._replace(action=0.5 + 0.1 * batch.action, terminal=torch.ones(256))
    learned = {}
    for weight in (0.0, 5.0):
        learner = make(penalty_weight=weight, sac=SacConfig(hidden=[16, 16], learning_rate=3e-3))
        for _ in range(200):
            figures = learner.update(batch)
        learned[weight] = gap(learner, batch)
        assert (float(figures["conservative_loss"]) == 0.0) == (weight == 0.0)
    assert learned[5.0] > learned[0.0] + 1.0
