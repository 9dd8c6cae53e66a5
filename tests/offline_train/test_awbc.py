"""Advantage-weighted cloning: its weight by hand, and whom it clones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import toy_batch

from offline_train.algorithms.awbc import Awbc, AwbcConfig, relative_value


def make(**settings: Any) -> Awbc:
    config = AwbcConfig(**{"hidden": [16, 16], "learning_rate": 3e-3} | settings)
    return Awbc(torch.zeros(2), torch.ones(2), 2, config, torch.Generator().manual_seed(0))


def test_relative_value() -> None:
    # The smaller critic's 300 x (1 - 0.99) / 6 = 0.5; the largest reward for ever, 6 / 0.01 = 600, would be 1.
    values = torch.tensor([[300.0, 600.0], [400.0, 700.0]])
    torch.testing.assert_close(relative_value(values, 0.99, torch.tensor(6.0)), torch.tensor([0.5, 1.0]))


def test_largest_reward_is_that_of_all_batches_and_of_either_sign() -> None:
    learner, batch = make(), toy_batch(8, seed=1)
    for reward, largest in ((-3.0, 3.0), (2.0, 3.0), (5.0, 5.0)):
        learner.update(batch._replace(reward=torch.full((8,), reward)), 0)
        assert float(learner.largest_reward) == largest
    assert "largest_reward" in learner.state_dict()


def test_rewards_of_nothing_but_zero_do_no_harm() -> None:
    learner, batch = make(), toy_batch(8, seed=1)._replace(reward=torch.zeros(8))
    for step in range(3):
        figures = learner.update(batch, step)
    assert all(value.isfinite() for value in figures.values())


@pytest.mark.parametrize(("temperature", "expected"), [(0.05, 0.5), (1e6, 0.0)])
def test_clones_the_better_of_two_actions_where_cold_and_their_mean_where_hot(
    temperature: float, expected: float
) -> None:
    # Rewards 0 and 1 and nothing after, gamma 0: w is 0 and 1, so at 0.05 the better action weighs exp(20) as much.
    # Hot, both weigh alike, and the likeliest mean of -0.5 and 0.5 is 0.
    rows = 64
    better = (torch.arange(rows) % 2).float()
    obs = torch.zeros(rows, 2)
    batch = toy_batch(rows, seed=1)._replace(
        obs=obs, next_obs=obs, action=better[:, None].expand(-1, 2) - 0.5, reward=better, terminal=torch.ones(rows)
    )
    learner = make(temperature=temperature, discount=0.0)
    for step in range(600):
        figures = learner.update(batch, step)
    torch.testing.assert_close(learner.critics(obs, batch.action), better.expand(2, -1), atol=0.05, rtol=0.0)
    torch.testing.assert_close(learner(obs), torch.full((rows, 2), expected), atol=0.06, rtol=0.0)
    assert float(figures["relative_value"]) == pytest.approx(0.5, abs=0.05)
