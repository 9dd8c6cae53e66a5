"""Caution: how a body's answer is scaled is found, and commands get smaller by that, and only where it is more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from leg import ACT, DT, MOTION, OBS, PUSH, STD, act, spec, stand_in

from deploy.caution import Caution
from deploy.controller import Controller
from deploy.spec import BundleSpec, CautionSpec

# The leg's velocities stand for a body's.
SPEC = CautionSpec(terms=(3, 4))


def predict(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return obs @ MOTION + action @ PUSH, np.full(np.shape(obs), STD)


def answers(scale: Any, steps: int, noise: float = 0.0, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    """Transitions of legs whose velocities change `scale` times as much as predicted."""
    generator = np.random.default_rng(seed)
    scale = np.asarray(scale, dtype=float)
    made, obs = [], np.zeros((*scale.shape, OBS))
    for _ in range(steps):
        action = generator.uniform(-1.0, 1.0, (*scale.shape, ACT))
        change, _ = predict(obs, action)
        change[..., 3:] *= scale[..., None]
        following = obs + change + noise * generator.standard_normal(obs.shape)
        made.append((obs, action, following))
        obs = 0.5 * following
    return made


def test_one_transition_by_hand() -> None:
    # One term, predicted 2 with a deviation of 1, observed 3. Sums: w p p = 4, w p v = 6, w v v = 9, one term. The
    # residual at z = 1 is 9 - 12 + 4 = 1 variance, so s2 = 1 and the prior weighs 1 / 0.1^2 = 100:
    # z = (6 + 100) / (4 + 100).
    caution = Caution(lambda obs, action: (np.array([2.0]), np.array([1.0])), CautionSpec(terms=(0,), slack=0.0))
    caution.update(np.zeros(1), np.zeros(1), np.array([3.0]))
    assert caution.scale == pytest.approx(106 / 104)
    # 2.5 times 2/104 is taken off the command.
    assert caution.share == pytest.approx(1 - 2.5 * 2 / 104)


@pytest.mark.parametrize(("scale", "share"), [(0.6, 1.0), (1.0, 1.0), (1.02, 1.0), (1.13, 0.75), (1.5, 0.5)])
def test_commands_shrink_by_how_much_more_the_body_answers(scale: float, share: float) -> None:
    # A share of 1 - 2.5 (z - 1.03), from 0.5 to 1: 0.75 at z = 1.13.
    caution = Caution(predict, SPEC)
    for transition in answers(scale, 100, noise=STD):
        caution.update(*transition)
    assert float(caution.scale) == pytest.approx(scale, abs=0.01)
    assert float(caution.share) == pytest.approx(share, abs=0.02)


def test_a_noisy_sensor_alone_makes_no_command_smaller() -> None:
    caution, shares = Caution(predict, SPEC), []
    for transition in answers(1.0, 500, noise=5 * STD):
        caution.update(*transition)
        shares.append(float(caution.share))
    assert min(shares) > 0.9 and np.mean(shares) > 0.99


def test_lanes_are_apart_and_what_is_not_valid_teaches_nothing() -> None:
    together, alone = Caution(predict, SPEC, (3,)), Caution(predict, SPEC)
    for obs, action, following in answers([1.2, 1.2, 1.2], 30):
        broken = following.copy()
        broken[2, 4] = np.nan
        together.update(obs, action, broken, valid=np.array([True, False, True]))
        alone.update(obs[0], action[0], following[0])
    np.testing.assert_allclose(together.scale, [float(alone.scale), 1.0, 1.0])
    assert alone.scale > 1.1
    alone.reset()
    assert alone.scale == 1.0 and alone.share == 1.0


@given(
    numbers=arrays(float, (20, OBS), elements=st.floats(allow_nan=True, allow_infinity=True)),
    actions=arrays(float, (20, ACT), elements=st.floats(-2, 2)),
)
@settings(max_examples=50, deadline=None)
def test_the_share_is_always_a_share(numbers: np.ndarray, actions: np.ndarray) -> None:
    caution = Caution(predict, SPEC)
    with np.errstate(all="ignore"):
        for before, action, after in zip(numbers[:-1], actions[:-1], numbers[1:], strict=True):
            caution.update(before, action, after)
            assert SPEC.least <= caution.share <= 1.0


def careful(policy: Any = act) -> Any:
    """The leg's bundle in memory, which is careful."""
    made = stand_in(policy, context=False)
    made.manifest = made.manifest.model_copy(update={"caution": SPEC})
    return made


def drive(controller: Controller, scale: float, steps: int = 80) -> list[Any]:
    """Let the controller drive a leg whose velocities answer `scale` times as much as predicted."""
    obs, commands = np.zeros(OBS), []
    for step in range(steps):
        command = controller.step(step * DT, obs)
        commands.append(command)
        change, _ = predict(obs, command.action)
        change[3:] *= scale
        obs = obs + change
    return commands


def waving(obs: np.ndarray, context: np.ndarray | None) -> np.ndarray:
    """A policy whose commands differ from step to step."""
    return act(obs, None) + 0.5 * np.sin(40.0 * obs.sum(-1, keepdims=True) + 1.0)


def test_the_controller_gives_the_share_and_says_so() -> None:
    asked = []

    def policy(obs: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        asked.append(np.clip(waving(obs, context), [-2.0, -1.0], [2.0, 3.0]))
        return asked[-1]

    commands = drive(Controller(careful(policy)), scale=1.5)
    assert commands[0].share == 1.0 and commands[-1].share == pytest.approx(0.5)
    for command, action in zip(commands, asked, strict=True):
        # The safe command is 0.
        np.testing.assert_allclose(command.action, command.share * action)


def test_a_body_that_answers_as_before_changes_nothing_to_the_bit() -> None:
    with_it, without = (drive(Controller(made), 1.0) for made in (careful(waving), stand_in(waving, context=False)))
    for one, other in zip(with_it, without, strict=True):
        np.testing.assert_array_equal(one.action, other.action)
        assert one.share == 1.0 and other.share is None


def test_caution_can_be_switched_off_and_forgotten() -> None:
    assert drive(Controller(careful(waving), context="nominal"), 1.5)[-1].share is None
    controller = Controller(careful(waving))
    drive(controller, 1.5)
    controller.adapt = False
    assert controller.step(100.0, np.zeros(OBS)).share == 1.0
    controller.adapt = True
    assert controller.step(100.02, np.zeros(OBS)).share < 1.0
    controller.reset_context()
    assert controller.step(100.04, np.zeros(OBS)).share == 1.0


def test_terms_that_are_not_observed_are_refused() -> None:
    whole = spec(context=False).model_dump() | {"caution": {"terms": [5]}}
    with pytest.raises(ValueError, match=r"caution\.terms names term 5 of 5, counted from 0"):
        BundleSpec.model_validate(whole)
