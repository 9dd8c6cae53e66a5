"""IQL: its losses by hand, and what its parts learn from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import toy_batch

from offline_train.algorithms.iql import Iql, IqlConfig, expectile_loss, extraction_loss


def make(**settings: Any) -> Iql:
    config = IqlConfig(hidden=[16, 16], **settings)
    return Iql(torch.zeros(2), torch.ones(2), 2, config, torch.Generator().manual_seed(0))


def test_expectile_loss() -> None:
    # 0.7 x 2^2 = 2.8 above, 0.3 x 1^2 = 0.3 below: mean 1.55.
    assert float(expectile_loss(torch.tensor([2.0, -1.0]), 0.7)) == pytest.approx(1.55)


def test_expectile_of_zero_and_one() -> None:
    # 0.9 (1 - e) = 0.1 e at the minimum: the expectile 0.9 of {0, 1} is 0.9; it is 0.5 for the mean.
    for expectile in (0.5, 0.9):
        estimate = torch.tensor(expectile, requires_grad=True)
        expectile_loss(torch.tensor([0.0, 1.0]) - estimate, expectile).backward()
        assert estimate.grad is not None and float(estimate.grad) == pytest.approx(0.0, abs=1e-6)


def test_extraction_loss() -> None:
    # Weights exp(0) = 1, exp(3) = 20.0855 and exp(30), cut to 100: (1 x 1 + 20.0855 x 2 + 100 x 0.5) / 3 = 30.3903.
    advantage, log_prob = torch.tensor([0.0, 1.0, 10.0]), torch.tensor([-1.0, -2.0, -0.5])
    assert float(extraction_loss(advantage, log_prob, beta=3.0)) == pytest.approx(30.3903, abs=1e-4)


def test_value_learns_the_expectile_and_critics_the_reward() -> None:
    # One place, two actions with rewards 0 and 1 and nothing after: Q is the reward, V its expectile 0.9, and the
    # policy, weighted by exp(3 x (1 - 0.9)) and exp(3 x (0 - 0.9)), means 1.35 / (1.35 + 0.067) = 0.95 of the better.
    rows = 64
    better = (torch.arange(rows) % 2).float()
    obs = torch.zeros(rows, 2)
    batch = toy_batch(rows, seed=1)._replace(
        obs=obs, next_obs=obs, action=better[:, None].expand(-1, 2) - 0.5, reward=better, terminal=torch.ones(rows)
    )
    learner = make(expectile=0.9, learning_rate=3e-3, target_rate=0.1, updates=2_000)
    for step in range(600):
        learner.update(batch, step)
    torch.testing.assert_close(learner.critics(obs, batch.action), better.expand(2, -1), atol=0.05, rtol=0.0)
    torch.testing.assert_close(learner.value(obs)[:, 0], torch.full((rows,), 0.9), atol=0.05, rtol=0.0)
    torch.testing.assert_close(learner(obs), torch.full((rows, 2), 0.95 - 0.5), atol=0.05, rtol=0.0)


@pytest.mark.parametrize(("step", "rate"), [(0, 1e-3), (50, 5e-4), (100, 0.0)])
def test_actors_step_size_falls_along_a_cosine(step: int, rate: float) -> None:
    learner = make(updates=100, learning_rate=1e-3)
    learner.update(toy_batch(16, seed=1), step)
    critics, actor = learner.optimizer.param_groups
    assert critics["lr"] == 1e-3 and actor["lr"] == pytest.approx(rate)
    assert {id(p) for p in actor["params"]} == {id(p) for p in learner.actor.parameters()}
