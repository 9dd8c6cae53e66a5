"""Packing, the ring of model transitions, and the share of real ones."""

from __future__ import annotations

import pytest
import torch

from offline_train.replay import Batch, ModelReplay, draw


def rows(first: int, count: int) -> Batch:
    """Transitions of a 2-d, 1-d robot, all of whose numbers are the row's own."""
    value = torch.arange(first, first + count, dtype=torch.float32)
    return Batch(value[:, None].expand(-1, 2), value[:, None], value, value[:, None].expand(-1, 2), value)


def replay(capacity: int, real_fraction: float = 0.25) -> ModelReplay:
    """A replay whose real rows are all -1."""
    return ModelReplay(-torch.ones(10, 7), capacity, obs_dim=2, act_dim=1, real_fraction=real_fraction)


def test_pack_lays_columns_out_as_the_dataset_does_and_unpack_inverts() -> None:
    batch = Batch(
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[3.0]]),
        torch.tensor([4.0]),
        torch.tensor([[5.0, 6.0]]),
        torch.tensor([7.0]),
    )
    packed = batch.pack()
    assert packed.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]
    for before, after in zip(batch, Batch.unpack(packed, 2, 1), strict=True):
        assert torch.equal(before, after)


def test_ring_overwrites_the_oldest() -> None:
    ring = replay(5)
    ring.add(rows(0, 3))
    assert (ring.size, ring.position) == (3, 3)
    ring.add(rows(3, 4))
    # Rows 0..6 through 5 places: 5 and 6 have taken the places of 0 and 1.
    assert ring.rows[:, 0].tolist() == [5.0, 6.0, 2.0, 3.0, 4.0]
    assert (ring.size, ring.position) == (5, 2)


def test_ring_keeps_the_last_rows_of_more_than_it_holds() -> None:
    ring = replay(4)
    ring.add(rows(0, 3))
    ring.add(rows(3, 9))
    assert sorted(ring.rows[:, 0].tolist()) == [8.0, 9.0, 10.0, 11.0]
    assert ring.size == 4


@pytest.mark.parametrize(("real_fraction", "n_real"), [(0.0, 0), (0.05, 3), (0.25, 16), (1.0, 64)])
def test_real_share_of_a_batch_comes_first(real_fraction: float, n_real: int) -> None:
    ring = replay(5, real_fraction)
    ring.add(rows(0, 5))
    batch = ring.sample(64, torch.Generator().manual_seed(0))
    assert (batch.reward[:n_real] == -1.0).all()
    assert (batch.reward[n_real:] >= 0.0).all() and len(batch.reward) == 64


def test_batches_are_real_before_the_first_rollout() -> None:
    batch = replay(5).sample(64, torch.Generator().manual_seed(0))
    assert len(batch.reward) == 64 and (batch.reward == -1.0).all()


def test_only_filled_places_are_drawn_and_every_one_of_them() -> None:
    ring = replay(100, real_fraction=0.0)
    ring.add(rows(0, 7))
    batch = ring.sample(500, torch.Generator().manual_seed(0))
    assert set(batch.reward.tolist()) == set(map(float, range(7)))


def test_draw_is_uniform() -> None:
    drawn = draw(torch.arange(4.0)[:, None], 4, 40_000, torch.Generator().manual_seed(0))
    # Each of four rows: 10,000 of 40,000 draws, standard deviation sqrt(40,000 x 1/4 x 3/4) = 87.
    counts = torch.bincount(drawn[:, 0].long(), minlength=4)
    assert (counts - 10_000).abs().max() < 5 * 87


def test_resumed_replay_draws_and_overwrites_the_same() -> None:
    before, after = replay(5), replay(5)
    before.add(rows(0, 3))
    after.load_state_dict(before.state_dict())
    for ring in (before, after):
        ring.add(rows(3, 4))
    assert torch.equal(before.rows, after.rows) and before.position == after.position
    samples = [ring.sample(32, torch.Generator().manual_seed(1)).pack() for ring in (before, after)]
    assert torch.equal(*samples)


def test_state_is_a_copy() -> None:
    ring = replay(5)
    ring.add(rows(0, 3))
    state = ring.state_dict()
    ring.add(rows(50, 5))
    assert state["rows"][:, 0].tolist() == [0.0, 1.0, 2.0]
