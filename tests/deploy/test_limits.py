"""Whatever comes in, the command that comes out is finite and within limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from leg import robot

from deploy.limits import LARGEST, faulty_terms, limit_command, observation_bounds

LOW, HIGH = np.array([-2.0, -1.0]), np.array([2.0, 3.0])
anything = st.floats(allow_nan=True, allow_infinity=True, width=64)


def test_bounds_stand_where_the_terms_do() -> None:
    leg = robot(position={"knee": (-1.0, 2.0)}, velocity={"hip": 8.0}, tilt=0.5)
    low, high = observation_bounds(leg)
    # pitch, hip and knee position, hip and knee velocity.
    np.testing.assert_array_equal(low, [-0.5, -LARGEST, -1.0, -8.0, -LARGEST])
    np.testing.assert_array_equal(high, [0.5, LARGEST, 2.0, 8.0, LARGEST])


def test_faulty_terms_are_the_ones_beyond_or_not_finite() -> None:
    bounds = observation_bounds(robot(position={"knee": (-1.0, 2.0)}, velocity={"hip": 8.0}, tilt=0.5))
    obs = np.array([[0.5, 9.0, 2.0, -8.0, 99.0], [0.6, np.nan, -1.1, 8.1, np.inf], [-0.6, 1e39, 2.1, 0, -np.inf]])
    expected = [[False] * 5, [True] * 5, [True, True, True, False, True]]
    np.testing.assert_array_equal(faulty_terms(obs, bounds), expected)
    np.testing.assert_array_equal(faulty_terms(obs[1], bounds), expected[1])


def test_command_is_clipped_to_its_own_bounds() -> None:
    commands = np.array([[5.0, 5.0], [-5.0, -5.0], [0.5, 0.5]])
    limited = limit_command(commands, np.zeros((3, 2)), LOW, HIGH, None)
    np.testing.assert_array_equal(limited, [[2.0, 3.0], [-2.0, -1.0], [0.5, 0.5]])


def test_rate_is_limited_in_both_directions() -> None:
    limited = limit_command(np.array([1.0, -1.0]), np.array([0.5, -0.25]), LOW, HIGH, 0.25)
    np.testing.assert_array_equal(limited, [0.75, -0.5])


def test_number_that_is_not_finite_keeps_the_previous_command() -> None:
    limited = limit_command(np.array([np.nan, np.inf]), np.array([0.5, -0.25]), LOW, HIGH, None)
    np.testing.assert_array_equal(limited, [0.5, -0.25])


@given(
    commands=arrays(np.float64, (20, 2), elements=anything),
    max_step=st.one_of(st.none(), st.floats(1e-6, 100.0)),
    start=st.tuples(st.floats(-2, 2), st.floats(-1, 3)),
)
def test_any_sequence_stays_finite_within_bounds_and_rate(
    commands: np.ndarray, max_step: float | None, start: tuple[float, float]
) -> None:
    previous = np.array(start)
    for command in commands:
        limited = limit_command(command, previous, LOW, HIGH, max_step)
        assert np.isfinite(limited).all()
        assert (limited >= LOW).all() and (limited <= HIGH).all()
        if max_step is not None:
            assert (np.abs(limited - previous) <= max_step + 1e-12).all()
        previous = limited


@given(
    commands=arrays(np.float64, (6, 2), elements=anything),
    previous=arrays(np.float64, (6, 2), elements=st.floats(-1, 2)),
)
def test_lanes_are_independent(commands: np.ndarray, previous: np.ndarray) -> None:
    together = limit_command(commands, previous, LOW, HIGH, 0.3)
    alone = [limit_command(c, p, LOW, HIGH, 0.3) for c, p in zip(commands, previous, strict=True)]
    np.testing.assert_array_equal(together, alone)


@given(obs=arrays(np.float64, (4, 5), elements=anything))
def test_what_is_not_faulty_is_finite_in_float32(obs: np.ndarray) -> None:
    good = ~faulty_terms(obs, observation_bounds(robot()))
    assert np.isfinite(obs[good].astype(np.float32)).all()
    assert not good[~np.isfinite(obs)].any()


def test_bounds_refuse_nothing_where_there_are_no_limits() -> None:
    assert not faulty_terms(np.full(5, LARGEST), observation_bounds(robot())).any()
    assert faulty_terms(np.full(5, np.nextafter(LARGEST, np.inf)), observation_bounds(robot())).all()


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    assert limit_command(np.ones((*shape, 2)), np.zeros((*shape, 2)), LOW, HIGH, 0.5).shape == (*shape, 2)
