"""The watchdog: which stamps it takes for good, and when it calls the latest message too old."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UserError
from deploy.watchdog import VERDICTS, Verdict, Watchdog, seconds

GOOD = Verdict.GOOD


def check(messages: list[tuple[Any, ...]], **settings: Any) -> list[Verdict]:
    """Judge messages (now, stamp) or (now, stamp, sequence) with a timeout of 0.1 s."""
    watchdog = Watchdog(**({"stale_timeout": 0.1} | settings))
    return [watchdog.check(*message) for message in messages]


def test_every_verdict_has_its_words() -> None:
    assert VERDICTS.keys() == set(Verdict)
    assert [verdict for verdict, words in VERDICTS.items() if not words] == [GOOD]


def test_fresh_messages_are_good_up_to_the_timeout() -> None:
    # Ages of 0, 0.05 and 0.125 s.
    assert check([(10.0, 10.0), (10.25, 10.2), (10.5, 10.375)]) == [GOOD, GOOD, Verdict.STALE]


def test_stale_message_takes_no_good_ones_place() -> None:
    # The second is stale and later than the third, which is fresh when it comes.
    messages = [(10.0, 10.0), (10.5, 10.3), (10.5, 10.45)]
    assert check(messages) == [GOOD, Verdict.STALE, GOOD]


def test_repeated_and_reordered_messages() -> None:
    messages = [(1.0, 0.98), (1.01, 0.98), (1.02, 0.97), (1.03, 1.02)]
    assert check(messages) == [GOOD, Verdict.REPEATED, Verdict.REORDERED, GOOD]


@pytest.mark.parametrize(("ahead", "verdict"), [(0.0, GOOD), (0.04, GOOD), (0.06, Verdict.FUTURE)])
def test_stamp_may_be_ahead_by_the_tolerance(ahead: float, verdict: Verdict) -> None:
    assert check([(5.0, 5.0 + ahead)], future_tolerance=0.05) == [verdict]


def test_stamp_from_the_future_takes_no_good_ones_place() -> None:
    assert check([(5.0, 5.0), (5.02, 9.0), (5.04, 5.03)]) == [GOOD, Verdict.FUTURE, GOOD]


def test_clock_set_back_is_bad_once() -> None:
    messages = [(100.0, 99.99), (100.02, 100.01), (50.0, 49.99), (50.02, 50.01)]
    assert check(messages) == [GOOD, GOOD, Verdict.CLOCK_BACK, GOOD]


def test_clock_that_jumps_ahead_is_bad_once() -> None:
    messages = [(100.0, 99.99), (102.5, 102.49), (102.52, 102.51)]
    assert check(messages, jump=2.0) == [GOOD, Verdict.CLOCK_AHEAD, GOOD]


def test_pause_within_the_timeout_is_no_jump() -> None:
    assert check([(0.0, 0.0), (4.0, 4.0)], stale_timeout=5.0, jump=1.0) == [GOOD, GOOD]


def test_only_the_receivers_clock_jumps() -> None:
    # Ahead: every stamp is old until the clocks agree again. Back: every stamp lies in the future until then.
    ahead = [(0.0, 0.0), (0.52, 0.02), (0.54, 0.04), (0.06, 0.06), (0.08, 0.08)]
    assert check(ahead) == [GOOD, Verdict.STALE, Verdict.STALE, Verdict.CLOCK_BACK, GOOD]
    back = [(10.0, 10.0), (9.5, 10.02), (9.52, 10.04), (10.06, 10.06)]
    assert check(back) == [GOOD, Verdict.CLOCK_BACK, Verdict.FUTURE, GOOD]


def test_only_the_senders_clock_jumps() -> None:
    ahead = [(10.0, 10.0), (10.02, 15.02), (10.04, 10.04)]
    assert check(ahead) == [GOOD, Verdict.FUTURE, GOOD]
    back = [(10.0, 10.0), (10.02, 5.02), (10.04, 5.04), (10.06, 10.06)]
    assert check(back) == [GOOD, Verdict.REORDERED, Verdict.REORDERED, GOOD]


def test_sequence_numbers_tell_what_new_stamps_hide() -> None:
    # A frozen sender that stamps its last message anew, a message overtaken on its way, a sender that counts anew.
    messages = [(0.0, 0.0, 7), (0.02, 0.02, 7), (0.04, 0.04, 9), (0.06, 0.06, 8), (0.08, 0.08, 10), (0.1, 0.1, 0)]
    expected = [GOOD, Verdict.REPEATED, GOOD, Verdict.REORDERED, GOOD, Verdict.REORDERED]
    assert check(messages) == expected
    assert check([*messages, (0.12, 0.12, 1)])[-1] == GOOD


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, None, "noon", 10**400])
def test_time_that_is_no_number(nonsense: Any) -> None:
    messages = [(1.0, 1.0), (nonsense, 1.02), (1.04, nonsense), (1.06, 1.06)]
    assert check(messages) == [GOOD, Verdict.NO_TIME, Verdict.NO_TIME, GOOD]


def test_latest_good_message_expires() -> None:
    watchdog = Watchdog(0.1)
    assert watchdog.expired(0.0)
    watchdog.check(1.0, 0.95)
    watchdog.check(1.01, 0.5)
    # From 0.95 s on, whatever bad messages come.
    assert [watchdog.expired(now) for now in (1.0, 1.04, 1.06, 9.0)] == [False, False, True, True]
    # A clock before the message's stamp was set back, and NaN is no time.
    assert [watchdog.expired(now) for now in (0.945, 0.93, 0.0, math.nan)] == [False, True, True, True]


def test_jump_expires_what_came_before() -> None:
    watchdog = Watchdog(0.1)
    watchdog.check(1.0, 1.0)
    watchdog.check(0.98, 0.98)
    assert watchdog.expired(1.0)


def test_counts_every_verdict() -> None:
    watchdog = Watchdog(0.1)
    for message in [(1.0, 1.0), (1.02, 1.02), (1.04, 1.02), (1.05, math.nan)]:
        watchdog.check(*message)
    assert watchdog.counts == {GOOD: 2, Verdict.REPEATED: 1, Verdict.NO_TIME: 1}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stale_timeout": 0.0}, "stale_timeout=0.0 is no time to wait"),
        ({"stale_timeout": math.nan}, "stale_timeout=nan is no time to wait"),
        ({"jump": -1.0}, "jump=-1.0 is no time to wait"),
        ({"future_tolerance": -0.1}, "future_tolerance=-0.1 is no tolerance"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check([], **settings)


anything = st.one_of(st.floats(0, 3), st.floats(allow_nan=True, allow_infinity=True), st.none(), st.text(max_size=2))
messages = st.lists(st.tuples(anything, anything, st.none() | st.integers(-3, 9)), max_size=40)


@given(messages=messages, asked=anything)
def test_good_is_fresh_newer_and_counted_on(messages: list[tuple[Any, Any, int | None]], asked: Any) -> None:
    watchdog, previous = Watchdog(0.5, future_tolerance=0.1), -math.inf
    for now, stamp, sequence in messages:
        verdict = watchdog.check(now, stamp, sequence)
        if verdict in (Verdict.CLOCK_BACK, Verdict.CLOCK_AHEAD):
            previous = -math.inf
        if verdict == GOOD:
            assert -0.1 <= float(now) - float(stamp) <= 0.5 or float(stamp) == pytest.approx(float(now) + 0.1)
            assert float(stamp) > previous
            previous = float(stamp)
            assert not watchdog.expired(stamp)
        if watchdog.expired(asked) is False:
            assert previous - 0.1 <= seconds(asked) <= previous + 0.5 + 1e-9
    assert sum(watchdog.counts.values()) == len(messages)
