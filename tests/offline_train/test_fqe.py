"""Fitted Q evaluation: its loss by hand, and worlds whose values are known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from offline_train.fqe import FqeConfig, evaluation_loss, first_values
from offline_train.replay import Batch

CONFIG = FqeConfig(updates=1_500, batch_size=128, hidden=[32, 32], learning_rate=3e-3, discount=0.8)


def test_evaluation_loss() -> None:
    value, reward = torch.tensor([2.0, 1.0], requires_grad=True), torch.tensor([1.0, 3.0])
    terminal, next_value = torch.tensor([0.0, 1.0]), torch.tensor([4.0, 100.0])
    loss = evaluation_loss(value, reward, terminal, next_value, discount=0.5)
    # Targets 1 + 0.5 * 4 = 3 and 3 (nothing follows a terminal): ((2 - 3)^2 + (1 - 3)^2) / 2 = 2.5.
    assert loss.item() == pytest.approx(2.5)
    loss.backward()
    # d/dv of the mean of squares: 2 (v - y) / 2 = -1 and -2.
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([-1.0, -2.0])


def line(rows: int, *, terminals: bool) -> Batch:
    """A point on [-1, 1] that goes where it is told, s' = 0.5 s + 0.5 a, and earns its place, r = s, under any action.

    With terminals an action above 0.5 ends the episode.
    """
    generator = torch.Generator().manual_seed(0)
    obs, action = 2.0 * torch.rand(2, rows, 1, generator=generator) - 1.0
    ends = (action[:, 0] > 0.5).float() if terminals else torch.zeros(rows)
    return Batch(obs, action, obs[:, 0], 0.5 * obs + 0.5 * action, ends)


def always(action: float) -> Callable[[Tensor], Tensor]:
    return lambda obs: torch.full_like(obs, action)


STARTS = torch.linspace(-0.9, 0.9, 7)[:, None]


@pytest.mark.parametrize("gain", [-1.0, 0.0, 1.0])
def test_values_of_a_policy_that_did_not_make_the_log(gain: float) -> None:
    """The policy a = k s moves to s' = (1 + k) s / 2, so V = s / (1 - 0.8 (1 + k) / 2): s, s / 0.6 and 5 s."""
    found = first_values(lambda obs: gain * obs, line(5_000, terminals=False), STARTS, CONFIG, seed=0)
    expected = STARTS[:, 0] * {-1.0: 1.0, 0.0: 1 / 0.6, 1.0: 5.0}[gain]
    torch.testing.assert_close(found, expected, atol=0.25, rtol=0)


def test_nothing_follows_a_terminal() -> None:
    # The policy ends every episode in its first step, so its value is the first reward: r = s.
    found = first_values(always(0.75), line(5_000, terminals=True), STARTS, CONFIG, seed=0)
    torch.testing.assert_close(found, STARTS[:, 0], atol=0.25, rtol=0)


def test_rewards_of_any_size_are_learned_alike() -> None:
    log, config = line(2_000, terminals=False), CONFIG.model_copy(update={"updates": 200})

    def values(factor: float, more: float) -> Tensor:
        reward = factor * log.reward + more
        return first_values(always(0.5), log._replace(reward=reward), STARTS, config, seed=0)

    # V(c r + b) = c V(r) + b / (1 - 0.8); the fits differ by rounding, and by what keeps a deviation from being zero.
    plain = values(1.0, 0.0)
    for factor, more in ((1_000.0, 70.0), (0.01, -3.0)):
        torch.testing.assert_close(values(factor, more), factor * plain + 5.0 * more, atol=0.1 * factor, rtol=0)


def test_seed_decides_and_progress_is_told() -> None:
    log, config, told = line(500, terminals=False), CONFIG.model_copy(update={"updates": 300}), []
    fits = [first_values(always(0.5), log, STARTS, config, seed=seed, report=told.append) for seed in (1, 1, 2)]
    assert torch.equal(fits[0], fits[1]) and not torch.equal(fits[0], fits[2])
    assert told == [250, 300] * 3
