"""Limits of observations and commands, as pure functions over any leading dimensions.

Whatever comes in, the command that comes out is finite and within its limits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deploy.spec import RobotDescription

# The policy computes in float32: a value beyond its range would be infinite there.
LARGEST = float(np.finfo(np.float32).max)


class ObservationBounds(NamedTuple):
    """Lowest and highest value of each observation term that is acceptable, `(obs_dim,)`."""

    low: np.ndarray
    high: np.ndarray


def observation_bounds(robot: RobotDescription) -> ObservationBounds:
    """Return the bounds that the limits of position, velocity, effort and tilt put on the observation."""
    low, high = np.full(robot.obs_dim, -LARGEST), np.full(robot.obs_dim, LARGEST)
    limits = robot.limits
    for joint, (lowest, highest) in (limits.position or {}).items():
        index = robot.index("joint_position", joint)
        low[index], high[index] = lowest, highest
    for source, by_joint in (("joint_velocity", limits.velocity), ("joint_effort", limits.effort)):
        for joint, largest in (by_joint or {}).items():
            index = robot.index(source, joint)
            low[index], high[index] = -largest, largest
    if limits.tilt is not None:
        for index, term in enumerate(robot.observations):
            if term.source == "tilt":
                low[index], high[index] = -limits.tilt, limits.tilt
    return ObservationBounds(low, high)


def faulty_terms(obs: np.ndarray, bounds: ObservationBounds) -> np.ndarray:
    """Return `(..., obs_dim)` bool: which terms of `obs` are not finite or out of bounds."""
    # A NaN compares false with both bounds, an infinity with one.
    return ~((obs >= bounds.low) & (obs <= bounds.high))


def limit_command(
    command: np.ndarray, previous: np.ndarray, low: np.ndarray, high: np.ndarray, max_step: float | None
) -> np.ndarray:
    """Bound a command and its change since the one before.

    Args:
        command: `(..., act_dim)`; where a number is not finite, `previous` is kept.
        previous: `(..., act_dim)`, the last command sent, finite and within low and high.
        low: `(act_dim,)`, lowest command.
        high: `(act_dim,)`, highest command.
        max_step: largest change in one control period, None for no such limit.

    Returns:
        `(..., act_dim)`, finite, within low and high, and at most `max_step` away from `previous`.
    """
    command = np.clip(np.where(np.isfinite(command), command, previous), low, high)
    if max_step is None:
        return command
    # Clipped once more because the sum may round to a value just beyond a bound.
    return np.clip(previous + np.clip(command - previous, -max_step, max_step), low, high)
