"""What goes on around a change in mid-episode: the context and the reward over time, means over a world's episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adapters.files import atomic_path
from sim.perturb import Perturbation
from sim.rollout import EpisodeResult
from sim.scores import World


@dataclass(frozen=True, eq=False)
class Trace:
    """One changing world under one context; a step that no episode reached is NaN.

    Attributes:
        changes: the control steps at which the world changes.
        reward: `(steps,)`, mean over the episodes that were still going on.
        context: `(steps, context_dim)`, likewise, or None where the policy takes none.
    """

    changes: list[int]
    reward: np.ndarray
    context: np.ndarray | None


@dataclass(frozen=True)
class Traces:
    """The traces of one validation, which `validate` fills.

    Attributes:
        by_context: for each context the traces by world, of worlds that change in mid-episode alone.
    """

    by_context: dict[str, dict[World, Trace]] = field(default_factory=dict)

    def add(self, context: str, worlds: Sequence[tuple[str, Perturbation]], result: EpisodeResult) -> None:
        """Keep what happened under one context in the worlds, each with its suite's name, that change in time."""
        self.by_context[context] = {
            World(suite, world.name): _trace(world.change_steps, result, index)
            for index, (suite, world) in enumerate(worlds)
            if world.change_steps
        }

    def write(self, path: Path) -> None:
        """Write traces.npz: for each trace `CONTEXT/SUITE/WORLD/reward`, and `.../context` where there is one.

        Raises:
            UserError: the place cannot be written.
        """
        arrays = {
            f"{context}/{world.suite}/{world.name}/{name}": values
            for context, traces in self.by_context.items()
            for world, trace in traces.items()
            for name, values in (("reward", trace.reward), ("context", trace.context))
            if values is not None
        }
        with atomic_path(path) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _trace(changes: list[int], result: EpisodeResult, index: int) -> Trace:
    """Take the means over one world's episodes."""
    going_on = np.arange(result.rewards.shape[-1]) < result.lengths[index][:, None]
    context = None if result.context is None else _mean(result.context[index], going_on[..., None])
    return Trace(changes, _mean(result.rewards[index], going_on), context)


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is counted, float32; NaN where nothing is."""
    total, count = np.where(counted, values, 0.0).sum(0), counted.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
