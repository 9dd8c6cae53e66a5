"""What the logs of a robot have in common: from observations and commands in time to whole transitions."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from adapters.errors import UserError

# Share of the control period by which the time between two observations may differ from it.
PERIOD_TOLERANCE = 0.2
NS = 1_000_000_000


class Observed(Protocol):
    """An observation that was put together from messages."""

    @property
    def time(self) -> float:
        """The stamp in s."""

    @property
    def values(self) -> np.ndarray | None:
        """`(obs_dim,)`, None where the messages hold none."""

    @property
    def fault(self) -> str:
        """Why they do not."""


class Inputs(Protocol):
    """Puts messages together to observations, as `deploy.ros2.inputs.Inputs` does."""

    topics: tuple[str, ...]

    def receive(self, topic: str, message: Any, now: float) -> Observed | None:
        """Take in a message that came at `now` s; return the observation that it completes, None where it does not."""


class Task(Protocol):
    """What a robot is to do, told by what is observed."""

    def reward(self, observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        """Return the rewards `(n,)` of transitions."""

    def terminated(self, observations: np.ndarray) -> np.ndarray:
        """Return `(n,)` bool, whether the episode is over there."""


@dataclass(frozen=True)
class LogLayout:
    """What a robot's log is to be read as.

    Attributes:
        observation_names: terms of the observation, in the order that the data set is to have.
        action_names: those of a command.
        inputs: puts ROS 2's messages together; LCM's name their numbers.
        task: gives rewards and terminals, which no log holds; without one rewards are 0 and nothing is a terminal.
    """

    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    inputs: Inputs | None = None
    task: Task | None = None


class Moment(NamedTuple):
    """An observation and what followed.

    Attributes:
        time: ns.
        observation: `(obs_dim,)`.
        action: `(act_dim,)`, the policy's command that acted until the next observation; None where there was none, or
            nobody knows which.
    """

    time: int
    observation: np.ndarray
    action: np.ndarray | None


def transitions(moments: Sequence[Moment], control_dt: float, task: Task | None, path: Path) -> dict[str, np.ndarray]:
    """Return the transitions of a log in D4RL's layout.

    A transition has two finite observations, one control period apart, and between them one command of the policy.
    Where something of that is lacking the episode ends with a timeout. A warning says what was left out.

    Args:
        moments: in the order of the log.
        control_dt: s.
        task: gives rewards and terminals.
        path: the log, for messages.

    Raises:
        UserError: there is no transition.
    """
    if len(moments) < 2:
        raise UserError(f"{path} is as good as empty: it holds {len(moments)} whole observations; record it again.")
    observations = np.array([moment.observation for moment in moments])
    periods = np.diff([moment.time for moment in moments]) / NS
    finite = np.isfinite(observations).all(1)
    over = np.zeros(len(moments), bool)
    if task is not None:
        over[finite] = task.terminated(observations[finite])
    rows = _select(
        {
            "were not one control period apart": np.abs(periods - control_dt) <= PERIOD_TOLERANCE * control_dt,
            "were not finite": finite[:-1] & finite[1:],
            "had no command of a running controller between them": np.array([m.action is not None for m in moments])[
                :-1
            ],
            "came after the end of the episode": ~over[:-1],
        },
        path,
    )
    terminals = over[rows + 1]
    ends = np.append(np.diff(rows) > 1, True) | terminals
    actions = np.array([moments[row].action for row in rows])
    return {
        "observations": observations[rows],
        "actions": actions,
        "rewards": _rewards(task, observations[rows], actions, observations[rows + 1], path),
        "terminals": terminals,
        "timeouts": ends & ~terminals,
        "final_observations": observations[rows + 1][ends],
    }


def _select(checks: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    """Return the pairs of observations that pass every check, and say how many do not pass which."""
    good = np.logical_and.reduce(list(checks.values()))
    # Each pair counts once, under the first check that it fails.
    faults = Counter(
        next(text for text, passed in checks.items() if not passed[pair]) for pair in np.flatnonzero(~good)
    )
    lacking = ", ".join(f"{count} {text}" for text, count in faults.items())
    if not good.any():
        raise UserError(
            f"{path} holds no transition: of {len(good)} pairs of observations {lacking}; record it again without that."
        )
    if faults:
        warnings.warn(f"{path}: of {len(good)} pairs of observations {lacking}; they were left out.", stacklevel=2)
    return np.flatnonzero(good)


def _rewards(
    task: Task | None, observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray, path: Path
) -> np.ndarray:
    if task is not None:
        return task.reward(observations, actions, next_observations)
    warnings.warn(f"{path} holds no rewards, so they are 0; surefoot collect bag={path} computes them.", stacklevel=2)
    return np.zeros(len(observations))
