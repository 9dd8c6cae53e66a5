"""What a model sees of a transition: columns that change, and what becomes of terminals and actions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from offline_train.diffusion.scale import RowScale

OBS_DIM, ACT_DIM = 2, 1


def log(rows: int = 400, *, seed: int = 0, falls: bool = True) -> torch.Tensor:
    """[obs, obs, action, reward, next, next, terminal]; the second observation never changes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, 7, generator=generator) * torch.tensor([3.0, 0, 0.4, 10, 3, 0, 0]) + 5.0
    values[:, 6] = (torch.arange(rows) % 10 == 0).float() if falls else 0.0
    return values


def fitted(rows: torch.Tensor) -> RowScale:
    return RowScale(OBS_DIM, ACT_DIM).fit(rows)


@given(st.integers(0, 1_000), st.booleans())
def test_decode_is_the_inverse(seed: int, falls: bool) -> None:
    rows = log(seed=seed, falls=falls)
    scale = fitted(rows)
    torch.testing.assert_close(scale.decode(scale.encode(rows)), rows, atol=1e-4, rtol=1e-5)


def test_constant_columns_are_left_out_and_come_back() -> None:
    scale = fitted(log(falls=False))
    assert scale.dim == 4
    drawn = scale.decode(torch.randn(50, 4))
    assert (drawn[:, 1] == 5.0).all() and (drawn[:, 5] == 5.0).all() and (drawn[:, 6] == 0.0).all()


def test_columns_are_standardised_but_terminals_are_not() -> None:
    rows = log()
    seen = fitted(rows).encode(rows)
    assert seen.shape == (400, 5)
    torch.testing.assert_close(seen[:, :4].mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[:, :4].std(0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)
    assert torch.equal(seen[:, 4], rows[:, 6])


def test_terminals_are_cut_at_a_half() -> None:
    modelled = torch.zeros(4, 5)
    modelled[:, 4] = torch.tensor([-0.3, 0.5, 0.51, 1.7])
    assert fitted(log()).decode(modelled)[:, 6].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_actions_stay_within_those_seen() -> None:
    rows = log()
    modelled = torch.zeros(2, 5)
    modelled[:, 1] = torch.tensor([-100.0, 100.0])
    action = rows[:, 2]
    assert fitted(rows).decode(modelled)[:, 2].tolist() == [float(action.min()), float(action.max())]


def test_scale_travels_in_the_state() -> None:
    rows = log()
    scale, other = fitted(rows), RowScale(OBS_DIM, ACT_DIM)
    other.load_state_dict(scale.state_dict())
    assert other.dim == scale.dim and torch.equal(other.encode(rows), scale.encode(rows))
