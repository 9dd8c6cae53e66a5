"""What stands between a robot and its controller: noise on what is seen, and delays of what is seen and commanded.

The physics knows nothing of it. MuJoCo has delays of its own, but as part of the physics state, whose size would then
differ from world to world.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from sim.worlds import World


class DelayLine:
    """Rows that come out some steps after they went in; every lane has a delay of its own.

    Nothing comes out of order: where a delay grows, what came out last is held until the next row is due; where it
    shrinks, the rows that are overdue are skipped.

    Args:
        first: `(lanes, dim)`, what comes out until a row is due.
    """

    def __init__(self, first: np.ndarray) -> None:
        self._rows = [first.copy()]
        self._ages = self._no_ages = np.zeros(len(first), int)

    def step(self, rows: np.ndarray, delays: np.ndarray | None) -> np.ndarray:
        """Take the rows `(lanes, dim)` of this step and return those that are due.

        Args:
            rows: what goes in; later changes to the array have no effect.
            delays: `(lanes,)`, in steps; None where there are none, which is faster.
        """
        if delays is None:
            self._rows, self._ages = [rows.copy()], self._no_ages
            return rows
        self._rows.append(rows.copy())
        self._ages = np.minimum(self._ages + 1, delays)
        del self._rows[: -1 - self._ages.max()]
        return np.stack(self._rows)[-1 - self._ages, np.arange(len(rows))]


class Sensing:
    """Noise and delays of many robots at once, one a lane.

    Args:
        lanes: how many robots.
        obs_dim: size of an observation.
        act_dim: size of an action.
    """

    def __init__(self, lanes: int, obs_dim: int, act_dim: int) -> None:
        self._noise = np.zeros((lanes, obs_dim))
        self._delays = np.zeros((2, lanes), int)
        self._idle = np.zeros((lanes, act_dim))
        self.change({})

    def reset(self, generators: Sequence[np.random.Generator]) -> None:
        """Start an episode, with the sources of noise of every lane."""
        self._generators = list(generators)
        self._seen: DelayLine | None = None
        self._sent = DelayLine(self._idle)

    def change(self, worlds: Mapping[int, World]) -> None:
        """Take noise and delays of some lanes from their worlds, from now on."""
        for lane, world in worlds.items():
            self._noise[lane] = world.observation_noise
            self._delays[:, lane] = world.observation_delay, world.actuator_delay
        self._noisy = np.flatnonzero(self._noise.any(-1))
        self._late, self._slow = (delays if delays.any() else None for delays in self._delays)

    def sense(self, observations: np.ndarray) -> np.ndarray:
        """Return what the controllers see, `(lanes, obs_dim)`, where the truth is `observations`; once a step."""
        if self._noisy.size:
            observations = observations.copy()
            for lane in self._noisy:
                draw = self._generators[lane].standard_normal(observations.shape[-1])
                observations[lane] += self._noise[lane] * draw
        if self._seen is None:
            self._seen = DelayLine(observations)
        return self._seen.step(observations, self._late)

    def actuate(self, actions: np.ndarray) -> np.ndarray:
        """Return the commands that act, `(lanes, act_dim)`, where `actions` have been sent; once a step."""
        return self._sent.step(actions, self._slow)


def noise_generator(seed: int, world: str, episode: int) -> np.random.Generator:
    """Return the source of noise of an episode: the same for every policy and context, so that they compare in pairs.

    Args:
        seed: of the run.
        world: name of the changed world.
        episode: its number.
    """
    return np.random.default_rng([seed, episode, zlib.crc32(world.encode())])
