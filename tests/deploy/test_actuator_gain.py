"""Every estimator of actuators' gains, on a system whose true gains are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adapters.errors import UserError
from deploy.context import ESTIMATORS, ContextEstimator, make_estimator

STD = 0.01
DRIFT = np.array([[-0.4, 0.1, 0.0], [0.0, -0.3, 0.1], [0.1, 0.0, -0.5]])
PUSH = np.array([[0.5, 0.1], [-0.2, 0.6], [0.3, 0.3]])
NOMINAL, WEAK = np.ones(2), np.array([0.4, 1.0])
DEAD = np.array([1.0, 0.0])
GAINS = [name for name, kind in ESTIMATORS.items() if kind == "actuator_gain"]

every = pytest.mark.parametrize("name", GAINS)


def predict_change(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The world model: exact for the original robot, and not linear in the command."""
    return obs @ DRIFT.T + (action + 0.1 * action**2) @ PUSH.T, np.full(np.shape(obs), STD)


def adapt(history: np.ndarray) -> np.ndarray:
    """An adaptation module for this very system: the gains by least squares, 1 where a motor was not used.

    With b = g a the system does d = b + 0.1 b^2, so b = (sqrt(1 + 0.4 d) - 1) / 0.2.
    """
    rows = history.reshape(*history.shape[:-1], -1, 9)
    obs, action, change = rows[..., 1:4], rows[..., 4:6], rows[..., 6:9]
    pushed = (change - obs @ DRIFT.T) @ np.linalg.pinv(PUSH).T
    effect = (np.sqrt(np.maximum(1 + 0.4 * pushed, 0)) - 1) / 0.2
    return ((action * effect).sum(-2) + 1e-6) / (np.square(action).sum(-2) + 1e-6)


def make(name: str = "actuator_gain", batch: tuple[int, ...] = (), **settings: Any) -> ContextEstimator:
    return make_estimator(
        name,
        predict_change=predict_change,
        low=np.zeros(2),
        high=np.full(2, 1.3),
        nominal=NOMINAL,
        act_dim=2,
        settings={"window": 20} | settings if name == "history" else settings,
        batch=batch,
        adapt=adapt,
    )


def make_pushed(batch: tuple[int, ...] = (), **settings: Any) -> ContextEstimator:
    """Told of pushes on the third and the first term, of at most 0.2 and 0.1."""
    return make_estimator(
        "actuator_gain",
        predict_change=predict_change,
        low=np.array([-0.2, -0.1, 0.0, 0.0]),
        high=np.array([0.2, 0.1, 1.3, 1.3]),
        nominal=np.array([0.0, 0.0, 1.0, 1.0]),
        act_dim=2,
        settings=settings,
        batch=batch,
        pushed=(2, 0),
    )


def drive(
    estimator: ContextEstimator,
    gain: Callable[[int], np.ndarray],
    steps: int,
    *,
    batch: tuple[int, ...] = (),
    wind: float = 0.0,
    size: float = 1.0,
) -> np.ndarray:
    """Run obs' = obs + f(obs, gain action) + wind + noise; return the context at every step, `(steps, ..., 2)`."""
    generator = np.random.default_rng(0)
    obs, contexts = generator.standard_normal((*batch, 3)), []
    for step in range(steps):
        action = size * generator.uniform(-1, 1, (*batch, 2))
        contexts.append(estimator.context(obs, action))
        noise = STD * generator.standard_normal(obs.shape)
        next_obs = obs + predict_change(obs, gain(step) * action)[0] + wind * np.sin(step) + noise
        estimator.update(obs, action, next_obs)
        obs = next_obs
    return np.array(contexts)


@every
@pytest.mark.parametrize("gain", [DEAD, WEAK, np.array([0.7, 0.7]), np.array([1.2, 0.9])])
def test_gains_are_found_within_a_second(name: str, gain: np.ndarray) -> None:
    estimator = make(name)
    found = drive(estimator, lambda _: gain, steps=100)
    np.testing.assert_allclose(found[20:], np.broadcast_to(gain, (80, 2)), atol=0.05)
    assert estimator.health().confidence > 0.9
    assert 0.3 < estimator.health().residual < 3.0


def test_the_original_robot_is_nominal_to_the_bit() -> None:
    # Gains that explain nothing are not used.
    assert (drive(make(), lambda _: NOMINAL, steps=300)[50:] == NOMINAL).mean() > 0.95


@every
def test_a_motor_that_dies_is_noticed_and_one_that_comes_back_too(name: str) -> None:
    found = drive(make(name), lambda step: NOMINAL if step < 100 or step >= 200 else DEAD, steps=300)
    np.testing.assert_allclose(found[120:200].mean(0), DEAD, atol=0.05)
    np.testing.assert_allclose(found[230:].mean(0), NOMINAL, atol=0.05)


def test_a_motor_that_is_not_used_keeps_the_gain_that_it_had() -> None:
    estimator, generator = make(), np.random.default_rng(1)
    obs = np.zeros(3)
    for _ in range(100):
        action = np.array([generator.uniform(-1, 1), 0.0])
        next_obs = obs + predict_change(obs, DEAD * action)[0] + STD * generator.standard_normal(3)
        estimator.update(obs, action, next_obs)
        obs = next_obs
    assert estimator.context(obs, None)[1] == 1.0


def test_what_gains_do_not_explain_changes_nothing() -> None:
    # A wind of ten standard deviations, and hardly any command.
    estimator = make()
    found = drive(estimator, lambda _: NOMINAL, steps=200, wind=0.1, size=0.01)
    assert (found[100:] == NOMINAL).all()
    assert estimator.health().confidence == 0.0


@every
def test_lanes_know_nothing_of_one_another(name: str) -> None:
    gains = np.array([DEAD, NOMINAL, WEAK])
    together = drive(make(name, batch=(3,)), lambda _: gains, steps=60, batch=(3,))
    np.testing.assert_allclose(together[40:].mean(0), gains, atol=0.05)


@every
def test_lanes_left_out_stay_as_they_are(name: str) -> None:
    estimator = make(name, batch=(2,))
    drive(estimator, lambda _: np.array([DEAD, DEAD]), steps=30, batch=(2,))
    before = estimator.context(np.zeros((2, 3)), None)
    obs, action = np.ones((2, 3)), np.ones((2, 2))
    estimator.update(obs, action, obs + 5.0, valid=np.array([True, False]))
    assert (estimator.context(obs, None)[1] == before[1]).all()


@every
@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e9])
def test_broken_numbers_are_nominal_until_there_are_good_ones(name: str, broken: float) -> None:
    estimator = make(name)
    drive(estimator, lambda _: DEAD, steps=50)
    estimator.update(np.zeros(3), np.ones(2), np.array([0.0, broken, 0.0]))
    assert (estimator.context(np.zeros(3), None) == NOMINAL).all()
    estimator.update(np.zeros(3), np.ones(2), predict_change(np.zeros(3), DEAD)[0])
    np.testing.assert_allclose(estimator.context(np.zeros(3), None), DEAD, atol=0.05)


@every
def test_gains_stay_in_the_range_of_the_policy(name: str) -> None:
    found = drive(make(name), lambda _: np.array([3.0, -0.5]), steps=100)
    assert (found >= 0).all() and (found <= 1.3).all()
    np.testing.assert_allclose(found[-1], [1.3, 0.0], atol=0.05)


def test_a_push_is_the_mean_of_what_gains_leave_over() -> None:
    estimator = make_pushed(forgetting=0.9)
    for _ in range(3):
        # Nothing is sent, so that no gain can explain it.
        estimator.update(np.zeros(3), np.zeros(2), np.array([-0.3, 9.0, 0.1]))
    # Three steps weigh 1 + 0.9 + 0.81 = 2.71, beside ten without a push; the first term's -0.06396 is within its range.
    push = 2.71 / 12.71
    np.testing.assert_allclose(estimator.context(np.zeros(3), None), [0.1 * push, -0.3 * push, 1.0, 1.0])
    for _ in range(100):
        estimator.update(np.zeros(3), np.zeros(2), np.array([-0.3, 0.0, 0.1]))
    # In the end ten steps stand against ten: 0.1 / 2, and -0.3 / 2, of which the policy knows -0.1.
    np.testing.assert_allclose(estimator.context(np.zeros(3), None)[:2], [0.05, -0.1], atol=1e-5)
    estimator.reset()
    np.testing.assert_array_equal(estimator.context(np.zeros(3), None), [0, 0, 1, 1])


def test_one_wild_step_makes_no_push() -> None:
    estimator = make_pushed()
    estimator.update(np.zeros(3), np.zeros(2), np.array([1e5, 0.0, 0.0]))
    # No step counts for more than 7 times the largest push, 0.7, which is averaged with ten steps without any.
    assert estimator.context(np.zeros(3), None)[1] == pytest.approx(0.7 / 11)


def test_pushes_and_gains_are_told_apart_lane_by_lane() -> None:
    estimator, generator = make_pushed((2,)), np.random.default_rng(2)
    gains, push = np.array([DEAD, NOMINAL]), np.array([[0.05, 0.0, 0.15], [0.0, 0.0, 0.0]])
    obs = np.zeros((2, 3))
    for _ in range(300):
        action = generator.uniform(-1, 1, (2, 2))
        change = predict_change(obs, gains * action)[0] + push + STD * generator.standard_normal((2, 3))
        estimator.update(obs, action, obs + change)
        obs = obs + change
    told = estimator.context(obs, None)
    # 50 steps stand against ten, so that five sixths of a push are told.
    np.testing.assert_allclose(told[:, :2], push[:, [2, 0]] * 5 / 6, atol=0.02)
    np.testing.assert_allclose(told[:, 2:], gains, atol=0.1)


@pytest.mark.parametrize("broken", [np.nan, 1e9])
def test_broken_numbers_tell_no_push_until_there_are_good_ones(broken: float) -> None:
    estimator = make_pushed()
    for _ in range(20):
        estimator.update(np.zeros(3), np.zeros(2), np.array([0.05, 0.0, 0.1]))
    before = estimator.context(np.zeros(3), None)
    estimator.update(np.zeros(3), np.zeros(2), np.array([broken, 0.0, 0.1]))
    np.testing.assert_array_equal(estimator.context(np.zeros(3), None), [0, 0, 1, 1])
    estimator.update(np.zeros(3), np.zeros(2), np.array([0.05, 0.0, 0.1]))
    assert (np.abs(estimator.context(np.zeros(3), None)[:2]) > np.abs(before[:2])).all()


def test_only_least_squares_tells_pushes() -> None:
    with pytest.raises(UserError, match="the estimator 'history' tells no pushes; actuator_gain does"):
        make_estimator(
            "history",
            predict_change=predict_change,
            low=np.zeros(3),
            high=np.ones(3),
            nominal=np.ones(3),
            act_dim=2,
            adapt=adapt,
            pushed=(0,),
        )
