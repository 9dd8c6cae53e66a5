"""AWAC: its loss by hand, and whom it compares an action with."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from toy import toy_batch

from offline_train.algorithms.awac import Awac, AwacConfig, weighted_cloning_loss


def make(**settings: Any) -> Awac:
    config = AwacConfig(hidden=[16, 16], actor_hidden=[16, 16], **settings)
    return Awac(torch.zeros(2), torch.ones(2), 2, config, torch.Generator().manual_seed(0))


def test_weighted_cloning_loss() -> None:
    # exp(0) and exp(2 log 3 / 2) = 3 make weights of 1/4 and 3/4: 1/4 x 2 + 3/4 x 4 = 3.5.
    advantage, log_prob = torch.tensor([0.0, 2.0 * math.log(3.0)]), torch.tensor([-2.0, -4.0])
    assert float(weighted_cloning_loss(advantage, log_prob, temperature=2.0)) == pytest.approx(3.5)


def test_hot_is_plain_cloning() -> None:
    log_prob = torch.tensor([-2.0, -4.0, 3.0])
    loss = weighted_cloning_loss(torch.tensor([-5.0, 0.0, 5.0]), log_prob, temperature=1e9)
    assert float(loss) == pytest.approx(-float(log_prob.mean()), abs=1e-6)


def test_only_the_actor_decays() -> None:
    learner = make(actor_decay=0.5)
    critics, actor = learner.optimizer.param_groups
    assert critics["weight_decay"] == 0.0 and actor["weight_decay"] == 0.5
    assert {id(p) for p in actor["params"]} == {id(p) for p in learner.actor.parameters()}


def test_clones_the_better_of_two_actions() -> None:
    # Rewards 0 and 1 and nothing after; at a temperature of 0.2 the better action weighs exp(5) = 148 times as much,
    # so that the policy means 148 / 149 of it.
    rows = 64
    better = (torch.arange(rows) % 2).float()
    obs = torch.zeros(rows, 2)
    batch = toy_batch(rows, seed=1)._replace(
        obs=obs, next_obs=obs, action=better[:, None].expand(-1, 2) - 0.5, reward=better, terminal=torch.ones(rows)
    )
    learner = make(temperature=0.2, learning_rate=3e-3, actor_decay=0.0)
    for step in range(600):
        figures = learner.update(batch, step)
    torch.testing.assert_close(learner.critics(obs, batch.action), better.expand(2, -1), atol=0.05, rtol=0.0)
    torch.testing.assert_close(learner(obs), torch.full((rows, 2), 0.5), atol=0.06, rtol=0.0)
    # The policy is compared with itself, and it does nearly the best: half of the log is as good, half is 1 worse.
    assert float(figures["advantage"]) == pytest.approx(-0.5, abs=0.15)
