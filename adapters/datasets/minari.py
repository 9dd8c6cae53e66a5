"""Minari data sets from a local folder; nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adapters.datasets.transitions import Metadata
from adapters.errors import UserError

# Minari's names for the steps of an episode, and ours.
STEPS = {"actions": "actions", "rewards": "rewards", "terminations": "terminals", "truncations": "timeouts"}


def data_folder(path: Path) -> Path | None:
    """Return the folder that holds Minari's `metadata.json`, `path` itself or `path/data`, or None."""
    return next((folder for folder in (path, path / "data") if (folder / "metadata.json").is_file()), None)


def read_minari(path: Path) -> tuple[dict[str, np.ndarray], Metadata]:
    """Read every episode of a Minari data set whose observations and actions are plain vectors.

    An episode of T steps holds T + 1 observations, the last of which is what its final action led to. Where Minari
    marks the last step of an episode neither terminated nor truncated, it becomes a timeout.

    Args:
        path: the data set's folder, such as `mujoco/halfcheetah/expert-v0`, or the `data` folder in it.

    Raises:
        UserError: minari is not installed, or the folder is damaged, empty or holds other than vectors.
    """
    try:
        import minari
    except ImportError as error:
        raise UserError(f"reading {path} needs minari; install it with: pip install 'surefoot[train]'.") from error
    episodes: list[dict[str, np.ndarray]] = []
    place = "this is not a whole Minari data set"
    try:
        stored = minari.MinariDataset(data_folder(path) or path)
        for index in stored.episode_indices:
            place = f"episode {index} cannot be read"
            episodes.append(_episode_arrays(stored[index], f"{path}: episode {index}"))
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError, ImportError) as error:
        raise UserError(f"{path}: {place} ({error}); it was cut short or damaged, copy or make it again.") from error
    if not episodes:
        raise UserError(f"{path}: the data set is empty; it needs at least one episode.")
    widths = {name: {array.shape[1:] for array in (e[name] for e in episodes)} for name in episodes[0]}
    for name, shapes in widths.items():
        if len(shapes) > 1:
            raise UserError(f"{path}: the field '{name}' changes shape between episodes, {shapes}; make them alike.")
    arrays = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    return arrays, Metadata(source=f"Minari {stored.id}")


def _episode_arrays(episode: Any, file: str) -> dict[str, np.ndarray]:
    """Return one episode's transitions by D4RL's names, and its one row of `final_observations`."""
    observations, steps = episode.observations, len(episode.rewards)
    for name in ("observations", *STEPS):
        array, length = getattr(episode, name), steps + (name == "observations")
        if not isinstance(array, np.ndarray):
            kind = type(array).__name__
            raise UserError(f"{file}: the field '{name}' is a {kind} where an array is needed; flatten it first.")
        if len(array) != length or steps == 0:
            raise UserError(
                f"{file}: the field '{name}' has {len(array)} rows where {steps} rewards need {length}; the episode "
                "is empty or was cut short, copy or record it again."
            )
    arrays = {ours: getattr(episode, theirs) for theirs, ours in STEPS.items()}
    if not arrays["terminals"][-1]:
        arrays["timeouts"][-1] = True
    return {"observations": observations[:-1], **arrays, "final_observations": observations[-1:]}
