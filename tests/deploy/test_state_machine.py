"""The state machine: which state follows which, and how the policy's weight comes and goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UserError
from deploy.state_machine import State, StateMachine

IDLE, SOFT, RUNNING, HOLD, STOPPED = State


def machine(batch: tuple[int, ...] = (), **settings: Any) -> StateMachine:
    """4 periods of 0.1 s to start, 2 to stop, unless told otherwise."""
    chosen = {"soft_start": 0.4, "stop_time": 0.2, "max_hold": 3, "autostart": True} | settings
    return StateMachine(batch, 0.1, **chosen)


def follow(states: StateMachine, steps: str) -> list[tuple[State, float]]:
    """Take one step for each letter, `g` good and `b` bad; return state and weight after each."""
    found = []
    for step in steps:
        states.step(np.array(step == "g"))
        found.append((State(int(states.state)), float(states.weight)))
    return found


def test_soft_start_gives_the_policy_a_quarter_more_at_each_of_four_steps() -> None:
    expected = [(SOFT, 0.25), (SOFT, 0.5), (SOFT, 0.75), (RUNNING, 1.0), (RUNNING, 1.0)]
    assert follow(machine(), "ggggg") == expected


def test_weight_arrives_exactly_where_the_period_has_no_binary_form() -> None:
    # 0.1 s is not a binary number and 0.7 / 0.1 is not 7 in floating point; the seventh step runs all the same.
    assert follow(machine(soft_start=0.7), "ggggggg")[-2:] == [(SOFT, 6 / 7), (RUNNING, 1.0)]


def test_without_times_the_weight_is_all_or_nothing() -> None:
    states = machine(soft_start=0.0, stop_time=0.0)
    assert not states.ramps
    assert follow(states, "bgbg") == [(HOLD, 0.0), (RUNNING, 1.0), (HOLD, 0.0), (RUNNING, 1.0)]


def test_hold_fades_and_goes_on_from_where_it_stands() -> None:
    # Down by a half in a bad step, up by a quarter in a good one.
    expected = [(HOLD, 0.5), (SOFT, 0.75), (HOLD, 0.25), (HOLD, 0.0), (SOFT, 0.25)]
    states = machine()
    follow(states, "gggg")
    assert follow(states, "bgbbg") == expected


def test_third_bad_step_in_a_row_stops() -> None:
    states = machine()
    assert [state for state, _ in follow(states, "gbbgbbbg")] == [SOFT, HOLD, HOLD, SOFT, HOLD, HOLD, STOPPED, STOPPED]
    assert states.held_too_long
    states.stop()
    assert not states.held_too_long


def test_stop_fades_in_two_steps_and_lasts_until_clear() -> None:
    states = machine()
    follow(states, "gggg")
    states.stop()
    assert State(int(states.state)) == STOPPED
    states.start()
    states.reset()
    assert follow(states, "g") == [(STOPPED, 0.0)]
    states.clear()
    assert follow(states, "g") == [(SOFT, 0.25)]


def test_stop_in_the_soft_start_fades_from_there() -> None:
    states = machine()
    follow(states, "ggg")
    states.stop()
    assert follow(states, "gbg") == [(STOPPED, 0.25), (STOPPED, 0.0), (STOPPED, 0.0)]


def test_idle_waits_for_start_and_counts_nothing() -> None:
    states = machine(autostart=False)
    assert follow(states, "gbbbbbb") == [(IDLE, 0.0)] * 7
    states.start()
    assert follow(states, "bg") == [(HOLD, 0.0), (SOFT, 0.25)]
    states.start()
    assert follow(states, "g") == [(SOFT, 0.5)]


def test_clear_leads_to_idle_and_reset_too() -> None:
    states = machine(autostart=False)
    states.start()
    follow(states, "gg")
    states.reset()
    assert follow(states, "g") == [(IDLE, 0.0)]
    states.stop()
    states.clear()
    assert follow(states, "g") == [(IDLE, 0.0)]


def test_clear_does_nothing_to_a_robot_that_runs() -> None:
    states = machine()
    follow(states, "gggg")
    states.clear()
    assert follow(states, "g") == [(RUNNING, 1.0)]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"soft_start": -0.1}, "soft_start=-0.1 is no duration"),
        ({"stop_time": np.inf}, "stop_time=inf is no duration"),
        ({"soft_start": np.nan}, "soft_start=nan is no duration"),
        ({"max_hold": 0}, "max_hold=0 lets no step be bad"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        machine(**setting)


events = st.lists(st.sampled_from(["start", "stop", "clear", "reset", *["step"] * 8]), max_size=80)


@given(
    events=events,
    seed=st.integers(0, 99),
    soft_start=st.sampled_from([0.0, 0.3, 1.0]),
    stop_time=st.sampled_from([0.0, 0.5]),
    autostart=st.booleans(),
)
def test_any_order_of_events(
    events: list[str], seed: int, soft_start: float, stop_time: float, autostart: bool
) -> None:
    settings = {"soft_start": soft_start, "stop_time": stop_time, "autostart": autostart}
    together, alone = machine((3,), **settings), [machine(**settings) for _ in range(3)]
    generator, latched = np.random.default_rng(seed), False
    for event in events:
        before = together.weight
        if event == "step":
            good = generator.random(3) < 0.7
            together.step(good)
            for one, its in zip(alone, good, strict=True):
                one.step(its)
            # 0.3 s are 3 periods, 1 s 10, 0.5 s 5; 0 is one.
            assert (together.weight - before <= 1 / max(10 * soft_start, 1) + 1e-12).all()
            assert (before - together.weight <= 1 / max(10 * stop_time, 1) + 1e-12).all()
            assert (together.weight[together.state == RUNNING] == 1).all()
        else:
            for states in (together, *alone):
                getattr(states, event)()
            latched = event == "stop" or (latched and event != "clear")
        assert ((together.weight >= 0) & (together.weight <= 1)).all()
        assert not latched or (together.state == STOPPED).all()
        assert together.state.tolist() == [int(one.state) for one in alone]
        assert together.weight.tolist() == [float(one.weight) for one in alone]
        assert together.held_too_long.tolist() == [bool(one.held_too_long) for one in alone]
