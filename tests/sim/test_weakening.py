"""Weakened motors in a log of the original robot."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.errors import UserError
from sim.collect import collect
from sim.environments import make_environment
from sim.plant import BatchedPlant
from sim.weakening import LONGEST, SHORTEST, draw_weakening


def test_shares_and_kinds() -> None:
    gains = draw_weakening(np.random.default_rng(0), 400_000, 6, 0.5)
    assert gains.shape == (400_000, 6)
    assert gains.min() == 0.0 and gains.max() == 1.0
    weakened = (gains != 1).any(1)
    assert weakened.mean() == pytest.approx(0.5, abs=0.04)
    # Of the weakened time 0.6 has one weak motor, and 0.7 of that a dead one.
    single = (gains != 1).sum(1) == 1
    assert single[weakened].mean() == pytest.approx(0.6, abs=0.06)
    assert (gains[single].min(1) == 0).mean() == pytest.approx(0.7, abs=0.06)


def test_gains_last_for_seconds() -> None:
    gains = draw_weakening(np.random.default_rng(1), 20_000, 3, 1.0)
    changes = np.flatnonzero((np.diff(gains, axis=0) != 0).any(1)) + 1
    # Two stretches in a row may hold the same gains, then one change is missing; none comes too early.
    assert np.diff(changes).min() >= SHORTEST
    assert np.median(np.diff(changes)) < LONGEST


def test_no_share_weakens_nothing() -> None:
    assert (draw_weakening(np.random.default_rng(0), 5_000, 2, 0.0) == 1).all()


def test_the_log_holds_what_was_sent_and_the_original_robot() -> None:
    data = collect("random", 2_000, seed=0, weakened=1.0)
    plain = collect("random", 2_000, seed=0)
    assert (data.actions == 0).any() and not (plain.actions == 0).any()
    # The start and the policy's own noise are the same; weaker commands are all that differs.
    assert (data.observations[0] == plain.observations[0]).all()
    first = np.abs(data.actions[:SHORTEST]) <= np.abs(plain.actions[:SHORTEST])
    assert first.all()
    # The original robot, set to where the logged one was, does under the logged command what the log says.
    environment = make_environment("halfcheetah")
    rows = slice(0, SHORTEST)
    with BatchedPlant(environment, [environment.model()]) as plant:
        plant.reset(states=environment.initial_states(np.random.default_rng(0).spawn(2)[0], 1))
        for action, expected in zip(data.actions[rows], data.next_observations[rows], strict=True):
            found, _, _ = plant.step(action[None])
            np.testing.assert_array_equal(found[0].astype(np.float32), expected)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_makes_no_sense_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="is no share of the time"):
        collect("random", 1_000, seed=0, weakened=share)
