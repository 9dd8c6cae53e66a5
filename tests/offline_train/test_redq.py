"""REDQ: who bootstraps, whose mean the actor improves, and its delay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import toy_batch

from offline_train.algorithms.redq import Redq, RedqConfig
from offline_train.algorithms.sac import SacConfig

BATCH = toy_batch(32, seed=1)


def make(**settings: Any) -> Redq:
    config = RedqConfig(**{"critics": 5, "sac": SacConfig(hidden=[16, 16]), **settings})
    return Redq(torch.zeros(2), torch.ones(2), 2, config, torch.Generator().manual_seed(0))


def test_a_random_pair_of_critics_bootstraps() -> None:
    learner = make()
    whole = learner.target_critics(BATCH.next_obs, BATCH.action)
    seen = set()
    for _ in range(60):
        found = learner._next_values(BATCH.next_obs, BATCH.action)
        assert found.shape == (2, 32)
        pair = tuple(int((whole - row).abs().sum(1).argmin()) for row in found)
        torch.testing.assert_close(found, whole[list(pair)])
        seen.add(frozenset(pair))
    # Ten pairs of five; the odds that sixty draws leave one of them out are 2 %, and the seed is fixed.
    assert len(seen) >= 9 and all(len(pair) == 2 for pair in seen)


def test_actor_improves_the_mean() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 8.0]])
    assert make()._judged(values).amin(0).tolist() == [2.0, 5.0]


def test_actor_waits_for_the_delay() -> None:
    learner = make(policy_delay=3)
    actor = [p.detach().clone() for p in learner.actor.parameters()]
    for step in range(3):
        critics = [p.detach().clone() for p in learner.critics.parameters()]
        figures = learner.update(BATCH, step)
        moved = step == 2
        assert ("actor_loss" in figures) == moved
        assert all(map(torch.equal, actor, learner.actor.parameters())) != moved
        assert not all(map(torch.equal, critics, learner.critics.parameters()))
        assert float(learner.updates) == moved


def test_more_bootstrapped_than_critics_are_refused() -> None:
    with pytest.raises(ValueError, match="bootstrapped=3 cannot be drawn from critics=2"):
        RedqConfig(critics=2, bootstrapped=3)
