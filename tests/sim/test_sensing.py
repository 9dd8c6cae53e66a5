"""Noise and delays against sequences written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.environments import Environment, make_environment
from sim.perturb import Change
from sim.sensing import DelayLine, Sensing, noise_generator
from sim.worlds import make_world


def _through(delays: list[int] | list[list[int]], steps: int) -> np.ndarray:
    """What comes out where 1, 2, 3, ... go in and the first row is 0; `(steps, lanes)`."""
    every = np.broadcast_to(np.array(delays), (steps, np.array(delays).shape[-1]))
    line = DelayLine(np.zeros((every.shape[1], 1)))
    return np.array([line.step(np.full((every.shape[1], 1), step + 1.0), every[step])[:, 0] for step in range(steps)])


def test_every_lane_has_its_own_delay() -> None:
    out = _through([0, 1, 3], 6)
    assert out[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert out[:, 1].tolist() == [0, 1, 2, 3, 4, 5]
    assert out[:, 2].tolist() == [0, 0, 0, 1, 2, 3]


def test_a_delay_that_grows_holds_what_came_out_last() -> None:
    # From the fourth step on the delay is 2: 4 is due two steps later, and until then 3 is held.
    assert _through([[0]] * 3 + [[2]] * 4, 7)[:, 0].tolist() == [1, 2, 3, 3, 3, 4, 5]


def test_a_delay_that_shrinks_skips_what_is_overdue() -> None:
    # 3 and 4 are under way when the delay goes.
    assert _through([[2]] * 4 + [[0]] * 2, 6)[:, 0].tolist() == [0, 0, 1, 2, 5, 6]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_what_comes_out_is_the_newest_row_that_has_ever_been_due(delays: list[int]) -> None:
    # Row s goes in at step s with value s + 1; at step t all rows up to t - delay are due.
    due = np.maximum.accumulate(np.arange(len(delays)) - delays) + 1
    assert _through([[delay] for delay in delays], len(delays))[:, 0].tolist() == np.maximum(due, 0).tolist()


def test_later_changes_to_an_array_have_no_effect() -> None:
    for earlier in (np.array([1]), None):
        line, row = DelayLine(np.zeros((1, 1))), np.ones((1, 1))
        line.step(row, earlier)
        row[:] = 7.0
        assert line.step(row, np.array([1]))[0, 0] == 1.0


def test_no_delays_are_delays_of_zero() -> None:
    line = DelayLine(np.zeros((2, 1)))
    rows = np.arange(1.0, 13.0).reshape(6, 2, 1)
    delays = [np.array([1, 2])] * 3 + [None] + [np.array([0, 1])] * 2
    out = np.array([line.step(row, delay)[:, 0] for row, delay in zip(rows, delays, strict=True)])
    # Rows go in as 1 2, 3 4, 5 6, 7 8, 9 10, 11 12. At step 4 the second lane's row of step 3 is held.
    assert out.tolist() == [[0, 0], [1, 0], [3, 2], [7, 8], [9, 8], [11, 10]]


@pytest.fixture(scope="module")
def environment() -> Environment:
    return make_environment("halfcheetah")


def _sensing(environment: Environment, *changes: Change) -> Sensing:
    """The sensors of one robot for each change."""
    sensing = Sensing(len(changes), environment.obs_dim, environment.act_dim)
    sensing.reset([noise_generator(0, "x", episode) for episode in range(len(changes))])
    sensing.change({lane: make_world(environment, change) for lane, change in enumerate(changes)})
    return sensing


def test_noise_has_its_deviation_and_stays_where_it_is_asked_for(environment: Environment) -> None:
    noisy = Change(observation_noise={"ffoot_position": 0.5, "rootx_velocity": 2.0})
    sensing = _sensing(environment, Change(), noisy, noisy)
    truth = np.random.default_rng(0).normal(size=(3, 17))
    seen = np.array([sensing.sense(truth) for _ in range(4000)]) - truth
    assert not seen[:, 0].any()
    # The front foot's angle is the last of 8 positions, the speed along x the first of 9 velocities.
    assert np.flatnonzero(seen[:, 1].any(0)).tolist() == [7, 8]
    # 4,000 draws give the deviation to 1/sqrt(8000) = 1.1 %; the bounds are four times that.
    np.testing.assert_allclose(seen[:, 1:, 7].std(0), 0.5, rtol=0.045)
    np.testing.assert_allclose(seen[:, 1:, 8].std(0), 2.0, rtol=0.045)
    # Neither lanes, nor terms, nor steps have anything to do with each other: 1/sqrt(4000) = 1.6 %.
    for one, other in (
        (seen[:, 1, 7], seen[:, 2, 7]),
        (seen[:, 1, 7], seen[:, 1, 8]),
        (seen[1:, 1, 7], seen[:-1, 1, 7]),
    ):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.065


def test_noise_is_made_where_the_observation_is_and_arrives_late_with_it(environment: Environment) -> None:
    at_once = _sensing(environment, Change(observation_noise={"*": 0.1}))
    late = _sensing(environment, Change(observation_noise={"*": 0.1}, observation_delay=2))
    truths = np.random.default_rng(0).normal(size=(6, 1, 17))
    seen = np.array([at_once.sense(truth) for truth in truths])
    seen_late = np.array([late.sense(truth) for truth in truths])
    # The first observation is seen until the second one is due, at step 3.
    np.testing.assert_array_equal(seen_late, seen[[0, 0, 0, 1, 2, 3]])


def test_nothing_acts_before_the_first_command(environment: Environment) -> None:
    sensing = _sensing(environment, Change(), Change(actuator_delay=2))
    sent = np.random.default_rng(0).normal(size=(5, 2, 6))
    acting = np.array([sensing.actuate(action) for action in sent])
    np.testing.assert_array_equal(acting[:, 0], sent[:, 0])
    assert not acting[:2, 1].any()
    np.testing.assert_array_equal(acting[2:, 1], sent[:3, 1])
    # A new episode begins without commands under way.
    sensing.reset([noise_generator(0, "x", 2)] * 2)
    assert not sensing.actuate(sent[0])[1].any()


def test_source_of_noise_depends_on_seed_world_and_episode() -> None:
    draws = {
        (seed, world, episode): noise_generator(seed, world, episode).normal()
        for seed in (0, 1)
        for world in ("a", "b")
        for episode in (0, 1)
    }
    assert len(set(draws.values())) == 8
    assert noise_generator(1, "b", 0).normal() == draws[1, "b", 0]
