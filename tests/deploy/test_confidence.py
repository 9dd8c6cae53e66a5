"""What a controller does where the prior finds the robot too far from the demonstrations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from leg import ACT, DT, OBS, act, stand_in

from adapters.errors import UserError
from deploy.confidence import confidence
from deploy.controller import Controller, Reason, State
from deploy.spec import PriorSpec

SPEC = PriorSpec(near=0.1, far=0.5)


def predict(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A prior whose deviation is 0.1 at the origin and grows by 0.4 for every unit of the first observation."""
    std = 0.1 + 0.4 * np.abs(np.asarray(obs)[..., :1])
    return np.zeros((*std.shape[:-1], ACT)), np.repeat(std, ACT, -1)


def controller(prior: Any = predict, **settings: Any) -> Controller:
    bundle = stand_in(context=False)
    bundle.manifest = bundle.manifest.model_copy(update={"prior": SPEC})
    bundle.predict_prior = prior
    return Controller(bundle, **settings)


def at(distance: float) -> np.ndarray:
    return np.array([distance, 0.3, 0.0, 0.0, 0.0])


def test_confidence_by_hand() -> None:
    # (0.5 - std) / (0.5 - 0.1), between 0 and 1; the mean of the two commands' deviations counts.
    std = np.array([[0.1, 0.1], [0.2, 0.4], [0.9, 0.9], [0.0, 0.0], [np.nan, 0.1]])
    np.testing.assert_allclose(confidence(std, SPEC), [1.0, 0.5, 0.0, 1.0, 0.0])


def test_prior_that_does_not_grow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"next to its data and 0\.1 far"):
        PriorSpec(near=0.2, far=0.1)


def test_by_default_the_confidence_is_told_and_nothing_else() -> None:
    command = controller().step(0.0, at(0.8))
    assert command.confidence == pytest.approx(0.2) and command.reason == Reason.NONE
    np.testing.assert_allclose(command.action, act(at(0.8), None), rtol=1e-6)


def test_a_lone_policy_runs_without_the_prior_that_it_left_behind() -> None:
    lane = controller(prior=None)
    command = lane.step(0.0, at(0.8))
    assert (command.state, command.confidence) == (State.RUNNING, None)
    with pytest.raises(UserError, match="no prior that tells its confidence; leave hold out"):
        controller(prior=None, low_confidence="hold")


def test_slows_down_in_proportion() -> None:
    lane = controller(low_confidence="slow")
    np.testing.assert_allclose(lane.step(0.0, at(0.4)).action, act(at(0.4), None), rtol=1e-6)
    slowed = lane.step(DT, at(0.8))
    # Confidence 0.2 of the 0.5 that is asked for: two fifths of the command are left, the rest is the safe one, 0.
    np.testing.assert_allclose(slowed.action, 0.4 * act(at(0.8), None), rtol=1e-6)
    assert (slowed.state, slowed.reason) == (State.RUNNING, Reason.SLOWED)


def test_holds_while_in_doubt_and_goes_on_after() -> None:
    lane = controller(low_confidence="hold", least_confidence=0.3)
    states = [int(lane.step(DT * step, at(x)).state) for step, x in enumerate((0.0, 0.8, 0.8, 0.6))]
    assert states == [State.RUNNING, State.HOLD, State.HOLD, State.RUNNING]
    assert "too far from the demonstrations" in lane.step(1.0, at(0.9)).explanation


def test_hands_over_until_cleared() -> None:
    lane = controller(low_confidence="hand_over")
    lane.step(0.0, at(0.0))
    taken = lane.step(DT, at(0.9))
    assert (taken.state, taken.reason) == (State.STOPPED, Reason.HANDED_OVER) and not taken.action.any()
    assert lane.step(2 * DT, at(0.0)).reason == Reason.HANDED_OVER
    lane.clear()
    assert lane.step(3 * DT, at(0.0)).state == State.RUNNING


def test_each_robot_for_itself() -> None:
    lane = controller(low_confidence="hand_over", batch=(3,))
    lane.step(0.0, np.zeros((3, OBS)))
    command = lane.step(DT, np.stack([at(0.0), at(0.9), at(0.1)]))
    np.testing.assert_array_equal(command.state, [State.RUNNING, State.STOPPED, State.RUNNING])


@pytest.mark.parametrize("answer", [np.nan, np.inf])
def test_prior_that_gives_no_number_is_no_confidence(answer: float) -> None:
    lane = controller(lambda obs: (np.zeros(ACT), np.full(ACT, answer)), low_confidence="hold")
    assert lane.step(0.0, at(0.0)).state == State.HOLD


def test_prior_that_fails_ends_in_the_safe_command() -> None:
    def broken(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise RuntimeError("no such graph")

    command = controller(broken).step(0.0, at(0.0))
    assert command.state == State.HOLD and not command.action.any() and "no such graph" in command.error


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"low_confidence": "panic"}, "choose run, slow, hold or hand_over"), ({"least_confidence": 0.0}, "above 0")],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        controller(**settings)
    with pytest.raises(UserError, match="no prior that tells its confidence"):
        Controller(stand_in(context=False), low_confidence="hold")
