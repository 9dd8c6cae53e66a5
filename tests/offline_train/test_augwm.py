"""Dynamics amplitude scaling: z is drawn as the paper says and touches the change of state alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Toy, toy_batch

from offline_train.algorithms.augwm import AugWm, AugWmConfig, Draw, amplitude_scaling, draw_scaling
from offline_train.algorithms.sac import SacConfig
from offline_train.replay import Batch
from sim.terminations import never


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_amplitude_scaling_by_hand() -> None:
    # s = (1, 2), s' = (3, 1), z = (0.5, 2): s + z (s' - s) = (1 + 0.5 x 2, 2 + 2 x (-1)) = (2, 0).
    batch = Batch(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[0.3]]),
        torch.tensor([4.0]),
        torch.tensor([[3.0, 1.0]]),
        torch.tensor([1.0]),
    )
    scaled = amplitude_scaling(batch, torch.tensor([[0.5, 2.0]]))
    assert scaled.obs.tolist() == [[1.0, 2.0, 0.5, 2.0]]
    assert scaled.next_obs.tolist() == [[2.0, 0.0, 0.5, 2.0]]


@given(
    rows=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    low=st.floats(0.1, 1.0),
    high=st.floats(1.0, 3.0),
    draw=st.sampled_from(["uniform", "nested"]),
)
@settings(max_examples=50)
def test_scaling_touches_nothing_else(rows: int, seed: int, low: float, high: float, draw: Draw) -> None:
    batch = toy_batch(rows, seed)._replace(terminal=(torch.arange(rows) % 2).float())
    z = draw_scaling(rows, 2, low, high, draw, seeded(seed), shared=seed % 2 == 0)
    assert (z >= low - 1e-6).all() and (z <= high + 1e-6).all()
    scaled = amplitude_scaling(batch, z)
    for name in ("action", "reward", "terminal"):
        assert torch.equal(getattr(scaled, name), getattr(batch, name))
    assert torch.equal(scaled.obs[:, :2], batch.obs)
    assert torch.equal(scaled.obs[:, 2:], z) and torch.equal(scaled.next_obs[:, 2:], z)
    torch.testing.assert_close(
        scaled.next_obs[:, :2] - batch.obs, z * (batch.next_obs - batch.obs), atol=1e-5, rtol=1e-4
    )


def test_ones_are_the_identity() -> None:
    batch = toy_batch(50, 0)
    scaled = amplitude_scaling(batch, torch.ones(50, 2))
    torch.testing.assert_close(scaled.next_obs[:, :2], batch.next_obs)


def test_z_is_uniform_and_independent_by_row_and_dimension() -> None:
    z = draw_scaling(40_000, 2, 0.5, 1.5, "uniform", seeded(), shared=False)
    # Uniform on a width of 1: mean 1, variance 1/12; the correlation of 40,000 pairs has a deviation of 1/200.
    torch.testing.assert_close(z.mean(0), torch.ones(2), atol=0.01, rtol=0)
    torch.testing.assert_close(z.var(0), torch.full((2,), 1 / 12), atol=0.002, rtol=0)
    assert abs(float(torch.corrcoef(z.T)[0, 1])) < 5 / 200


def test_nested_draws_are_dense_around_one() -> None:
    z = draw_scaling(40_000, 2, 0.5, 1.5, "nested", seeded(), shared=False)
    # w ~ U(0, 1), u ~ U(-1/2, 1/2): E[(w u)^2] = 1/3 x 1/12 = 1/36; P(|w u| < 1/4) = 1/2 (1 + log 2) = 0.847.
    torch.testing.assert_close(z.mean(0), torch.ones(2), atol=0.005, rtol=0)
    torch.testing.assert_close(z.var(0), torch.full((2,), 1 / 36), atol=0.001, rtol=0)
    near = float(((z - 1.0).abs() < 0.25).float().mean())
    assert near == pytest.approx(0.5 * (1 + math.log(2)), abs=0.01)
    # The width is a row's own: large deviations come together, though their signs do not.
    deviation = (z - 1.0).abs()
    assert float(torch.corrcoef(deviation.T)[0, 1]) > 0.2
    assert abs(float(torch.corrcoef(z.T)[0, 1])) < 5 / 200


@pytest.mark.parametrize("draw", ["uniform", "nested"])
def test_shared_scaling_is_one_number_for_each_row(draw: Draw) -> None:
    z = draw_scaling(100, 5, 0.5, 1.5, draw, seeded(), shared=True)
    assert z.shape == (100, 5)
    assert (z == z[:, :1]).all() and len(z[:, 0].unique()) > 90


def test_nominal_is_what_the_policy_is_told_at_the_original_dynamics(toy: Toy) -> None:
    algorithm = make(toy, nominal=1.25)
    obs = toy_batch(20, 3).obs
    told = algorithm.act(obs, torch.full_like(obs, 1.25))
    assert torch.equal(algorithm.act_nominal(obs), told)
    assert not torch.equal(told, algorithm.act(obs, torch.ones_like(obs)))


def make(toy: Toy, **settings: Any) -> AugWm:
    small = {"batch_size": 64, "rollout_starts": 100, "horizon": 2, "steps_per_epoch": 5}
    config = AugWmConfig(sac=SacConfig(hidden=[16, 16]), **small | settings)
    return AugWm(config, toy.packed, toy.model, never, seed=0)


def test_rollouts_are_nominal_and_stored_as_the_model_gives_them(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(toy)
    seen = []
    explore = agent.sac.explore
    monkeypatch.setattr(agent.sac, "explore", lambda obs: seen.append(obs) or explore(obs))
    agent.train_epoch()
    assert len(seen) == 2 and all((obs[:, 2:] == 1.0).all() for obs in seen)
    assert agent.replay.rows.shape[1] == toy.packed.shape[1]
    stored = Batch.unpack(agent.replay.rows[:100], 2, 2)
    # The toy's changes of state are PUSH = 0.3 of an action at most; a scaled one would reach 0.45.
    assert float((stored.next_obs - stored.obs).abs().max()) < 0.4


def test_a_share_of_the_rollouts_is_scaled(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(toy, scaled_rollouts=0.3, rollout_starts=2_000)
    seen = []
    explore = agent.sac.explore
    monkeypatch.setattr(agent.sac, "explore", lambda obs: seen.append(obs) or explore(obs))
    agent.train_epoch()
    # Two chunks of two steps; a row's scaling lasts.
    assert len(seen) == 4
    assert torch.equal(seen[0][:, 2:], seen[1][:, 2:]) and torch.equal(seen[2][:, 2:], seen[3][:, 2:])
    scaled = (torch.cat([seen[0], seen[2]])[:, 2:] != 1.0).all(-1).float()
    # 2,000 rows: the share has a standard deviation of 0.01.
    assert float(scaled.mean()) == pytest.approx(0.3, abs=0.05)


def test_every_update_draws_afresh_for_real_and_model_rows(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(toy, real_fraction=0.5)
    seen: list[Batch] = []
    update = agent.sac.update
    monkeypatch.setattr(agent.sac, "update", lambda batch: seen.append(batch) or update(batch))
    agent.train_epoch()
    z = torch.stack([batch.obs[:, 2:] for batch in seen])
    assert z.shape == (5, 64, 2)
    assert len(z.flatten().unique()) > 0.99 * z.numel()
    assert float(z.min()) < 0.6 and float(z.max()) > 1.4


def test_policy_reads_the_context(toy: Toy) -> None:
    agent = make(toy)
    obs = torch.tensor([[0.5, -0.5]])
    ones = torch.ones(1, 2)
    torch.testing.assert_close(agent.act(obs, ones), agent.act_nominal(obs))
    assert not torch.allclose(agent.act(obs, 0.5 * ones), agent.act_nominal(obs))
    assert agent.context_dim == 2


@pytest.mark.parametrize(("low", "high"), [(1.1, 1.5), (0.5, 0.9)])
def test_range_without_the_original_dynamics_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must enclose 1"):
        AugWmConfig(z_low=low, z_high=high)


def test_nominal_out_of_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match="must lie between z_low"):
        AugWmConfig(nominal=1.6)
