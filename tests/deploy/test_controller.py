"""The controller on the leg: what it commands, how it holds, stops, learns and replays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from leg import ACT, DT, HIGH, LOW, OBS, act, stand_in

from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.context import Health
from deploy.controller import Command, Controller, Reason, State

WriteBundle = Callable[..., Path]
NOMINAL = np.ones(OBS)


class Recorder:
    """An estimator that keeps what it is told and returns a context that is set from outside."""

    def __init__(self, batch: tuple[int, ...] = (), needs_action: bool = False) -> None:
        self.batch, self.needs_action = batch, needs_action
        self.z = np.full((*batch, OBS), 1.2)
        self.updates: list[tuple[np.ndarray, ...]] = []
        self.asked: list[tuple[np.ndarray, np.ndarray | None]] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
        self.updates.append((obs.copy(), action.copy(), next_obs.copy(), np.array(valid)))

    def context(self, obs: np.ndarray, action: np.ndarray | None) -> np.ndarray:
        self.asked.append((obs.copy(), action))
        return self.z

    def health(self) -> Health:
        return Health(np.zeros(self.batch), np.ones(self.batch), np.zeros(self.batch, bool))


def rows(count: int, *batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *batch, OBS))


def run(controller: Controller, observations: np.ndarray, start: float = 0.0) -> list[Command]:
    return [controller.step(start + index * DT, obs) for index, obs in enumerate(observations)]


def only(command: Command) -> tuple[State, Reason]:
    return State(int(command.state)), Reason(int(command.reason))


def test_command_is_the_policys_within_limits() -> None:
    for obs, command in zip(rows(50), run(Controller(stand_in(), context="nominal"), rows(50)), strict=True):
        np.testing.assert_allclose(command.action, np.clip(act(obs, NOMINAL), LOW, HIGH))
        assert only(command) == (State.RUNNING, Reason.NONE)
        np.testing.assert_array_equal(command.context, NOMINAL)
        assert command.health is None
        assert command.explanation == ""


def test_rate_limit_holds_from_the_first_command_on() -> None:
    # 10 N m a second over 0.02 s is 0.2 N m a step; the first starts from rest.
    commands = [np.zeros(ACT)] + [c.action for c in run(Controller(stand_in(rate=10.0)), rows(100))]
    steps = np.abs(np.diff(commands, axis=0))
    assert steps.max() == pytest.approx(0.2)


def test_no_context_where_the_bundle_has_none() -> None:
    obs = rows(1)[0]
    command = Controller(stand_in(context=False)).step(0.0, obs)
    assert command.context is None
    np.testing.assert_allclose(command.action, np.clip(act(obs, None), LOW, HIGH))


def test_unknown_context_is_refused() -> None:
    with pytest.raises(UserError, match="there is no context 'oracle'"):
        Controller(stand_in(), context="oracle")


def test_inferred_context_reaches_the_policy() -> None:
    obs = rows(1)[0]
    command = Controller(stand_in(), estimator=Recorder()).step(0.0, obs)
    np.testing.assert_array_equal(command.context, np.full(OBS, 1.2))
    np.testing.assert_allclose(command.action, np.clip(act(obs, np.full(OBS, 1.2)), LOW, HIGH))
    assert command.health is not None and command.health.confidence == 1


def test_nominal_context_asks_no_estimator() -> None:
    recorder = Recorder()
    command = Controller(stand_in(), context="nominal", estimator=recorder).step(0.0, rows(1)[0])
    np.testing.assert_array_equal(command.context, NOMINAL)
    assert recorder.asked == []


def test_candidate_is_the_policy_under_the_previous_context() -> None:
    recorder, obs = Recorder(needs_action=True), rows(2)
    run(Controller(stand_in(), estimator=recorder), obs)
    for (asked, candidate), row, z in zip(recorder.asked, obs, (NOMINAL, np.full(OBS, 1.2)), strict=True):
        np.testing.assert_array_equal(asked, row)
        np.testing.assert_allclose(candidate, act(row, z))


def test_estimator_learns_from_the_command_that_was_sent() -> None:
    recorder, obs = Recorder(), 3 * rows(3)
    commands = run(Controller(stand_in(rate=10.0), estimator=recorder), obs)
    assert len(recorder.updates) == 2
    for index, (before, action, after, valid) in enumerate(recorder.updates):
        np.testing.assert_array_equal(before, obs[index])
        np.testing.assert_array_equal(action, commands[index].action)
        np.testing.assert_array_equal(after, obs[index + 1])
        assert valid


@pytest.mark.parametrize(("gap", "learns"), [(0.79, False), (0.81, True), (1.0, True), (1.19, True), (1.21, False)])
def test_estimator_learns_only_at_the_control_period(gap: float, learns: bool) -> None:
    recorder, obs = Recorder(), rows(2)
    controller = Controller(stand_in(), estimator=recorder)
    controller.step(1.0, obs[0])
    assert only(controller.step(1.0 + gap * DT, obs[1])) == (State.RUNNING, Reason.NONE)
    assert len(recorder.updates) == learns


def test_estimator_learns_only_between_good_observations() -> None:
    recorder, obs = Recorder(batch=(2,)), rows(4, 2)
    obs[1, 1, 0] = np.nan
    run(Controller(stand_in(), estimator=recorder, batch=(2,)), obs)
    valid = [update[3].tolist() for update in recorder.updates]
    assert valid == [[True, False], [True, False], [True, True]]
    assert all(np.isfinite(part).all() for update in recorder.updates for part in update)


@pytest.mark.parametrize("z", [np.full(OBS, np.nan), np.full(OBS, 0.4), np.full(OBS, 1.6)])
def test_context_that_the_policy_does_not_know_is_replaced_by_the_nominal(z: np.ndarray) -> None:
    recorder = Recorder()
    recorder.z = z
    command = Controller(stand_in(), estimator=recorder).step(0.0, rows(1)[0])
    assert only(command) == (State.RUNNING, Reason.CONTEXT)
    np.testing.assert_array_equal(command.context, NOMINAL)
    assert "nominal one was used" in command.explanation


BAD = {
    "nan": (np.full(OBS, np.nan), Reason.NOT_FINITE),
    "one nan": (np.array([0, 0, np.nan, 0, 0]), Reason.NOT_FINITE),
    "inf": (np.array([0, 0, 0, -np.inf, 0]), Reason.NOT_FINITE),
    "beyond float32": (np.full(OBS, 1e300), Reason.LIMIT),
    "tilt": (np.array([0.6, 0, 0, 0, 0]), Reason.LIMIT),
    "position": (np.array([0, 0, -1.5, 0, 0]), Reason.LIMIT),
    "velocity": (np.array([0, 0, 0, 9.0, 0]), Reason.LIMIT),
    "too short": (np.zeros(OBS - 1), Reason.SHAPE),
    "a column": (np.zeros((OBS, 1)), Reason.SHAPE),
    "a number": (1.0, Reason.SHAPE),
    "nothing": (None, Reason.SHAPE),
    "text": ("abc", Reason.SHAPE),
    "ragged": ([[1.0], [1.0, 2.0]], Reason.SHAPE),
}


@pytest.mark.parametrize(("obs", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_observation_holds_and_a_good_one_runs_again(obs: Any, reason: Reason) -> None:
    controller = Controller(stand_in(tilt=0.5, position={"knee": (-1.0, 1.0)}, velocity={"hip": 8.0}))
    good = np.full(OBS, 0.1)
    assert only(controller.step(0.0, good)) == (State.RUNNING, Reason.NONE)
    held = controller.step(DT, obs)
    assert only(held) == (State.HOLD, reason)
    np.testing.assert_array_equal(held.action, [0.0, 0.0])
    assert held.explanation
    assert only(controller.step(2 * DT, good)) == (State.RUNNING, Reason.NONE)


def test_explanation_names_the_terms() -> None:
    command = Controller(stand_in(tilt=0.5)).step(0.0, np.array([0.6, np.nan, 0, 0, 0]))
    assert command.explanation == "the observation is not finite (pitch, hip_position)"


def test_bad_first_observation_holds() -> None:
    command = Controller(stand_in()).step(0.0, np.full(OBS, np.nan))
    assert only(command) == (State.HOLD, Reason.NOT_FINITE)
    np.testing.assert_array_equal(command.action, [0.0, 0.0])


@pytest.mark.parametrize("time", [1.0, 0.99, np.nan, np.inf, -np.inf, None, "noon", 10**400])
def test_time_that_does_not_move_forward_holds(time: Any) -> None:
    controller = Controller(stand_in())
    controller.step(1.0, np.zeros(OBS))
    held = controller.step(time, np.full(OBS, 0.1))
    assert only(held) == (State.HOLD, Reason.TIME)
    np.testing.assert_array_equal(held.action, [0.0, 0.0])
    assert only(controller.step(1.0 + 2 * DT, np.full(OBS, 0.1))) == (State.RUNNING, Reason.NONE)


def test_clock_that_was_set_is_bad_once() -> None:
    controller = Controller(stand_in())
    times = [100.0, 100.02, 0.0, 0.02]
    states = [only(controller.step(time, np.zeros(OBS)))[0] for time in times]
    assert states == [State.RUNNING, State.RUNNING, State.HOLD, State.RUNNING]


def test_too_many_bad_steps_stop_until_clear() -> None:
    controller = Controller(stand_in(), max_hold=3)
    bad = np.full((5, OBS), np.nan)
    states = [only(command) for command in run(controller, bad)]
    assert states[:2] == [(State.HOLD, Reason.NOT_FINITE)] * 2
    assert states[2:] == [(State.STOPPED, Reason.TOO_LONG)] * 3
    stopped = controller.step(1.0, np.full(OBS, 0.1))
    assert only(stopped) == (State.STOPPED, Reason.TOO_LONG)
    np.testing.assert_array_equal(stopped.action, [0.0, 0.0])
    controller.clear()
    assert only(controller.step(1.1, np.full(OBS, 0.1))) == (State.RUNNING, Reason.NONE)


def test_bad_steps_count_only_in_a_row() -> None:
    controller = Controller(stand_in(), max_hold=3)
    obs = np.zeros((9, OBS))
    obs[[0, 1, 3, 4, 6, 7]] = np.nan
    assert [only(c)[0] for c in run(controller, obs)] == [State.HOLD, State.HOLD, State.RUNNING] * 3


def test_stop_is_latched_through_a_new_episode() -> None:
    controller = Controller(stand_in())
    controller.stop()
    controller.reset()
    command = controller.step(0.0, np.full(OBS, 0.1))
    assert only(command) == (State.STOPPED, Reason.STOP)
    np.testing.assert_array_equal(command.action, [0.0, 0.0])
    controller.clear()
    assert only(controller.step(DT, np.full(OBS, 0.1)))[0] == State.RUNNING


def always(*command: float, law: str = "effort", **limits: Any) -> Any:
    """The bundle of a policy that always wants the same."""
    return stand_in(policy=lambda obs, z: np.broadcast_to(command, (*np.shape(obs)[:-1], ACT)), law=law, **limits)


def test_soft_start_is_a_straight_line() -> None:
    # 0.08 s are four periods of 0.02 s: the policy's share grows by a quarter in each.
    commands = run(Controller(always(2.0, -1.0), soft_start=0.08), np.zeros((5, OBS)))
    np.testing.assert_allclose([c.action for c in commands], np.outer([0.25, 0.5, 0.75, 1, 1], [2.0, -1.0]))
    assert [only(c)[0] for c in commands] == [State.SOFT_START] * 3 + [State.RUNNING] * 2


def test_soft_start_begins_at_the_safe_command_that_lies_in_the_limits() -> None:
    bundle = always(3.0, 1.0)
    object.__setattr__(bundle.manifest.robot.action, "low", (1.0, -1.0))
    object.__setattr__(bundle.manifest.robot.action, "high", (5.0, 3.0))
    # 0 is not allowed and 1 is nearest to it; from there to 3 in halves.
    found = [c.action.tolist() for c in run(Controller(bundle, soft_start=0.04), np.zeros((2, OBS)))]
    assert found == [[2.0, 0.5], [3.0, 1.0]]


def test_soft_start_takes_a_share_of_what_the_limits_allow() -> None:
    # The policy asks for a thousand times what is allowed; a tenth of it would be no soft start.
    first = Controller(always(2e3, 0.0), soft_start=0.2).step(0.0, np.zeros(OBS))
    np.testing.assert_allclose(first.action, [0.2, 0.0])


def test_soft_start_of_a_position_law_leaves_the_pose_of_its_beginning() -> None:
    controller = Controller(always(1.1, 0.8, law="position"), soft_start=0.08)
    poses = [[0, 0.3, 0.0, 0, 0], [0, 0.1, -0.1, 0, 0], [0, 0.2, 0.1, 0, 0], [0, 0.2, 0.1, 0, 0]]
    found = [c.action for c in run(controller, np.array(poses))]
    # From 0.3 to 1.1 and from 0 to 0.8 in quarters, wherever the robot sways.
    np.testing.assert_allclose(found, [[0.5, 0.2], [0.7, 0.4], [0.9, 0.6], [1.1, 0.8]])


def test_one_bad_step_is_a_dip() -> None:
    controller = Controller(always(1.0, 1.0), soft_start=0.08, stop_time=0.1)
    run(controller, np.zeros((4, OBS)))
    obs = np.zeros((4, OBS))
    obs[0] = np.nan
    dip = run(controller, obs, start=1.0)
    # A fifth down, a quarter up.
    np.testing.assert_allclose([c.action[0] for c in dip], [0.8, 1.0, 1.0, 1.0])
    assert [only(c)[0] for c in dip] == [State.HOLD] + [State.RUNNING] * 3


def test_way_back_from_a_hold_is_a_soft_start_again() -> None:
    controller = Controller(always(1.0, 1.0), soft_start=0.04)
    obs = np.zeros((5, OBS))
    obs[2] = np.nan
    found = run(controller, obs)
    np.testing.assert_allclose([c.action[0] for c in found], [0.5, 1.0, 0.0, 0.5, 1.0])
    assert only(found[3])[0] == State.SOFT_START


def test_stop_is_a_straight_line_from_the_last_command() -> None:
    wanted = iter([1.0, 1.5, -2.0, -2.0, -2.0, -2.0, -2.0])
    controller = Controller(stand_in(policy=lambda obs, z: np.full(ACT, next(wanted))), stop_time=0.06)
    run(controller, np.zeros((2, OBS)))
    controller.stop()
    commands = run(controller, np.zeros((4, OBS)), start=2 * DT)
    # From 1.5 in thirds, whatever the policy wants by now.
    np.testing.assert_allclose([c.action[0] for c in commands], [1.0, 0.5, 0.0, 0.0], atol=1e-12)
    assert {only(c) for c in commands} == {(State.STOPPED, Reason.STOP)}


def test_stop_keeps_to_the_rate() -> None:
    controller = Controller(always(1.0, 1.0, rate=10.0), stop_time=0.04)
    run(controller, np.zeros((5, OBS)))
    controller.stop()
    # 0.2 a step is slower than a half of 1.
    found = [c.action[0] for c in run(controller, np.zeros((6, OBS)), start=1.0)]
    np.testing.assert_allclose(found, [0.8, 0.6, 0.4, 0.2, 0.0, 0.0], atol=1e-12)


def test_at_rest_once_the_safe_command_is_reached() -> None:
    controller = Controller(always(1.0, 1.0), stop_time=0.04)
    run(controller, np.zeros((2, OBS)))
    controller.stop()
    assert [(controller.hold().action[0], controller.at_rest) for _ in range(3)] == [
        (0.5, False),
        (0.0, True),
        (0.0, True),
    ]


def test_command_that_only_passes_the_safe_one_is_not_at_rest() -> None:
    wanted = iter([-2.0, -2.0, 2.0])
    controller = Controller(stand_in(policy=lambda obs, z: np.array([next(wanted), 0.0]), rate=50.0), stop_time=0.08)
    # The rate allows 1 a step: -1, -2, -1, and 0 on the way to three quarters of 2.
    run(controller, np.zeros((3, OBS)))
    controller.stop()
    assert (controller.hold().action[0], controller.at_rest) == (0.0, False)


def test_idle_until_start() -> None:
    controller = Controller(always(1.0, 1.0), autostart=False, max_hold=2)
    obs = np.zeros((6, OBS))
    obs[1:4] = np.nan
    idle = run(controller, obs)
    assert {only(c)[0] for c in idle} == {State.IDLE}
    assert {c.action[0] for c in idle} == {0.0}
    assert only(idle[1]) == (State.IDLE, Reason.NOT_FINITE)
    controller.start()
    assert only(controller.step(1.0, np.zeros(OBS))) == (State.RUNNING, Reason.NONE)


def test_clear_without_autostart_leads_to_idle() -> None:
    controller = Controller(always(1.0, 1.0), autostart=False)
    controller.start()
    controller.stop()
    controller.start()
    assert only(controller.step(0.0, np.zeros(OBS)))[0] == State.STOPPED
    controller.clear()
    assert only(controller.step(DT, np.zeros(OBS)))[0] == State.IDLE
    controller.start()
    assert only(controller.step(2 * DT, np.zeros(OBS)))[0] == State.RUNNING


def test_idle_position_law_follows_the_pose() -> None:
    controller = Controller(always(1.5, 1.5, law="position"), autostart=False, soft_start=0.04)
    for step, hip in enumerate((0.3, 0.7)):
        assert controller.step(step * DT, np.array([0, hip, -0.2, 0, 0])).action.tolist() == [hip, -0.2]
    controller.start()
    found = run(controller, np.tile([0, 0.5, 0.5, 0, 0], (2, 1)), start=2 * DT)
    # Halfway between the last idle pose and the policy's.
    np.testing.assert_allclose([c.action for c in found], [[1.1, 0.65], [1.5, 1.5]])


def test_cleared_position_law_starts_from_where_it_was_moved_to() -> None:
    controller = Controller(always(1.5, 1.5, law="position"), soft_start=0.04)
    run(controller, np.tile([0, 0.3, 0.3, 0, 0], (3, 1)))
    controller.stop()
    moved = np.array([0, -0.5, -0.5, 0, 0])
    assert controller.step(1.0, moved).action.tolist() == [0.3, 0.3]
    controller.clear()
    np.testing.assert_allclose(controller.step(1.1, moved).action, [0.5, 0.5])  # halfway from -0.5 to 1.5


def test_cleared_position_law_keeps_to_the_rate() -> None:
    controller = Controller(always(0.3, 0.3, law="position", rate=5.0))
    run(controller, np.tile([0, 0.3, 0.3, 0, 0], (2, 1)))
    controller.stop()
    controller.clear()
    # The robot is found elsewhere, but its last command was 0.3, and 0.3 is wanted.
    assert controller.step(1.0, np.array([0, -1.5, -0.5, 0, 0])).action.tolist() == [0.3, 0.3]


def test_idle_teaches_nothing() -> None:
    recorder = Recorder()
    controller = Controller(stand_in(), estimator=recorder, autostart=False)
    run(controller, np.zeros((3, OBS)))
    controller.start()
    run(controller, np.zeros((3, OBS)), start=3 * DT)
    assert [bool(update[3]) for update in recorder.updates] == [False, False, False, True, True]


def test_a_robot_that_is_stopped_teaches_nothing() -> None:
    recorder = Recorder()
    controller = Controller(stand_in(), estimator=recorder)
    run(controller, np.zeros((2, OBS)))
    controller.stop()
    run(controller, np.zeros((3, OBS)), start=2 * DT)
    controller.clear()
    run(controller, np.zeros((2, OBS)), start=5 * DT)
    # From the second step on what became of the command before is learned: of the second, still the policy's, at the
    # third, of the safe ones nothing, and of the sixth, the policy's again, at the seventh.
    assert [bool(update[3]) for update in recorder.updates] == [True, True, False, False, False, True]


def test_period_without_observation_is_a_bad_step() -> None:
    recorder = Recorder()
    controller = Controller(stand_in(), estimator=recorder, max_hold=2)
    controller.step(0.0, np.full(OBS, 0.1))
    held = controller.hold()
    assert only(held) == (State.HOLD, Reason.SILENT)
    assert held.explanation == "there was no fresh observation"
    np.testing.assert_array_equal(held.action, [0.0, 0.0])
    # The robot's time has not moved, so its next observation is in order, and teaches nothing about the gap.
    assert only(controller.step(DT, np.full(OBS, 0.1))) == (State.RUNNING, Reason.NONE)
    assert [bool(update[3]) for update in recorder.updates] == [False]
    assert [only(controller.hold()) for _ in range(2)][-1] == (State.STOPPED, Reason.TOO_LONG)


def test_position_law_may_be_sent_once_the_robot_was_seen_well() -> None:
    controller = Controller(always(1.0, 1.0, law="position"))
    sendable = [bool(controller.hold().sendable), *[bool(c.sendable) for c in run(controller, np.zeros((1, OBS)))]]
    assert [*sendable, bool(controller.hold().sendable)] == [False, True, True]
    assert Controller(always(1.0, 1.0)).hold().sendable


def test_adaptation_can_be_switched_off_while_the_estimator_learns_on() -> None:
    recorder, obs = Recorder(), rows(4)
    controller = Controller(stand_in(), estimator=recorder)
    controller.adapt = False
    off = run(controller, obs[:3])
    for command, row in zip(off, obs, strict=False):
        np.testing.assert_array_equal(command.context, NOMINAL)
        np.testing.assert_allclose(command.action, np.clip(act(row, NOMINAL), LOW, HIGH))
        assert command.health is not None
    assert len(recorder.updates) == 2
    controller.adapt = True
    np.testing.assert_array_equal(controller.step(3 * DT, obs[3]).context, np.full(OBS, 1.2))


def test_context_that_nobody_asked_for_is_not_refused() -> None:
    recorder = Recorder()
    recorder.z = np.full(OBS, np.nan)
    controller = Controller(stand_in(), estimator=recorder)
    controller.adapt = False
    assert only(controller.step(0.0, np.zeros(OBS))) == (State.RUNNING, Reason.NONE)


def test_reset_context_forgets_the_context_alone() -> None:
    recorder = Recorder(needs_action=True)
    controller = Controller(stand_in(), estimator=recorder)
    run(controller, rows(2))
    controller.reset_context()
    assert recorder.resets == 2
    assert only(controller.step(2 * DT, rows(1)[0])) == (State.RUNNING, Reason.NONE)
    np.testing.assert_allclose(recorder.asked[-1][1], act(rows(1)[0], NOMINAL))
    # The episode goes on: the estimator learns from the step before.
    assert recorder.updates[-1][3]


@pytest.mark.parametrize("setting", [{"soft_start": -1.0}, {"stop_time": np.nan}, {"max_hold": 0}])
def test_setting_that_makes_no_sense_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        Controller(stand_in(), **setting)


def test_safe_command_keeps_to_the_rate() -> None:
    controller = Controller(stand_in(policy=lambda obs, z: np.array([1.0, 1.0]), rate=10.0))
    run(controller, np.zeros((5, OBS)))
    held = [c.action[0] for c in run(controller, np.full((3, OBS), np.nan), start=5 * DT)]
    # Five steps of 0.2 lead to 1; a hold goes back at the same rate.
    np.testing.assert_allclose(held, [0.8, 0.6, 0.4])


def test_position_law_holds_where_the_robot_was_last_seen_well() -> None:
    controller = Controller(stand_in(policy=lambda obs, z: np.array([1.5, 1.5]), law="position"))
    assert controller.step(0.0, np.array([0, 0.3, -0.2, 0, 0])).action.tolist() == [1.5, 1.5]
    assert controller.step(DT, np.array([0, 0.5, -0.4, 0, 0])).action.tolist() == [1.5, 1.5]
    for step in (2, 3):
        assert controller.step(step * DT, np.full(OBS, np.nan)).action.tolist() == [0.5, -0.4]


def test_position_law_starts_from_the_pose() -> None:
    controller = Controller(stand_in(policy=lambda obs, z: np.array([1.5, 1.5]), law="position", rate=5.0))
    # 5 rad/s over 0.02 s is 0.1 rad from the pose, not from zero.
    np.testing.assert_allclose(controller.step(0.0, np.array([0, 0.3, -0.2, 0, 0])).action, [0.4, -0.1])


def test_position_law_holds_the_pose_where_the_policy_never_ran() -> None:
    controller = Controller(stand_in(policy=_raise, law="position"))
    for step, hip in enumerate((0.3, 0.6)):
        assert controller.step(step * DT, np.array([0, hip, -0.2, 0, 0])).action.tolist() == [0.3, -0.2]


def _raise(*_: Any) -> Any:
    raise ZeroDivisionError("no policy today")


@pytest.mark.parametrize("method", ["update", "context", "health"])
def test_estimator_that_raises_holds_with_its_text(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(recorder, method, _raise)
    command = run(Controller(stand_in(), estimator=recorder), rows(2))[-1]
    assert only(command) == (State.HOLD, Reason.ESTIMATOR)
    assert command.error == "ZeroDivisionError: no policy today"
    assert command.error in command.explanation
    np.testing.assert_array_equal(command.action, [0.0, 0.0])


def test_estimator_that_raises_once_is_forgiven() -> None:
    recorder = Recorder()
    controller = Controller(stand_in(), estimator=recorder)
    recorder.z = np.ones(OBS + 1)
    assert only(controller.step(0.0, np.zeros(OBS))) == (State.HOLD, Reason.ESTIMATOR)
    recorder.z = np.ones(OBS)
    assert only(controller.step(DT, np.zeros(OBS))) == (State.RUNNING, Reason.NONE)


@pytest.mark.parametrize(
    "policy",
    [
        _raise,
        lambda obs, z: None,
        lambda obs, z: np.zeros(ACT + 1),
        lambda obs, z: np.array([0.0, np.nan]),
        lambda obs, z: np.full(ACT, np.inf),
    ],
)
def test_policy_that_fails_holds(policy: Callable[..., Any]) -> None:
    command = Controller(stand_in(policy=policy)).step(0.0, np.zeros(OBS))
    assert only(command) == (State.HOLD, Reason.POLICY)
    np.testing.assert_array_equal(command.action, [0.0, 0.0])


def test_one_robots_fault_is_its_own() -> None:
    obs = np.full((3, OBS), 0.1)
    obs[1, 2] = np.nan
    command = Controller(stand_in(), batch=(3,), context="nominal").step(0.0, obs)
    assert command.state.tolist() == [State.RUNNING, State.HOLD, State.RUNNING]
    np.testing.assert_array_equal(command.action[1], [0.0, 0.0])
    np.testing.assert_allclose(command.action[0], np.clip(act(obs[0], NOMINAL), LOW, HIGH))


def test_reset_forgets_the_episode() -> None:
    recorder, obs = Recorder(), rows(3)
    controller = Controller(stand_in(rate=10.0), estimator=recorder)
    first = [c.action for c in run(controller, obs)]
    controller.reset()
    assert recorder.resets == 2
    # Time may start again, and the last observation of the old episode teaches nothing.
    again = [c.action for c in run(controller, obs)]
    np.testing.assert_array_equal(first, again)
    assert len(recorder.updates) == 4


def slow_leg(bundle: Bundle, steps: int) -> np.ndarray:
    """The log of a leg that moves 0.8 times as far as the bundle predicts."""
    generator, controller, log = np.random.default_rng(3), Controller(bundle, context="nominal"), [np.full(OBS, 0.2)]
    for step in range(steps - 1):
        delta, std = bundle.predict_change(log[-1], controller.step(step * DT, log[-1]).action)
        log.append(log[-1] + 0.8 * delta + std * generator.standard_normal(OBS))
    return np.array(log)


@pytest.mark.parametrize("estimator", ["scale", "linear_forward"])
def test_replay_of_a_log_is_equal_to_the_bit(write: WriteBundle, estimator: str) -> None:
    bundle = Bundle.load(write(rate=20.0))
    assert bundle.manifest.context is not None
    object.__setattr__(bundle.manifest.context, "estimator", estimator)
    obs = slow_leg(bundle, 400)
    obs[40:43] = np.nan
    first, again = (run(Controller(bundle), obs) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.action.tobytes() == other.action.tobytes()
        assert one.context is not None and other.context is not None
        assert one.context.tobytes() == other.context.tobytes()
    contexts = np.array([c.context for c in first])
    assert (contexts != 1).any()


@pytest.mark.parametrize("law", ["effort", "position"])
def test_batch_equals_single_controllers(law: str) -> None:
    bundle = stand_in(law=law, rate=20.0, tilt=2.5)
    obs = 0.5 * rows(120, 4)
    obs[10:13, 1] = np.nan
    obs[50:, 2, 0] = 3.0
    together = run(Controller(bundle, batch=(4,)), obs)
    for lane in range(4):
        for all_of_them, alone in zip(together, run(Controller(bundle), obs[:, lane]), strict=True):
            np.testing.assert_allclose(all_of_them.action[lane], alone.action, atol=1e-6)
            np.testing.assert_allclose(all_of_them.context[lane], alone.context, atol=1e-6)
            assert (all_of_them.state[lane], all_of_them.reason[lane]) == (alone.state, alone.reason)
    assert together[-1].state.tolist() == [State.RUNNING, State.RUNNING, State.STOPPED, State.RUNNING]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_every_array_has_the_leading_shape(batch: tuple[int, ...]) -> None:
    command = Controller(stand_in(), batch=batch).step(0.0, np.zeros((*batch, OBS)))
    assert command.action.shape == (*batch, ACT)
    assert command.state.shape == command.reason.shape == batch
    assert command.context is not None and command.context.shape == (*batch, OBS)
    assert command.health is not None and np.shape(command.health.residual) == batch


def test_command_belongs_to_the_caller() -> None:
    one, other = Controller(stand_in(rate=10.0)), Controller(stand_in(rate=10.0))
    obs = rows(2)
    changed = one.step(0.0, obs[0])
    changed.action[:] = 99.0
    assert changed.context is not None
    changed.context[:] = 99.0
    other.step(0.0, obs[0])
    np.testing.assert_array_equal(one.step(DT, obs[1]).action, other.step(DT, obs[1]).action)


def test_caller_may_use_its_buffer_again() -> None:
    recorder, buffer, obs = Recorder(), np.zeros(OBS), rows(2)
    controller = Controller(stand_in(), estimator=recorder)
    for step, row in enumerate(obs):
        buffer[:] = row
        controller.step(step * DT, buffer)
    before, _, after, _ = recorder.updates[0]
    np.testing.assert_array_equal([before, after], obs)


anything = st.floats(allow_nan=True, allow_infinity=True, width=64)


@settings(max_examples=60)
@given(
    obs=arrays(np.float64, (12, 3, OBS), elements=anything),
    times=st.lists(anything, min_size=12, max_size=12),
    law=st.sampled_from(["effort", "velocity", "position"]),
    rate=st.sampled_from([None, 5.0]),
    estimator=st.sampled_from(["scale", "affine", "linear_forward"]),
)
def test_garbage_gives_finite_commands_within_limits(
    obs: np.ndarray, times: list[float], law: str, rate: float | None, estimator: str
) -> None:
    bundle = stand_in(law=law, rate=rate)
    object.__setattr__(bundle.manifest.context, "estimator", estimator)
    controller = Controller(bundle, batch=(3,), max_hold=4)
    with np.errstate(all="ignore"):
        for index, (time, row) in enumerate(zip(times, obs, strict=True)):
            command = controller.step(time if index % 3 else index * DT, row)
            assert np.isfinite(command.action).all()
            assert (command.action >= LOW).all() and (command.action <= HIGH).all()
            assert command.context is not None and np.isfinite(command.context).all()


observations = st.one_of(
    st.lists(st.floats(-1, 1), min_size=OBS, max_size=OBS),
    st.lists(anything, max_size=OBS + 1),
    st.sampled_from([None, "abc", 1.0]),
)
calls = st.one_of(
    st.tuples(st.just("step"), st.none() | anything, observations),
    st.tuples(st.sampled_from(["hold", "start", "stop", "clear", "reset_context", "adapt"])),
)


@settings(max_examples=150)
@given(
    calls=st.lists(calls, max_size=40),
    wanted=st.tuples(st.floats(-3, 4), st.floats(-3, 4)),
    law=st.sampled_from(["effort", "velocity", "position"]),
    rate=st.sampled_from([None, 5.0]),
    times=st.sampled_from([(0.0, 0.0), (0.1, 0.0), (0.1, 0.06)]),
    autostart=st.booleans(),
)
def test_calls_in_any_order(
    calls: list[tuple[Any, ...]],
    wanted: tuple[float, float],
    law: str,
    rate: float | None,
    times: tuple[float, float],
    autostart: bool,
) -> None:
    soft_start, stop_time = times
    controller = Controller(
        always(*wanted, law=law, rate=rate), soft_start=soft_start, stop_time=stop_time, autostart=autostart, max_hold=5
    )
    stopped, started, goal = False, autostart, np.clip(wanted, LOW, HIGH)
    previous = None if law == "position" else np.zeros(ACT)
    for index, (name, *arguments) in enumerate(calls):
        if name == "adapt":
            controller.adapt = not controller.adapt
        elif name in ("step", "hold"):
            if name == "step":
                time, obs = arguments
                arguments = [index * DT if time is None else time, obs]
            with np.errstate(all="ignore"):
                command = getattr(controller, name)(*arguments)
            state = State(int(command.state))
            assert np.isfinite(command.action).all()
            assert (command.action >= LOW).all() and (command.action <= HIGH).all()
            assert state == State.STOPPED or not stopped
            assert (state == State.IDLE) <= (not started)
            stopped = state == State.STOPPED
            change = np.zeros(ACT) if previous is None else command.action - previous
            if rate is not None:
                assert (np.abs(change) <= rate * DT + 1e-12).all()
            if law != "position":
                # 0.1 s are five periods, 0.06 s three, 0 is one: a fifth of the way up, a third of it down at most.
                up, down = np.abs(goal) / max(soft_start / DT, 1), np.abs(goal) / max(stop_time / DT, 1)
                assert (change * np.sign(goal) <= up + 1e-9).all()
                assert (-change * np.sign(goal) <= down + 1e-9).all()
            previous = command.action if command.sendable else None
        else:
            getattr(controller, name)()
            stopped = (stopped or name == "stop") and name != "clear"
            started = name == "start" or (started and name not in ("stop", "clear")) or autostart


def test_import_is_light() -> None:
    heavy = ["torch", "mujoco", "gymnasium", "onnx", "onnxruntime", "h5py", "minari", "matplotlib", "rclpy", "lcm"]
    code = f"import sys, deploy.controller; sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stderr.strip() == ""
