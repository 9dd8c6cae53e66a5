"""Every estimator of a scaling of the change, on linear systems whose true scaling is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from adapters.errors import UserError
from deploy.context import ESTIMATORS as KINDS
from deploy.context import ContextEstimator, PredictChange, make_estimator

ESTIMATORS = [name for name, kind in KINDS.items() if kind == "delta_scale"]
OBS_DIM, ACT_DIM = 3, 2
LOW, HIGH, NOMINAL = np.full(OBS_DIM, 0.5), np.full(OBS_DIM, 1.5), np.ones(OBS_DIM)
STD = 0.01
# A stable system, driven by random actions: its changes of state are some thirty predicted standard deviations.
DRIFT = np.array([[-0.4, 0.1, 0.0], [0.0, -0.3, 0.1], [0.1, 0.0, -0.5]])
PUSH = np.array([[0.5, 0.1, 0.3], [-0.2, 0.6, 0.3]])
SCALING = np.array([0.85, 1.1, 1.2])
# The true scalings that each estimator is shown: `shared_scale` is for changes that all dimensions share.
SCALINGS = dict.fromkeys(ESTIMATORS, SCALING) | {"shared_scale": np.full(OBS_DIM, 1.2)}
AFTER = dict.fromkeys(ESTIMATORS, np.array([1.15, 0.8, 0.85])) | {"shared_scale": np.full(OBS_DIM, 0.8)}
# Those that fit a scaling to what is observed, and know how much of it they explain.
FITTED = [name for name in ESTIMATORS if name != "linear_forward"]
# How far a single step's context may stray: linear_forward divides by predicted changes as small as their noise.
JITTER = dict.fromkeys(ESTIMATORS, 0.02) | {"linear_forward": 0.08}


def predict_change(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The world model: exact for the original dynamics."""
    return obs @ DRIFT.T + action @ PUSH, np.full(np.shape(obs), STD)


def given_change(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A world model whose prediction is the observation itself, so that a test chooses every predicted change."""
    return np.asarray(obs, dtype=np.float64), np.full(np.shape(obs), STD)


def make(
    name: str, batch: tuple[int, ...] = (), predict: PredictChange = predict_change, **chosen: Any
) -> ContextEstimator:
    """An estimator over the whole range of the policy, which is wider than what the defaults pass on."""
    wide = {"least": 0.5, "most": 1.5, "min_explained": 0.05} if name in FITTED else {"warm_up": 100, "half_width": 0.5}
    chosen = wide | chosen
    return make_estimator(
        name,
        predict_change=predict,
        low=LOW,
        high=HIGH,
        nominal=NOMINAL,
        act_dim=ACT_DIM,
        settings=chosen,
        batch=batch,
    )


@dataclasses.dataclass
class Episode:
    """What an estimator said at every step: `(steps, ..., obs_dim)` and `(steps, ...)`."""

    context: np.ndarray
    changed: np.ndarray


def drive(
    estimator: ContextEstimator,
    scaling: Callable[[int], np.ndarray],
    steps: int,
    *,
    seed: int = 0,
    batch: tuple[int, ...] = (),
    noise: float = STD,
) -> Episode:
    """Run one episode of obs' = obs + z (DRIFT obs + PUSH action) + noise, as a controller would."""
    generator = np.random.default_rng(seed)
    obs = generator.standard_normal((*batch, OBS_DIM))
    contexts, changed = [], []
    for step in range(steps):
        action = generator.uniform(-1, 1, (*batch, ACT_DIM))
        contexts.append(estimator.context(obs, action))
        change = scaling(step) * predict_change(obs, action)[0]
        next_obs = obs + change + noise * generator.standard_normal(obs.shape)
        estimator.update(obs, action, next_obs)
        changed.append(estimator.health().changed)
        obs = next_obs
    return Episode(np.array(contexts), np.array(changed))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_converges_to_the_true_scaling(name: str) -> None:
    estimator = make(name)
    episode = drive(estimator, lambda _: SCALINGS[name], steps=400)
    np.testing.assert_allclose(episode.context[-50:].mean(0), SCALINGS[name], atol=0.02)
    health = estimator.health()
    assert health.confidence > 0.9
    # The residual of a model with the right noise is one predicted standard deviation.
    assert 0.3 < health.residual < 3.0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_unchanged_dynamics_stay_nominal(name: str) -> None:
    episode = drive(make(name), lambda _: NOMINAL, steps=600)
    settled = episode.context[100:]
    np.testing.assert_allclose(settled.mean(0), NOMINAL, atol=0.02)
    np.testing.assert_allclose(settled, np.broadcast_to(NOMINAL, settled.shape), atol=JITTER[name])
    assert not episode.changed.any()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_starts_nominal_and_reset_forgets(name: str) -> None:
    estimator = make(name)
    before = drive(estimator, lambda _: SCALINGS[name], steps=300)
    np.testing.assert_array_equal(before.context[0], NOMINAL)
    estimator.reset()
    assert estimator.health().confidence == 0.0
    after = drive(estimator, lambda _: SCALINGS[name], steps=300)
    np.testing.assert_array_equal(before.context, after.context)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["obs", "action", "next_obs"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_non_finite_input_gives_nominal_context(name: str, field: str, bad: float) -> None:
    # The prediction reads obs and action, so a bad number in either reaches every estimator.
    estimator = make(name)
    row = {"obs": np.ones(OBS_DIM), "action": np.ones(ACT_DIM), "next_obs": np.zeros(OBS_DIM)}
    row[field][0] = bad
    for _ in range(150):
        with np.errstate(invalid="ignore"):
            estimator.update(**row)
    np.testing.assert_array_equal(estimator.context(np.ones(OBS_DIM), np.ones(ACT_DIM)), NOMINAL)
    assert estimator.health().confidence == 0.0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_bad_row_is_nominal_for_one_step_and_forgets_nothing(name: str) -> None:
    estimator = make(name)
    drive(estimator, lambda _: SCALINGS[name], steps=300)
    obs, action = np.full(OBS_DIM, 0.3), np.full(ACT_DIM, 0.5)
    with np.errstate(invalid="ignore"):
        estimator.update(obs, action, np.full(OBS_DIM, np.nan))
    assert estimator.health().confidence == 0.0
    np.testing.assert_array_equal(estimator.context(obs, action), NOMINAL)
    estimator.update(obs, action, obs + SCALINGS[name] * predict_change(obs, action)[0])
    assert estimator.health().confidence > 0.9
    np.testing.assert_allclose(estimator.context(obs, action), SCALINGS[name], atol=0.03)


@pytest.mark.parametrize("spike", [1.0, 1e3, 1e9, 1e200])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_glitch_of_a_sensor_is_not_a_change(name: str, spike: float) -> None:
    estimator = make(name)
    drive(estimator, lambda _: SCALINGS[name], steps=300)
    obs, action = np.full(OBS_DIM, 0.3), np.full(ACT_DIM, 0.5)
    next_obs = obs + SCALINGS[name] * predict_change(obs, action)[0]
    estimator.update(obs, action, next_obs + np.array([spike, 0.0, 0.0]))
    assert not estimator.health().changed
    for _ in range(5):
        estimator.update(obs, action, next_obs)
        assert not estimator.health().changed
    # One spike moves the context by no more than a few steps of noise would.
    np.testing.assert_allclose(estimator.context(obs, action), SCALINGS[name], atol=0.05)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_excitation_gives_nominal_context(name: str) -> None:
    estimator = make(name)
    still, none = np.zeros(OBS_DIM), np.zeros(ACT_DIM)
    for _ in range(200):
        estimator.update(still, none, still)
        np.testing.assert_array_equal(estimator.context(still, none), NOMINAL)


@pytest.mark.parametrize("name", FITTED)
def test_evidence_fades_where_the_robot_stands_still(name: str) -> None:
    # At forgetting 0.99 the evidence of 300 moving steps is worth 0.99^2000 = 2e-9 of itself after 2,000 still ones.
    estimator = make(name)
    drive(estimator, lambda _: SCALINGS[name], steps=300)
    still, none = np.zeros(OBS_DIM), np.zeros(ACT_DIM)
    for _ in range(2_000):
        estimator.update(still, none, still)
    np.testing.assert_allclose(estimator.context(still, none), NOMINAL, atol=1e-3)
    assert estimator.health().confidence < 0.01


@pytest.mark.parametrize("name", ESTIMATORS)
def test_invalid_lanes_are_left_alone(name: str) -> None:
    estimator = make(name, batch=(2,))
    drive(estimator, lambda _: SCALINGS[name], steps=200, batch=(2,))
    obs, action = np.full((2, OBS_DIM), 0.3), np.full((2, ACT_DIM), 0.5)
    states = [_arrays(estimator, lane) for lane in (0, 1)]
    estimator.update(obs, action, obs + 0.7, valid=np.array([False, True]))
    assert all(np.array_equal(a, b) for a, b in zip(states[0], _arrays(estimator, 0), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(states[1], _arrays(estimator, 1), strict=True))


def _arrays(holder: Any, lane: int) -> list[np.ndarray]:
    """Copies of what an estimator remembers of one lane of two, its change detector included.

    `changed` is what the last update said, not memory.
    """
    found: list[np.ndarray] = []
    for name, value in sorted(vars(holder).items()):
        if name == "detector":
            found += _arrays(value, lane)
        elif name == "sums":
            found.append(value[:, lane].copy())
        elif isinstance(value, np.ndarray) and value.shape[:1] == (2,) and name != "changed":
            found.append(value[lane].copy())
    return found


@pytest.mark.parametrize("name", ESTIMATORS)
def test_batch_equals_singles(name: str) -> None:
    lanes, steps = 4, 300
    scalings = np.linspace(0.8, 1.2, lanes)[:, None] * np.ones(OBS_DIM)
    generator = np.random.default_rng(3)
    obs = generator.standard_normal((steps, lanes, OBS_DIM))
    action = generator.uniform(-1, 1, (steps, lanes, ACT_DIM))
    next_obs = obs + scalings * predict_change(obs, action)[0] + STD * generator.standard_normal(obs.shape)
    next_obs[150:] += 0.2 * (next_obs[150:] - obs[150:])

    together = make(name, batch=(lanes,))
    alone = [make(name) for _ in range(lanes)]
    for t in range(steps):
        expected = np.array([e.context(obs[t, i], action[t, i]) for i, e in enumerate(alone)])
        np.testing.assert_allclose(together.context(obs[t], action[t]), expected, rtol=0, atol=1e-12)
        together.update(obs[t], action[t], next_obs[t])
        for i, estimator in enumerate(alone):
            estimator.update(obs[t, i], action[t, i], next_obs[t, i])
        for whole, parts in zip(together.health(), zip(*(e.health() for e in alone), strict=True), strict=True):
            np.testing.assert_allclose(whole, np.array(parts), rtol=1e-9)


CHANGE_AT = 500
# linear_forward learns a whole matrix anew where the others learn a number, and smooths over some ten steps on top.
ARRIVES_WITHIN = dict.fromkeys(ESTIMATORS, 50) | {"linear_forward": 100}


def steps_to_move(name: str, **change: float) -> tuple[float, np.ndarray]:
    """Steps after a sudden change until the context has gone 90 % of its way (infinite: not in 300 steps)."""
    estimator = make(name, **({"change": change} if change else {}))
    before, after = SCALINGS[name], AFTER[name]
    episode = drive(estimator, lambda step: before if step < CHANGE_AT else after, steps=CHANGE_AT + 300)
    way = after - before
    moved = ((episode.context[CHANGE_AT:] - before) * way).sum(-1) / np.square(way).sum()
    arrived = np.flatnonzero(moved >= 0.9)
    return (float(arrived[0]) if len(arrived) else np.inf), episode.changed


@pytest.mark.parametrize("name", ESTIMATORS)
def test_sudden_change_is_noticed_and_followed(name: str) -> None:
    steps, changed = steps_to_move(name)
    noticed = np.flatnonzero(changed[CHANGE_AT:])
    assert not changed[:CHANGE_AT].any()
    assert len(noticed) and noticed[0] < 30
    assert steps <= ARRIVES_WITHIN[name]
    blind_steps, blind_changed = steps_to_move(name, ratio=np.inf)
    assert not blind_changed.any()
    assert blind_steps > 1.5 * steps


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(max_examples=60)
@given(
    rows=arrays.arrays(np.float64, (40, 2 * OBS_DIM + ACT_DIM), elements=st.floats(width=64)), seed=st.integers(0, 99)
)
def test_context_stays_in_range_whatever_comes(name: str, rows: np.ndarray, seed: int) -> None:
    estimator = make(name, **({"warm_up": 5} if name == "linear_forward" else {}))
    drive(estimator, lambda _: SCALINGS[name], steps=20, seed=seed)
    with np.errstate(all="ignore"):
        for row in rows:
            obs, action, next_obs = np.split(row, [OBS_DIM, OBS_DIM + ACT_DIM])
            estimator.update(obs, action, next_obs)
            context = estimator.context(next_obs, action)
            assert np.isfinite(context).all()
            assert (context >= LOW).all() and (context <= HIGH).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_memory_does_not_grow(name: str) -> None:
    estimator = make(name)
    drive(estimator, lambda _: SCALINGS[name], steps=5)
    before = _memory(estimator)
    drive(estimator, lambda _: SCALINGS[name], steps=500)
    assert _memory(estimator) == before


def _memory(holder: Any) -> int:
    """Bytes of every array, and entries of everything else with a length."""
    total = 0
    for value in vars(holder).values():
        if isinstance(value, np.ndarray):
            total += value.nbytes
        elif hasattr(value, "__len__"):
            total += len(value)
        elif hasattr(value, "__dict__") and not callable(value):
            total += _memory(value)
    return total


def test_residual_beyond_reason_gives_nominal_context() -> None:
    # A good model's residual is one predicted standard deviation; the limit is set below it, so nothing is trusted.
    estimator = make("linear_forward", max_residual=0.1)
    episode = drive(estimator, lambda _: SCALING, steps=300)
    np.testing.assert_array_equal(episode.context, np.broadcast_to(NOMINAL, (300, OBS_DIM)))
    assert estimator.health().confidence == 0.0


@pytest.mark.parametrize("name", FITTED)
def test_change_that_no_scaling_explains_gives_nominal_context(name: str) -> None:
    # What is observed is the prediction and noise ten times as large: at z = 1 as good as at any other z.
    generator = np.random.default_rng(0)
    predicted = 0.02 * generator.standard_normal((300, OBS_DIM))
    observed = predicted + 0.2 * generator.standard_normal(predicted.shape)
    estimator = make(name, predict=given_change)
    np.testing.assert_array_equal(feed(estimator, predicted, observed), NOMINAL)
    assert estimator.health().confidence == 0.0
    assert estimator.health().residual > 10.0


@pytest.mark.parametrize("name", FITTED)
def test_scaling_beyond_the_trained_range_gives_nominal_context(name: str) -> None:
    estimator = make(name)
    episode = drive(estimator, lambda _: 1.8 * NOMINAL, steps=300)
    np.testing.assert_array_equal(episode.context[50:], np.broadcast_to(NOMINAL, (250, OBS_DIM)))
    assert estimator.health().confidence == 0.0


def feed(estimator: ContextEstimator, predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Show an estimator over `given_change` rows of predicted and observed change; return the context after them."""
    none = np.zeros(ACT_DIM)
    for dx, dy in zip(predicted, observed, strict=True):
        estimator.update(dx, none, dx + dy)
    return estimator.context(predicted[-1], none)


def test_scale_is_weighted_least_squares() -> None:
    # With forgetting 1 and noise below the predicted one (so that s2 is 1), the estimate is the least-squares
    # solution of [dx / std; 1 / prior_std] z = [dy / std; 1 / prior_std], dimension by dimension.
    generator = np.random.default_rng(0)
    predicted = 0.02 * generator.standard_normal((60, OBS_DIM))
    observed = SCALING * predicted + 0.3 * STD * generator.standard_normal(predicted.shape)
    prior_std = 0.2
    found = feed(
        make("scale", predict=given_change, forgetting=1.0, prior_std=prior_std, min_explained=0.0), predicted, observed
    )
    for d in range(OBS_DIM):
        design = np.append(predicted[:, d] / STD, 1 / prior_std)[:, None]
        target = np.append(observed[:, d] / STD, 1 / prior_std)
        expected = np.linalg.lstsq(design, target, rcond=None)[0][0]
        assert found[d] == pytest.approx(expected, rel=1e-9)


def test_affine_is_weighted_least_squares_with_an_offset() -> None:
    # As above with a column of ones; the offset has no prior.
    generator = np.random.default_rng(1)
    predicted = 0.02 * (1.0 + generator.standard_normal((60, OBS_DIM)))
    observed = SCALING * predicted + 0.004 + 0.3 * STD * generator.standard_normal(predicted.shape)
    found = feed(
        make("affine", predict=given_change, forgetting=1.0, prior_std=0.2, min_explained=0.0), predicted, observed
    )
    for d in range(OBS_DIM):
        design = np.column_stack([np.append(predicted[:, d] / STD, 1 / 0.2), np.append(np.full(60, 1 / STD), 0.0)])
        target = np.append(observed[:, d] / STD, 1 / 0.2)
        expected = np.linalg.lstsq(design, target, rcond=None)[0][0]
        assert found[d] == pytest.approx(expected, rel=1e-6)


def test_shared_scale_is_weighted_least_squares_over_all_dimensions() -> None:
    generator = np.random.default_rng(3)
    predicted = 0.02 * generator.standard_normal((60, OBS_DIM))
    observed = 1.2 * predicted + 0.3 * STD * generator.standard_normal(predicted.shape)
    estimator = make("shared_scale", predict=given_change, forgetting=1.0, prior_std=0.2, min_explained=0.0)
    design = np.append(predicted.ravel() / STD, 1 / 0.2)[:, None]
    target = np.append(observed.ravel() / STD, 1 / 0.2)
    expected = np.linalg.lstsq(design, target, rcond=None)[0][0]
    np.testing.assert_allclose(feed(estimator, predicted, observed), expected * NOMINAL, rtol=1e-9)


def test_constant_force_goes_into_the_offset() -> None:
    # dy = dx + 0.1 with dx of mean 0.2 and variance 0.01: regression through the origin gives
    # 1 + 0.1 E[dx] / E[dx^2] = 1 + 0.02 / 0.05 = 1.4; with an offset the scale is 1.
    generator = np.random.default_rng(2)
    predicted = 0.2 + 0.1 * generator.standard_normal((400, OBS_DIM))
    observed = predicted + 0.1
    np.testing.assert_allclose(feed(make("affine", predict=given_change), predicted, observed), NOMINAL, atol=0.01)
    np.testing.assert_allclose(feed(make("scale", predict=given_change), predicted, observed), 1.4 * NOMINAL, atol=0.05)


def test_linear_forward_needs_the_action() -> None:
    assert make("linear_forward").needs_action
    assert not make("scale").needs_action


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("kalman", {}, "no context estimator 'kalman'.*linear_forward, scale, affine"),
        ("scale", {"ridge": 1.0}, "'scale' has no setting 'ridge'.*forgetting"),
        ("linear_forward", {"change": {"speed": 1}}, "'linear_forward.change' has no setting 'speed'"),
        ("scale", {"forgetting": "much"}, "'scale' has forgetting='much': Input should be a valid number"),
        ("scale", {"change": 5}, "settings of the estimator 'scale.change' are 5; give each by its name"),
    ],
)
def test_unknown_names_are_refused(name: str, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(name, **chosen)


@pytest.mark.parametrize("name", FITTED)
def test_only_the_chosen_range_is_passed_on(name: str) -> None:
    up, down = make(name, least=1.0, most=1.1), make(name, least=1.0, most=1.1)
    above = drive(up, lambda _: np.full(OBS_DIM, 1.2), steps=200).context[-1]
    below = drive(down, lambda _: np.full(OBS_DIM, 0.8), steps=200).context[-1]
    np.testing.assert_allclose(above, 1.1)
    np.testing.assert_allclose(below, 1.0)


@pytest.mark.parametrize("name", FITTED)
def test_a_fit_that_explains_too_little_is_not_passed_on(name: str) -> None:
    generator = np.random.default_rng(0)
    fits = {share: make(name, min_explained=share) for share in (0.0, 0.5)}
    for _ in range(300):
        obs, action = generator.standard_normal(OBS_DIM), generator.uniform(-1, 1, ACT_DIM)
        # Half of the scaling's effect, drowned in a disturbance that no scaling explains.
        disturbance = 0.3 * generator.standard_normal(OBS_DIM)
        next_obs = obs + 1.2 * predict_change(obs, action)[0] + disturbance
        for estimator in fits.values():
            estimator.update(obs, action, next_obs)
    assert np.abs(fits[0.0].context(obs, action) - 1.0).max() > 0.05
    np.testing.assert_array_equal(fits[0.5].context(obs, action), NOMINAL)
