"""The closed loop: a controller over many changed worlds at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from sim.environments import Environment, quiet_mujoco
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
        context: `(cells, episodes, steps, context_dim)` float32, zero after an episode's end, or None where the policy
            takes none.
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
    """Run all episodes of all cells, one lane each; every thread runs its share of the lanes in one batch.

    An episode's start depends on `seed` and its number alone, and its noise on these and the world's name, so that
    cells and controllers are compared in pairs. The controller sees what the world's sensors show it; rewards and ends
    are those of the true states.

    Args:
        environment: the task.
        perturbations: one changed world for each cell.
        controller_factory: makes the controller for a thread's lanes, of which the episodes of a cell lie side by side;
            it is given their physics, for those that peek. It is called in the thread.
        episodes: episodes in each cell.
        seed: seed of the starts and of noise.
        steps: control steps in an episode, where it does not end before.
        threads: how many share the lanes. The result does not depend on it: one lane alone, for which a network's
            arithmetic rounds otherwise, is never a share.
        progress: called after every control step of a share with the number of its lanes, one call at a time.

    Returns:
        Rewards, lengths, falls and the context over time.

    Raises:
        UserError: a world changes after the episode's end, a pattern matches nothing, or a limb cannot be scaled.
        RuntimeError: the controller caught an exception; on a robot it would hold, here it is a defect to see.
    """
    for perturbation in perturbations:
        require_in_time(perturbation, steps)
    timelines = [worlds for p in perturbations for worlds in [timeline(environment, p)] * episodes]
    noise = [noise_generator(seed, world.name, episode) for world in perturbations for episode in range(episodes)]
    states = np.tile(_starts(environment, seed, episodes), (len(perturbations), 1))
    stop, one_at_a_time = threading.Event(), threading.Lock()

    def stepped(lanes: int) -> bool:
        if progress is not None:
            with one_at_a_time:
                progress(lanes)
        return not stop.is_set()

    def run(lanes: np.ndarray) -> _Share:
        share = slice(lanes[0], lanes[-1] + 1)
        with PerturbedPlant(environment, timelines[share]) as robots:
            observations = robots.reset(states[share], noise[share])
            return _run_share(robots, controller_factory(robots.plant), observations, steps, stepped)

    lanes = np.arange(len(noise))
    shares = np.array_split(lanes, max(min(threads, len(lanes) // 2), 1))
    if len(shares) == 1:
        ran = [run(lanes)]
    else:
        # Around all threads: each by itself would give back the handler that another has put there.
        with quiet_mujoco(), ThreadPoolExecutor(len(shares)) as pool:
            running = [pool.submit(run, share) for share in shares]
            try:
                for done in as_completed(running):
                    done.result()
            except BaseException:
                stop.set()
                raise
            ran = [done.result() for done in running]
    rewards, lengths, falls = (np.concatenate([part[i] for part in ran]) for i in range(3))
    contexts = [part.context for part in ran if part.context is not None]

    cells = len(perturbations)
    return EpisodeResult(
        rewards=rewards.reshape(cells, episodes, steps),
        lengths=lengths.reshape(cells, episodes),
        falls=falls.reshape(cells, episodes),
        context=np.concatenate(contexts).reshape(cells, episodes, steps, -1) if contexts else None,
    )


class _Share(NamedTuple):
    """What `EpisodeResult` has, of some lanes: `(lanes, steps)`, `(lanes,)`, `(lanes,)`, `(lanes, steps, dim)`."""

    rewards: np.ndarray
    lengths: np.ndarray
    falls: np.ndarray
    context: np.ndarray | None


def _run_share(
    robots: PerturbedPlant,
    controller: LoopController,
    observations: np.ndarray,
    steps: int,
    stepped: Callable[[int], bool],
) -> _Share:
    """Run some lanes from their first observations on, for as long as `stepped` says so."""
    lanes = len(observations)
    rewards = np.zeros((steps, lanes), np.float32)
    contexts: np.ndarray | None = None
    alive = np.ones(lanes, bool)
    lengths = np.zeros(lanes, int)
    controller.reset()
    for step in range(steps):
        command = controller.step(step * robots.plant.environment.control_dt, observations)
        if command.error:
            raise RuntimeError(f"the controller failed at step {step}: {command.error}")
        if command.context is not None:
            if contexts is None:
                contexts = np.zeros((steps, lanes, command.context.shape[-1]), np.float32)
            contexts[step, alive] = command.context[alive]
        observations, reward, terminated = robots.step(command.action)
        rewards[step, alive] = reward[alive]
        lengths += alive
        alive &= ~terminated
        if not (stepped(lanes) and alive.any()):
            break
    return _Share(rewards.T, lengths, ~alive, None if contexts is None else contexts.swapaxes(0, 1))


def _starts(environment: Environment, seed: int, episodes: int) -> np.ndarray:
    """Start states `(episodes, nstate)`; an episode's own does not depend on how many there are."""
    return np.concatenate(
        [environment.initial_states(np.random.default_rng([seed, episode]), 1) for episode in range(episodes)]
    )
