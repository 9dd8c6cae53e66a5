"""TD3+BC: its losses by hand, its delay, and what each part of a step leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from toy import toy_batch

from offline_train.algorithms.td3_bc import Td3Bc, Td3BcConfig, actor_loss, smoothed_action


def make(**settings: Any) -> Td3Bc:
    config = Td3BcConfig(hidden=[16, 16], **settings)
    return Td3Bc(torch.zeros(2), torch.ones(2), 2, config, torch.Generator().manual_seed(0))


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_smoothed_action() -> None:
    # Noise 0.7 is cut to 0.5; 0.9 + 0.3 is cut to 1; -0.9 - 0.5 to -1; 0.2 - 0.1 stays.
    action, noise = torch.tensor([[0.0, 0.9], [-0.9, 0.2]]), torch.tensor([[0.7, 0.3], [-0.8, -0.1]])
    expected = torch.tensor([[0.5, 1.0], [-1.0, 0.1]])
    torch.testing.assert_close(smoothed_action(action, noise, clip=0.5), expected)


def test_actor_loss() -> None:
    # lambda = 2.5 / mean(2, 4) = 5/6; -lambda mean(2, -4) = 5/6; errors 1, 0, 0 and 4: mean 1.25. In all 25/12.
    # lambda is no part of the gradient: -lambda / 2 for either value.
    value = torch.tensor([2.0, -4.0], requires_grad=True)
    action, logged = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    loss = actor_loss(value, action, logged, alpha=2.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(25 / 12)
    assert value.grad is not None
    torch.testing.assert_close(value.grad, torch.full((2,), -5 / 12))


def test_actor_and_targets_wait_for_the_delay() -> None:
    learner, batch = make(policy_delay=3, target_rate=0.25), toy_batch(32, seed=1)
    actor, targets = weights(learner.actor), weights(learner.target_critics)
    for step in range(3):
        figures = learner.update(batch, step)
        moved = step == 2
        assert ("actor_loss" in figures) == moved
        assert all(map(torch.equal, actor, weights(learner.actor))) != moved
        expected = [0.75 * old + 0.25 * new for old, new in zip(targets, weights(learner.critics), strict=True)]
        for target, kept, after in zip(learner.target_critics.parameters(), targets, expected, strict=True):
            torch.testing.assert_close(target, after if moved else kept)


def test_actors_step_leaves_the_critics_alone() -> None:
    learner, batch = make(), toy_batch(32, seed=1)
    learner.update(batch, 0)
    critics = weights(learner.critics)
    learner._update_actor(batch.obs, batch.action)
    assert all(map(torch.equal, critics, weights(learner.critics)))
    assert all(parameter.requires_grad for parameter in learner.critics.parameters())


def test_small_alpha_is_cloning() -> None:
    # With values of no weight the best action at any place is the mean of the log's there, here 0.5.
    learner, batch = make(alpha=1e-6, learning_rate=3e-3, policy_delay=1), toy_batch(256, seed=1)
    batch = batch._replace(action=torch.full_like(batch.action, 0.5))
    for step in range(300):
        learner.update(batch, step)
    torch.testing.assert_close(learner(batch.obs), batch.action, atol=0.05, rtol=0.0)


def test_target_is_the_smaller_critics_at_the_smoothed_action() -> None:
    learner, batch = make(policy_noise=0.4, discount=0.9), toy_batch(64, seed=1)
    learner.generator.manual_seed(3)
    noise = 0.4 * learner.noise_like(batch.action)
    following = smoothed_action(learner.target_actor(batch.next_obs), noise, clip=0.5)
    values = learner.target_critics(batch.next_obs, following)
    expected = batch.reward + 0.9 * torch.minimum(values[0], values[1])
    learner.generator.manual_seed(3)
    assert float(learner.update(batch, 0)["target_value"]) == pytest.approx(float(expected.mean()), rel=1e-5)
