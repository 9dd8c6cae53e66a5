"""The states of a controller: idle -> soft start -> running -> hold -> stopped, for many robots side by side.

It is pure: it counts control periods and knows no clock, observation or command. What it adds to the states is the
weight that the policy has in the command. The weight rises evenly over a soft start and falls evenly over a hold or a
stop, always from where it stands, so that no change of state makes the command jump.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np

from adapters.errors import UserError


class State(IntEnum):
    """What the controller does with a robot.

    It waits for `start`, gives the policy more and more weight, runs it, waits in safety for a good step, or has
    stopped until `clear`.
    """

    IDLE = 0
    SOFT_START = 1
    RUNNING = 2
    HOLD = 3
    STOPPED = 4


# Enum members as plain integers, which numpy compares and stores several times faster, for use at every step.
IDLE, SOFT_START, RUNNING, HOLD, STOPPED = (int(state) for state in State)


class StateMachine:
    """The states of `batch` robots.

    Args:
        batch: leading shape of all arrays; `()` is one robot.
        control_dt: control period in s.
        soft_start: s over which the weight rises from 0 to 1, in whole control periods; 0: at once.
        stop_time: s over which it falls from 1 to 0; 0: at once.
        max_hold: bad steps in a row after which a robot is stopped.
        autostart: whether a robot starts without being asked to, at first and after `clear`.

    Attributes:
        state: `batch`, `State` as integers.
        held_too_long: `batch` bool, whether a stopped robot was stopped by bad steps and not on request.

    Raises:
        UserError: a duration is not finite or negative, or max_hold is below 1.
    """

    def __init__(
        self,
        batch: tuple[int, ...],
        control_dt: float,
        soft_start: float,
        stop_time: float,
        max_hold: int,
        autostart: bool,
    ) -> None:
        for name, duration in (("soft_start", soft_start), ("stop_time", stop_time)):
            if not (math.isfinite(duration) and duration >= 0):
                raise UserError(f"{name}={duration} is no duration; give seconds, 0 for at once.")
        if max_hold < 1:
            raise UserError(f"max_hold={max_hold} lets no step be bad; give 1 or more.")
        self.batch, self.max_hold, self.autostart = batch, max_hold, autostart
        up, down = (max(round(duration / control_dt), 1) for duration in (soft_start, stop_time))
        # The weight as a whole number of parts of `full`, so that it arrives at 0 and at 1 exactly.
        self.full, self._rise, self._fall = up * down, down, up
        self.state = np.full(batch, IDLE)
        self.held_too_long = np.zeros(batch, dtype=bool)
        self.reset()

    @property
    def ramps(self) -> bool:
        """Whether the weight is ever anything but 0 and 1."""
        return self.full > 1

    @property
    def weight(self) -> np.ndarray:
        """`batch`, the policy's share in the command, 0 to 1; the safe command has the rest."""
        return np.asarray(self._parts / self.full)

    def reset(self) -> None:
        """Begin anew, without any weight; a robot that was stopped stays so until `clear`."""
        self.state = np.where(self.state == STOPPED, STOPPED, self._first)
        self.bad_steps = np.zeros(self.batch, dtype=int)
        self._parts = np.zeros(self.batch, dtype=int)

    @property
    def _first(self) -> int:
        return SOFT_START if self.autostart else IDLE

    def start(self) -> None:
        """Start the robots that are idle."""
        self.state = np.where(self.state == IDLE, SOFT_START, self.state)

    def stop(self, lanes: np.ndarray | bool = True) -> None:
        """Stop the robots `batch` of these, or every one, until `clear`."""
        self.state = np.where(lanes, STOPPED, self.state)
        self.held_too_long = self.held_too_long & ~np.asarray(lanes)

    def clear(self) -> None:
        """Let stopped robots go to idle, with `autostart` on to the soft start."""
        self.state = np.where(self.state == STOPPED, self._first, self.state)
        self.held_too_long = np.zeros(self.batch, dtype=bool)
        self.bad_steps = np.zeros(self.batch, dtype=int)

    def step(self, good: np.ndarray) -> None:
        """Take in one control period.

        Args:
            good: `batch` bool, whether there is a command of the policy's to give.
        """
        if good.all() and (self.state == RUNNING).all():
            return  # nearly every step is this one, and it changes nothing
        live = (self.state != IDLE) & (self.state != STOPPED)
        runs, held = live & good, live & ~good
        self.bad_steps = np.where(held, self.bad_steps + 1, 0)
        too_long = self.bad_steps >= self.max_hold
        self.held_too_long = self.held_too_long | too_long
        # With neither soft start nor stop time the weight is 1 at the first good step and 0 at the first bad one.
        self._parts = np.where(runs, np.minimum(self._parts + self._rise, self.full), self._parts - self._fall)
        self._parts = np.maximum(self._parts, 0)
        under_way = np.where(self._parts < self.full, SOFT_START, RUNNING)
        self.state = np.where(held, np.where(too_long, STOPPED, HOLD), np.where(runs, under_way, self.state))
