"""The closed loop: a controller over many changed worlds at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sim.environments import Environment
from sim.perturb import Perturbation, require_in_time
from sim.perturbed_plant import PerturbedPlant
from sim.plant import BatchedPlant
from sim.sensing import noise_generator
from sim.worlds import timeline


class LoopCommand(Protocol):
    """What the loop reads of a controller's command."""

    @property
    def action(self) -> np.ndarray:
        """`(n, act_dim)` in command units."""

    @property
    def context(self) -> np.ndarray | None:
        """`(n, context_dim)`, or None where the policy takes none."""

    @property
    def error(self) -> str:
        """Text of an exception that the controller caught, empty where there was none."""


class LoopController(Protocol):
    """What the loop asks of a controller; `deploy.controller.Controller` is one."""

    def reset(self) -> Any:
        """Forget the episode."""

    def step(self, time: float, obs: np.ndarray) -> LoopCommand:
        """Answer the observations `(n, obs_dim)` made at `time` in s."""


@dataclass(frozen=True)
class EpisodeResult:
    """What happened in every episode of every cell.

    Attributes:
        rewards: `(cells, episodes, steps)` float32, zero after an episode's end.
        lengths: `(cells, episodes)` int, control steps until the end.
        falls: `(cells, episodes)` bool, whether the environment ended the episode.
        context: `(cells, episodes, steps, context_dim)` float32, or None where the policy takes none; zero after the
            step at which the last episode ended.
    """

    rewards: np.ndarray
    lengths: np.ndarray
    falls: np.ndarray
    context: np.ndarray | None

    @property
    def returns(self) -> np.ndarray:
        """`(cells, episodes)`, the undiscounted sums of rewards."""
        return self.rewards.sum(-1, dtype=np.float64)


def run_episodes(
    environment: Environment,
    perturbations: Sequence[Perturbation],
    controller_factory: Callable[[BatchedPlant], LoopController],
    episodes: int,
    seed: int,
    steps: int,
    threads: int = 1,
    progress: Callable[[int], Any] | None = None,
) -> EpisodeResult:
    """Run all episodes of all cells in one batch, one lane each.

    An episode's start depends on `seed` and its number alone, and its noise on these and the world's name, so that
    cells and controllers are compared in pairs. The controller sees what the world's sensors show it; rewards and ends
    are those of the true states.

    Args:
        environment: the task.
        perturbations: one changed world for each cell.
        controller_factory: makes the controller for `cells * episodes` lanes, the episodes of a cell side by side; it
            is given the physics, for those that peek.
        episodes: episodes in each cell.
        seed: seed of the starts and of noise.
        steps: control steps in an episode, where it does not end before.
        threads: threads that step the physics.
        progress: called after every control step with the number of lanes stepped.

    Returns:
        Rewards, lengths, falls and the context over time.

    Raises:
        UserError: a world changes after the episode's end, a pattern matches nothing, or a limb cannot be scaled.
        RuntimeError: the controller caught an exception; on a robot it would hold, here it is a defect to see.
    """
    for perturbation in perturbations:
        require_in_time(perturbation, steps)
    timelines = [timeline(environment, perturbation) for perturbation in perturbations]
    noise = [noise_generator(seed, world.name, episode) for world in perturbations for episode in range(episodes)]
    lanes = len(noise)
    rewards = np.zeros((steps, lanes), np.float32)
    contexts: np.ndarray | None = None
    alive = np.ones(lanes, bool)
    lengths = np.zeros(lanes, int)
    with PerturbedPlant(environment, [worlds for worlds in timelines for _ in range(episodes)], threads) as robots:
        observations = robots.reset(np.tile(_starts(environment, seed, episodes), (len(perturbations), 1)), noise)
        controller = controller_factory(robots.plant)
        controller.reset()
        for step in range(steps):
            command = controller.step(step * environment.control_dt, observations)
            if command.error:
                raise RuntimeError(f"the controller failed at step {step}: {command.error}")
            observations, reward, terminated = robots.step(command.action)
            rewards[step, alive] = reward[alive]
            lengths += alive
            if command.context is not None:
                if contexts is None:
                    contexts = np.zeros((steps, lanes, command.context.shape[-1]), np.float32)
                contexts[step] = command.context
            alive &= ~terminated
            if progress is not None:
                progress(lanes)
            if not alive.any():
                break

    cells = len(perturbations)
    return EpisodeResult(
        rewards=rewards.T.reshape(cells, episodes, steps),
        lengths=lengths.reshape(cells, episodes),
        falls=~alive.reshape(cells, episodes),
        context=None if contexts is None else contexts.swapaxes(0, 1).reshape(cells, episodes, steps, -1),
    )


def _starts(environment: Environment, seed: int, episodes: int) -> np.ndarray:
    """Start states `(episodes, nstate)`; an episode's own does not depend on how many there are."""
    return np.concatenate(
        [environment.initial_states(np.random.default_rng([seed, episode]), 1) for episode in range(episodes)]
    )
