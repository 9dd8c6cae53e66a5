"""Tells which commands that reached a robot were good."""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal, NamedTuple

import numpy as np

from deploy.bundle import Bundle

Kind = Literal["safe", "starting", "running", "bad"]

# Control periods: those of silence that policy and safety filter each allow, and those within which, after the
# timeout, all has to be over.
TIMEOUT, MARGIN = 3, 2
# Control periods for which the robot's own driver keeps a command where nothing comes at all, not even the safe one.
DRIVER_TIMEOUT = TIMEOUT + MARGIN + 1
TOLERANCE = 1e-6


class Input(NamedTuple):
    """A command that reached the robot: s, the wall clock, and its numbers."""

    time: float
    numbers: np.ndarray


class Judge:
    """Tells good commands from bad ones.

    A command is good if it is the safe one, 0, or what the policy itself answers to an observation that was sound and
    no older than the policy's and the safety filter's timeouts together and `MARGIN` control periods; in a soft start
    it may be any share of that answer. Every other command is bad: one that is not finite, of another size or beyond
    the limits, from another source, or computed from an observation that was faulty, out of date, or never made.

    Args:
        bundle: the policy.
        slack: s by which an observation may be older, where the machine is so busy that processes come late.
    """

    def __init__(self, bundle: Bundle, slack: float = 0.0) -> None:
        self._bundle = bundle
        self._max_age = (2 * TIMEOUT + MARGIN) * bundle.manifest.robot.control_dt + slack
        self._times: list[float] = []
        self._answers: list[np.ndarray] = []

    def observed(self, time: float, values: np.ndarray) -> None:
        """Take in a sound observation `(obs_dim,)` made at `time`, in s on the wall clock."""
        self._times.append(time)
        self._answers.append(np.asarray(self._bundle.act(values), dtype=np.float64))

    def kind(self, command: Input) -> Kind:
        """Return what a command is."""
        numbers = command.numbers
        if numbers.shape != (self._bundle.manifest.act_dim,) or not np.isfinite(numbers).all():
            return "bad"
        if not numbers.any():
            return "safe"
        first = bisect_left(self._times, command.time - self._max_age)
        answers = self._answers[first : bisect_left(self._times, command.time)]
        if any(_is_close(numbers, answer) for answer in answers):
            return "running"
        return "starting" if any(_is_share(numbers, answer) for answer in answers) else "bad"


def _is_close(numbers: np.ndarray, answer: np.ndarray) -> bool:
    return bool(np.abs(numbers - answer).max() <= TOLERANCE)


def _is_share(numbers: np.ndarray, answer: np.ndarray) -> bool:
    """Whether a command is part of an answer, by one factor between 0 and 1."""
    share = float(numbers @ answer) / float(answer @ answer)
    return 0.0 < share < 1.0 and _is_close(numbers, share * answer)
