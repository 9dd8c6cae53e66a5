"""Delays of the loop: that they are found, predicted over, and left alone where there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leg import ACT, DT, MOTION, OBS, PUSH, STD, act, stand_in

from adapters.errors import UserError
from deploy.bundle import Bundle, write_bundle
from deploy.controller import Controller
from deploy.delay import DelayCompensator
from deploy.spec import DelaySpec

MOST = 3


def move(obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The leg itself, one control period."""
    return obs + obs @ MOTION + action @ PUSH


def predict(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The leg's world model, which is right."""
    return obs @ MOTION + action @ PUSH, np.full(np.shape(obs), STD)


def compensator(batch: tuple[int, ...] = (), **settings: Any) -> DelayCompensator:
    return DelayCompensator(predict, ACT, DelaySpec(most=MOST, **settings), batch)


def drive(
    delays: DelayCompensator, commands: np.ndarray, late: Callable[[int], int], gain: float = 1.0, noise: float = 0.0
) -> list[int]:
    """Send commands that act `late(step)` periods after they are sent; return the estimates after each."""
    generator = np.random.default_rng(1)
    obs, found = np.zeros(OBS), []
    for step, command in enumerate(commands):
        delays.record(command)
        acting = commands[step - late(step)] if step >= late(step) else np.zeros(ACT)
        following = move(obs, gain * acting) + noise * generator.standard_normal(OBS)
        delays.update(obs, following)
        found.append(int(delays.delay))
        obs = following
    return found


def random_commands(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (steps, ACT))


@pytest.mark.parametrize("late", range(MOST + 1))
def test_every_delay_is_found_and_stays(late: int) -> None:
    found = drive(compensator(), random_commands(100), lambda _: late, noise=STD)
    # MOST + 1 commands are needed before all delays can be compared, and five transitions before one is taken.
    assert found[20:] == [late] * 80


@given(late=st.integers(0, MOST), seed=st.integers(0, 1000), gain=st.floats(0.3, 1.2))
@settings(max_examples=40)
def test_weak_motors_are_not_taken_for_a_delay(late: int, seed: int, gain: float) -> None:
    # Commands that are independent from step to step: a weaker effect is still explained best by the right delay.
    found = drive(compensator(), random_commands(60, seed), lambda _: late, gain=gain, noise=STD)
    assert found[-1] == late


def test_a_changed_robot_under_a_noisy_sensor_is_not_taken_for_a_late_one() -> None:
    # Half of the effect is missing, 0.5 x 0.5 x 0.58 = 0.14 on average, and the noise is 0.1: nothing fits well.
    assert set(drive(compensator(), random_commands(500), lambda _: 0, gain=0.5, noise=10 * STD)) == {0}


def test_a_start_from_rest_decides_nothing() -> None:
    # With the same command all the time every delay explains the same.
    assert set(drive(compensator(), np.ones((50, ACT)), lambda _: 2)[10:]) == {0}


def test_a_delay_that_changes_in_mid_run_is_found_again() -> None:
    found = drive(compensator(), random_commands(300), lambda step: 1 if step < 150 else 3, noise=STD)
    assert found[149] == 1
    # Wrong delays score about 4 / 3 a step and the right one nothing, so the new delay begins with 4 / 3 / 0.15 = 8.9
    # against it, of which 8.9 x 0.85^n is left after n steps, when the old delay has 8.9 (1 - 0.85^n): equal at
    # n = 4.3, and the new one below 0.8 of the old one's at n = 5.
    assert found[150 + 12 :] == [3] * 138 and found[150 + 1] == 1


@pytest.mark.parametrize("late", range(MOST + 1))
def test_ahead_is_where_the_robot_will_be(late: int) -> None:
    delays, commands = compensator(), random_commands(60)
    drive(delays, commands, lambda _: late)
    obs = truth = np.random.default_rng(3).standard_normal(OBS)
    # The commands under way are the last `late` ones that were sent, the oldest first.
    for command in commands[60 - late :]:
        truth = move(truth, command)
    np.testing.assert_allclose(delays.ahead(obs), truth, atol=1e-12)
    np.testing.assert_array_equal(delays.acting, commands[59 - late])


def test_ahead_reckons_with_weak_motors() -> None:
    delays, commands = compensator(), random_commands(60)
    drive(delays, commands, lambda _: 1)
    obs, gains = np.ones(OBS), np.array([0.5, 0.0])
    np.testing.assert_allclose(delays.ahead(obs, gains), move(obs, gains * commands[-1]), atol=1e-12)


def test_missed_periods_teach_nothing_until_the_commands_are_known_again() -> None:
    delays = compensator()
    drive(delays, random_commands(50), lambda _: 0)
    before = delays.score.copy()
    delays.interrupt()
    for _ in range(MOST):
        delays.record(np.ones(ACT))
        delays.update(np.zeros(OBS), np.full(OBS, 5.0))
    np.testing.assert_array_equal(delays.score, before)
    delays.record(np.ones(ACT))
    delays.update(np.zeros(OBS), np.full(OBS, 5.0))
    assert delays.score[0] > before[0] + 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_lanes_that_are_broken_or_not_asked_for_are_left_alone(bad: float) -> None:
    lanes, single = compensator((3,)), compensator()
    commands, obs = random_commands(40), np.zeros(OBS)
    for step, command in enumerate(commands):
        following = move(obs, commands[max(step - 1, 0)])
        broken = following.copy()
        broken[2] = bad
        lanes.record(np.tile(command, (3, 1)))
        single.record(command)
        lanes.update(
            np.tile(obs, (3, 1)), np.stack([following, broken, following]), valid=np.array([True, True, False])
        )
        single.update(obs, following)
        obs = following
    assert lanes.delay.tolist() == [1, 0, 0]
    np.testing.assert_allclose(lanes.score[:, 0], single.score)
    assert not lanes.score[:, 1:].any()
    np.testing.assert_allclose(lanes.ahead(np.tile(obs, (3, 1)))[0], single.ahead(obs))


def loop(controller: Controller, late: int, steps: int, policy_calls: list[np.ndarray] | None = None) -> np.ndarray:
    """Let a controller drive the leg, whose motors act late; returns the observations `(steps, OBS)`."""
    obs, under_way, seen = np.full(OBS, 0.5), [np.zeros(ACT)] * late, []
    for step in range(steps):
        seen.append(obs)
        under_way.append(controller.step(step * DT, obs).action)
        obs = move(obs, under_way.pop(0))
    return np.array(seen)


def bundle(policy: Callable[..., Any] = act, **limits: Any) -> Any:
    """The leg's bundle in memory, which looks for delays."""
    made = stand_in(policy, context=False, **limits)
    made.manifest = made.manifest.model_copy(update={"delay": DelaySpec(most=MOST)})
    return made


def waving(obs: np.ndarray, context: np.ndarray | None) -> np.ndarray:
    """The leg's policy with a wave on top, so that commands differ from step to step."""
    return act(obs, None) + np.sin(40.0 * obs.sum(-1, keepdims=True))


@pytest.mark.parametrize("late", range(MOST + 1))
def test_the_controller_asks_the_policy_where_the_robot_will_be(late: int) -> None:
    asked = []

    def policy(obs: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        asked.append(obs)
        return waving(obs, context)

    controller = Controller(bundle(policy))
    seen = loop(controller, late, 100)
    # Once the delay is known, what the policy is asked at is what is observed `late` periods later.
    np.testing.assert_allclose(np.array(asked)[40 : 100 - late], seen[40 + late :], atol=1e-9)


def test_without_a_delay_nothing_changes_to_the_bit() -> None:
    with_delay, without = Controller(bundle(waving)), Controller(stand_in(waving, context=False))
    np.testing.assert_array_equal(loop(with_delay, 0, 80), loop(without, 0, 80))


def test_the_command_says_the_delay_and_adapting_can_be_switched_off() -> None:
    asked = []

    def policy(obs: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        asked.append(obs)
        return waving(obs, context)

    controller = Controller(bundle(policy))
    seen = loop(controller, 2, 60)
    assert controller.step(60 * DT, seen[-1]).delay == 2
    controller.adapt = False
    command = controller.step(61 * DT, seen[-1])
    assert command.delay == 0
    np.testing.assert_array_equal(asked[-1], seen[-1])
    controller.adapt = True
    controller.reset_context()
    assert controller.step(62 * DT, seen[-1]).delay == 0
    assert Controller(bundle(), context="nominal").step(0.0, seen[0]).delay is None
    assert Controller(stand_in()).step(0.0, seen[0]).delay is None


def test_the_estimator_is_told_the_command_that_acted() -> None:
    told = []

    class Estimator:
        needs_action = False

        def reset(self) -> None: ...

        def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
            told.append((obs.copy(), action.copy(), next_obs.copy()))

        def context(self, obs: np.ndarray, action: np.ndarray | None) -> np.ndarray:
            return np.ones(OBS)

        def health(self) -> Any:
            return None

    made = stand_in(waving, context=True)
    made.manifest = made.manifest.model_copy(update={"delay": DelaySpec(most=MOST)})
    loop(Controller(made, estimator=Estimator()), 2, 80)
    for obs, action, following in told[40:]:
        np.testing.assert_allclose(move(obs, action), following, atol=1e-9)


@pytest.mark.parametrize("time", [59 * DT, 61 * DT, np.nan])
def test_a_bad_step_out_of_time_interrupts_the_learning_as_a_good_one_does(time: float) -> None:
    # An observation that is not finite and comes twice, late or without a time: a command is sent all the same, and
    # nobody knows for how many periods it acts.
    controller = Controller(bundle(waving))
    seen = loop(controller, 0, 60)
    assert controller.delay is not None
    before = controller.delay.score.copy()
    controller.step(time, np.full(OBS, np.nan))
    assert controller.delay.recorded == 1
    for step in range(1, MOST + 1):
        controller.step((61 + step) * DT, seen[-1])
    np.testing.assert_array_equal(controller.delay.score, before)


def test_nobody_learns_while_the_robot_does_not_obey() -> None:
    controller = Controller(bundle(waving))
    controller.obeyed = False
    loop(controller, 2, 60)
    assert controller.delay is not None and not controller.delay.score.any()


def test_a_bundle_that_looks_for_delays_needs_dynamics(write: Callable[..., Path], tmp_path: Path) -> None:
    from leg import golden, policy_graph, spec

    asks = spec(context=False).model_copy(update={"delay": DelaySpec()})
    with pytest.raises(UserError, match=r"lists no dynamics\.onnx, which this bundle needs"):
        write_bundle(tmp_path / "late.bundle", policy_graph(False), asks, golden(context=False))
    assert Bundle.load(write()).manifest.delay is None
