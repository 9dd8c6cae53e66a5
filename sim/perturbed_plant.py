"""Robots whose worlds change while they move: the physics, with noise and delays between it and the controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.environments import Environment
from sim.plant import BatchedPlant
from sim.sensing import Sensing
from sim.worlds import World

Timeline = Mapping[int, World]


class PerturbedPlant:
    """n robots, each with a timeline of worlds, as `sim.worlds.timeline` makes it.

    A world that begins at a step holds for the observation made at that step, the command that answers it, and the
    physics that follow. Rewards and ends are those of the true states and of the commands that act.

    Args:
        environment: the task.
        timelines: for each robot its worlds by the control step at which they begin.
        threads: threads that step the physics.

    Attributes:
        plant: the physics, to which nothing is hidden.
    """

    def __init__(self, environment: Environment, timelines: Sequence[Timeline], threads: int = 1) -> None:
        self.plant = BatchedPlant(environment, [timeline[0].model for timeline in timelines], threads)
        self._sensing = Sensing(len(timelines), environment.obs_dim, environment.act_dim)
        self._arrange(timelines)

    def __enter__(self) -> PerturbedPlant:
        return self

    def __exit__(self, *_: Any) -> None:
        self.plant.close()

    def _arrange(self, timelines: Sequence[Timeline]) -> None:
        """Sort the changes by step."""
        self._changes: dict[int, dict[int, World]] = {}
        for lane, timeline in enumerate(timelines):
            for step, world in timeline.items():
                self._changes.setdefault(step, {})[lane] = world

    def reset(self, states: np.ndarray, generators: Sequence[np.random.Generator]) -> np.ndarray:
        """Start an episode.

        Args:
            states: start states `(n, nstate)` of the original robot.
            generators: for each robot the source of its noise.

        Returns:
            What the controllers see, `(n, obs_dim)`.
        """
        self._step = 0
        self._sensing.reset(generators)
        self._enter()
        offsets = [world.start_offset for _, world in sorted(self._changes[0].items())]
        return self._sensing.sense(self.plant.reset(states=states + np.stack(offsets)))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Send the actions `(n, act_dim)` and let one control period pass.

        Returns:
            What the controllers see `(n, obs_dim)`, rewards `(n,)` and terminated `(n,)` bool.
        """
        observations, rewards, terminated = self.plant.step(self._sensing.actuate(actions))
        self._step += 1
        self._enter()
        return self._sensing.sense(observations), rewards, terminated

    def change(self, timelines: Sequence[Timeline]) -> None:
        """Begin other timelines at once, and with every later episode; states and what is under way stay."""
        self._arrange(timelines)
        self._step = 0
        self._enter()

    def _enter(self) -> None:
        """Let the robots whose worlds change at this step into their new ones."""
        if worlds := self._changes.get(self._step):
            self.plant.replace_models({lane: world.model for lane, world in worlds.items()})
            self.plant.push({lane: world.forces for lane, world in worlds.items()})
            self._sensing.change(worlds)

    def close(self) -> None:
        """Stop the threads; no robot can step after that."""
        self.plant.close()
