"""Caution: that a light body is told, that its wild motion is told, and that both together make commands smaller."""

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
SPEC = CautionSpec(terms=(3, 4), usual=(STD,) * OBS, limit=1.5)


def predict(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The leg's world model, which is as sure as usual."""
    return obs @ MOTION + action @ PUSH, np.full(np.shape(obs), STD)


def unsure(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, four times as unsure as usual."""
    change, std = predict(obs, action)
    return change, 4 * std


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
    # z = (6 + 100) / (4 + 100) = 1 + 2/104.
    # The deviation is 4.12 times the usual 1 / 4.12, and the limit 4 times: e = 2 (4.12 / 4 - 1) = 0.06, and so is m.
    spec = CautionSpec(terms=(0,), usual=(1 / 4.12,), limit=4.0, slack=0.01, strength=5.0)
    caution = Caution(lambda obs, action: (np.array([2.0]), np.array([1.0])), spec)
    caution.update(np.zeros(1), np.zeros(1), np.array([3.0]))
    assert caution.scale == pytest.approx(106 / 104)
    assert caution.unusual == pytest.approx(0.06)
    # Half way from 0.02 to 0.1, so half of 5 times 2/104 - 0.01 is taken off the command.
    assert caution.share == pytest.approx(1 - 0.5 * 5.0 * (2 / 104 - 0.01))


def test_the_mean_rises_fast_and_falls_slowly() -> None:
    # After the first 30 steps, with e = 0, one with e = 1 raises the mean from 0 to 1/30; the next, with e = 0, takes
    # of that 1/32 only, since so few steps have been seen, and one after 1,000 steps only a thousandth.
    wild = [False]
    caution = Caution(lambda obs, action: (unsure if wild[0] else predict)(obs, action), SPEC)

    def step(is_wild: bool) -> float:
        wild[0] = is_wild
        caution.update(np.zeros(OBS), np.zeros(ACT), np.zeros(OBS))
        return float(caution.unusual)

    assert [step(False) for _ in range(30)] == [0.0] * 30
    assert step(True) == pytest.approx(1 / 30)
    assert step(False) == pytest.approx(31 / 32 / 30)
    for _ in range(1000):
        before = step(False)
    assert step(False) == pytest.approx(0.999 * before)


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.13, 1.5])
def test_how_much_more_the_body_answers_is_found(scale: float) -> None:
    caution = Caution(predict, SPEC)
    for transition in answers(scale, 100, noise=STD):
        caution.update(*transition)
    assert float(caution.scale) == pytest.approx(scale, abs=0.01)


@pytest.mark.parametrize(
    ("model", "scale", "share"),
    [(predict, 1.2, 1.0), (unsure, 1.0, 1.0), (unsure, 0.8, 1.0), (unsure, 1.13, 0.75), (unsure, 1.5, 0.5)],
)
def test_commands_shrink_for_light_bodies_in_wild_motion_alone(model: Any, scale: float, share: float) -> None:
    # A share of 1 - 2.5 (z - 1.03), from 0.5 to 1: 0.75 at z = 1.13.
    caution = Caution(model, SPEC)
    for transition in answers(scale, 100):
        caution.update(*transition)
    assert caution.share == pytest.approx(share, abs=0.02)


def test_lanes_are_apart_and_what_is_not_valid_teaches_nothing() -> None:
    together, alone = Caution(unsure, SPEC, (3,)), Caution(unsure, SPEC)
    for obs, action, following in answers([1.2, 1.2, 1.2], 30):
        broken = following.copy()
        broken[2, 4] = np.nan
        together.update(obs, action, broken, valid=np.array([True, False, True]))
        alone.update(obs[0], action[0], following[0])
    np.testing.assert_allclose(together.scale, [float(alone.scale), 1.0, 1.0])
    np.testing.assert_allclose(together.unusual, [1.0, 0.0, 0.0])
    assert alone.scale > 1.1 and alone.share < 0.9
    alone.reset()
    assert alone.scale == 1.0 and alone.share == 1.0


def test_a_model_without_a_deviation_teaches_nothing() -> None:
    caution = Caution(lambda obs, action: (predict(obs, action)[0], np.zeros(OBS)), SPEC)
    caution.update(np.zeros(OBS), np.ones(ACT), np.ones(OBS))
    assert caution.scale == 1.0 and caution.unusual == 0.0 and caution.share == 1.0


@given(
    numbers=arrays(float, (20, OBS), elements=st.floats(allow_nan=True, allow_infinity=True)),
    actions=arrays(float, (20, ACT), elements=st.floats(-2, 2)),
)
@settings(max_examples=50)
def test_the_share_is_always_a_share(numbers: np.ndarray, actions: np.ndarray) -> None:
    caution = Caution(predict, SPEC)
    with np.errstate(all="ignore"):
        for before, action, after in zip(numbers[:-1], actions[:-1], numbers[1:], strict=True):
            caution.update(before, action, after)
            assert SPEC.least <= caution.share <= 1.0


def careful(policy: Any = act, model: Any = unsure) -> Any:
    """The leg's bundle in memory, careful, with a world model that is unsure."""
    made = stand_in(policy, context=False)
    made.predict_change = model
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
        np.testing.assert_allclose(command.action, command.share * action, atol=1e-12)


def test_a_body_that_answers_as_before_changes_nothing_to_the_bit() -> None:
    bundles = careful(waving, model=predict), stand_in(waving, context=False)
    with_it, without = (drive(Controller(bundle), 1.0) for bundle in bundles)
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
    def described(**changes: Any) -> BundleSpec:
        return BundleSpec.model_validate(spec(context=False).model_dump() | {"caution": SPEC.model_dump() | changes})

    assert described().adapts
    with pytest.raises(ValueError, match=r"caution\.terms names term 5 of 5, from 0 on"):
        described(terms=[5])
    with pytest.raises(ValueError, match=r"caution\.usual has 4 numbers"):
        described(usual=[1.0] * 4)
