"""Data sets for another task than the one they were recorded in: the same motion with other rewards and ends.

MOPO (Yu et al. 2020, section 5.2) and MABE (Cang et al. 2021, section 4) learn such tasks from logs made for others.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np

from adapters.datasets import TransitionDataset
from adapters.errors import UserError
from sim.environments import GymnasiumTask, make_environment
from sim.logs import observed_velocities

Speed = Literal["rewards", "observed"]

# Speeds read off rewards may differ from the observed ones by this share (root mean square); they do by 0.11 at most
# in the shipped policies' data, and by 0.9 and more where the rewards are all 0.
MISFIT = 0.5


def relabel(dataset: TransitionDataset, task: str, speed: Speed = "rewards") -> TransitionDataset:
    """Return the data as another task of the same robot would have recorded it.

    The observation is put together anew, the rewards are the task's own (`GymnasiumTask.pay`), and where the task ends
    episodes by another rule, what came after an end is left out, with a warning, and what was an end of the old task
    alone becomes a timeout.

    What a reward needs and no observation holds is the speed over the whole step. It is in the log's own rewards,
    which pay it: exact where both tasks pay speed along one line. Across that line, as for half of ant-angle, the mean
    of the observed speeds before and after stands for it: ant-angle's rewards are then off by 0.03 (root mean square)
    for the shipped policies of ant, the returns by less than 1 %. Height is paid above the first observation of every
    episode in the log.

    Args:
        dataset: the data, of a task of gymnasium's robots.
        task: the name of the new task in configs/env.
        speed: rewards, as above; observed, to take observed speeds alone, where the rewards are not the old task's. On
            HalfCheetah's shipped data these are off by 0.31 m/s.

    Raises:
        UserError: the tasks are not of one robot, or the log's rewards do not tell the speed.
    """
    old, new = _task(dataset.metadata.env), _task(task)
    if (old.config.xml, old.frame_skip) != (new.config.xml, new.frame_skip):
        raise UserError(
            f"{new.name} is a task of {new.config.gym_id}'s robot and the data is of {old.config.gym_id}'s; choose a "
            "task of the same robot."
        )
    if (dataset.obs_dim, dataset.act_dim) != (old.obs_dim, old.act_dim):
        raise UserError(
            f"the data has {dataset.obs_dim} observations and {dataset.act_dim} actions where {old.name} has "
            f"{old.obs_dim} and {old.act_dim}; say what it is of."
        )
    observations, following = (_observe(old, new, array) for array in (dataset.observations, dataset.next_observations))
    terminals, timeouts, kept = _ends(dataset, old, new, following)
    velocity = _speed(dataset, old, new) if speed == "rewards" else _observed(dataset, old) @ new.direction
    arrays = {
        "observations": observations,
        "actions": dataset.actions,
        "rewards": new.pay(velocity, _exact(dataset.actions), lambda: ~terminals, _rise(dataset)),
        "next_observations": following,
        "terminals": terminals,
        "timeouts": timeouts,
    }
    metadata = dataclasses.replace(
        dataset.metadata,
        env=new.name,
        observation_names=new.observation_names,
        action_names=new.action_names,
        source=f"{dataset.metadata.source}; for {new.name} instead of {old.name}, speed={speed}, of SHA-256 "
        f"{dataset.metadata.sha256}",
    )
    kept_arrays = {name: array[kept] for name, array in arrays.items()}
    return TransitionDataset.from_arrays(kept_arrays, metadata, "the relabelled data")


def reward_by(
    dataset: TransitionDataset, function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], name: str
) -> TransitionDataset:
    """Return the data with the rewards of a function; all else stays.

    Args:
        dataset: the data.
        function: observations `(N, obs_dim)`, actions `(N, act_dim)` and next observations `(N, obs_dim)` to rewards
            `(N,)`.
        name: what the function is called, for the metadata and for messages.

    Raises:
        UserError: the function fails, or returns something else.
    """
    arrays = {key: array.copy() for key, array in dataset.arrays().items()}
    try:
        rewards = np.asarray(function(arrays["observations"], arrays["actions"], arrays["next_observations"]))
    except Exception as error:
        raise UserError(f"reward={name} fails on this data ({type(error).__name__}: {error}); mend it.") from error
    if rewards.shape != (len(dataset),):
        raise UserError(
            f"reward={name} returns the shape {rewards.shape} where ({len(dataset)},) is needed, one number a row."
        )
    source = f"{dataset.metadata.source}; rewards of {name}, of SHA-256 {dataset.metadata.sha256}"
    return TransitionDataset.from_arrays(
        dataset.arrays() | {"rewards": rewards}, dataclasses.replace(dataset.metadata, source=source), f"reward={name}"
    )


def _task(name: str) -> GymnasiumTask:
    task = make_environment(name)
    if not isinstance(task, GymnasiumTask):
        raise UserError(f"the rewards of {name} are not told by observations; choose a task of gymnasium's robots.")
    return task


def _exact(array: np.ndarray) -> np.ndarray:
    """Return the numbers in double precision, in which rewards are computed."""
    return array.astype(np.float64)


def _observe(old: GymnasiumTask, new: GymnasiumTask, observations: np.ndarray) -> np.ndarray:
    """Return what the new task observes where the old one observed `(N, obs_dim)`."""
    known = dict(zip(old.observation_names, observations.T, strict=True))
    known["torso_height"] = old.torso_height(observations)
    return np.stack([known[name] for name in new.observation_names], 1)


def _ends(
    dataset: TransitionDataset, old: GymnasiumTask, new: GymnasiumTask, following: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return terminals and timeouts under the new task's rule, and which rows are kept, each `(N,)` bool.

    Args:
        dataset: the data.
        old: its task.
        new: the new one.
        following: what that observes after every row, `(N, obs_dim)`.
    """
    ends, kept = np.zeros(len(dataset), bool), np.ones(len(dataset), bool)
    if new.config.termination == old.config.termination:
        return dataset.terminals, dataset.timeouts, kept
    over = new.terminated(following)
    for rows in dataset.episode_slices():
        last = rows.start + int(np.argmax(over[rows])) if over[rows].any() else rows.stop - 1
        ends[last], kept[last + 1 : rows.stop] = True, False
    if not kept.all():
        warnings.warn(
            f"{(~kept).sum()} of {len(dataset)} rows came after {new.name} had ended the episode; they were left out.",
            stacklevel=3,
        )
    return over & ends, ends & ~over, kept


def _rise(dataset: TransitionDataset) -> np.ndarray:
    """Return how far above its episode's first observation every row ends, `(N,)` in m."""
    starts = np.concatenate(
        [np.full(r.stop - r.start, dataset.observations[r.start, 0]) for r in dataset.episode_slices()]
    )
    return _exact(dataset.next_observations[:, 0]) - starts


def _observed(dataset: TransitionDataset, task: GymnasiumTask) -> np.ndarray:
    """Return the mean observed velocities of every step, `(N, 1 or 2)` in m/s."""
    return observed_velocities(task, _exact(dataset.observations), _exact(dataset.next_observations))


def _speed(dataset: TransitionDataset, old: GymnasiumTask, new: GymnasiumTask) -> np.ndarray:
    """Return the speeds `(N,)` in m/s in the new task's direction, out of the old one's rewards."""
    cap, same_direction = old.config.speed_cap, old.config.heading == new.config.heading
    if cap is not None and not (same_direction and new.config.speed_cap is not None and new.config.speed_cap <= cap):
        raise UserError(
            f"the rewards of {old.name} tell no speed beyond {cap:g} m/s, and {new.name} needs it; give speed=observed."
        )
    zeros, healthy = np.zeros(len(dataset)), ~dataset.terminals
    paid = dataset.rewards - old.pay(zeros, _exact(dataset.actions), lambda: healthy, _rise(dataset))
    observed = _observed(dataset, old)
    along = observed @ old.direction
    along = along if cap is None else np.minimum(along, cap)
    if np.square(paid - along).mean() > MISFIT**2 * np.square(along).mean():
        raise UserError(
            f"the rewards of the data are not those of {old.name}: the speed that they pay is not the observed one; "
            "give speed=observed."
        )
    # A robot in the plane of x and z has nothing to its left.
    left = observed @ [-old.direction[1], old.direction[0]] if len(old.direction) == 2 else zeros
    turn = np.deg2rad(new.config.heading - old.config.heading)
    return np.cos(turn) * paid + np.sin(turn) * left
