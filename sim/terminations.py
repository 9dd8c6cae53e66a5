"""When an episode ends: MOPO's rules, each a pure function of the observation.

Only operators and methods that numpy arrays and torch tensors share are used, so that the same rule ends a model
rollout in torch and an episode in MuJoCo. The values are those of MOPO's published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

# A numpy array or a torch tensor; torch is not imported here, so the type cannot be named.
Array = Any


def never(observations: Array) -> Array:
    """HalfCheetah: no observation ends the episode.

    Args:
        observations: `(..., obs_dim)`.

    Returns:
        `(...)` bool, all false, not-a-number included.
    """
    return observations[..., 0] < -math.inf


def hopper(observations: Array) -> Array:
    """Hopper: over when a value is not finite, one past the height reaches 100, or it is too low or too tilted.

    Args:
        observations: `(..., obs_dim)`; torso height in m and torso angle in rad come first.

    Returns:
        `(...)` bool.
    """
    height, angle = observations[..., 0], observations[..., 1]
    bounded = (abs(observations[..., 1:]) < 100).all(-1) & (height < math.inf)
    return ~(bounded & (height > 0.7) & (abs(angle) < 0.2))


def walker2d(observations: Array) -> Array:
    """Walker2d: over when the torso leaves 0.8 m to 2 m or tilts by 1 rad.

    Args:
        observations: `(..., obs_dim)`; torso height in m and torso angle in rad come first.

    Returns:
        `(...)` bool.
    """
    height, angle = observations[..., 0], observations[..., 1]
    return ~((height > 0.8) & (height < 2.0) & (abs(angle) < 1.0))


def ant(observations: Array) -> Array:
    """Ant: over when a value is not finite or the torso leaves 0.2 m to 1 m.

    Args:
        observations: `(..., obs_dim)`; torso height in m comes first.

    Returns:
        `(...)` bool.
    """
    height = observations[..., 0]
    return ~((abs(observations) < math.inf).all(-1) & (height >= 0.2) & (height <= 1.0))


TERMINATIONS: dict[str, Callable[[Array], Array]] = {"never": never, "hopper": hopper, "walker2d": walker2d, "ant": ant}
