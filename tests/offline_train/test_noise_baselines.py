"""Noise on the log's rows: what each changes, by how much, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from toy import toy_batch

from offline_train.diffusion.noise_baselines import (
    NOISES,
    additive_noise,
    dynamics_noise,
    multiplicative_noise,
    noisy_rows,
)
from offline_train.replay import Batch

BATCH = toy_batch(5_000, seed=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NOISES)
def test_action_reward_and_terminal_stay(name: str) -> None:
    noisy = NOISES[name](BATCH, generator())
    for field in ("action", "reward", "terminal"):
        assert torch.equal(getattr(noisy, field), getattr(BATCH, field))
    assert not torch.equal(noisy.next_obs, BATCH.next_obs)


def test_additive_noise_has_its_deviation_and_is_drawn_twice() -> None:
    noisy = additive_noise(BATCH, generator())
    first, second = noisy.obs - BATCH.obs, noisy.next_obs - BATCH.next_obs
    assert float(first.std()) == pytest.approx(0.1, rel=0.03) and float(second.std()) == pytest.approx(0.1, rel=0.03)
    assert abs(float((first * second).mean())) < 1e-3


def test_multiplicative_noise_is_one_number_a_transition() -> None:
    noisy = multiplicative_noise(BATCH, generator())
    factors = torch.cat([noisy.obs / BATCH.obs, noisy.next_obs / BATCH.next_obs], -1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), atol=1e-3, rtol=1e-3)
    assert 0.8 <= float(factors.min()) < 0.81 and 1.19 < float(factors.max()) <= 1.2001


def test_dynamics_noise_scales_each_dimension_of_the_change() -> None:
    noisy = dynamics_noise(BATCH, generator())
    assert torch.equal(noisy.obs, BATCH.obs)
    change = BATCH.next_obs - BATCH.obs
    z = ((noisy.next_obs - BATCH.obs) / change)[change.abs().amin(-1) > 0.01]
    assert 0.499 <= float(z.min()) < 0.52 and 1.48 < float(z.max()) <= 1.501
    assert abs(float(torch.corrcoef(z.T)[0, 1])) < 0.05


@pytest.mark.parametrize("name", NOISES)
def test_rows_are_drawn_from_the_log(name: str) -> None:
    log = BATCH.pack()[:3]
    rows = noisy_rows(name, log, 2, 2, 200, generator())
    assert rows.shape == (200, log.shape[1])
    assert {tuple(row) for row in Batch.unpack(rows, 2, 2).action.tolist()} == {
        tuple(row) for row in Batch.unpack(log, 2, 2).action.tolist()
    }
    assert torch.equal(rows, noisy_rows(name, log, 2, 2, 200, generator()))
