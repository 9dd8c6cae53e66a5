"""Minari data sets in a local folder; nothing is fetched."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from adapters.datasets.transitions import Metadata, TransitionDataset
from adapters.errors import UserError
from adapters.files import atomic_path

# Minari's names for the steps of an episode, and ours.
STEPS = {"actions": "actions", "rewards": "rewards", "terminations": "terminals", "truncations": "timeouts"}

# The key of Minari's metadata.json under which ours stands.
KEY = "surefoot"
NAME = re.compile(r"[-\w]+-v\d+")


def save_minari(dataset: TransitionDataset, path: Path) -> None:
    """Write a data set as Minari does, atomically: every episode a group of one HDF5 file, beside a `metadata.json`.

    Minari finds it by its id where the folder is in Minari's own, ~/.minari/datasets or MINARI_DATASETS_PATH.

    Args:
        dataset: the data.
        path: the data set's folder, such as `~/.minari/datasets/halfcheetah/jump-v0`; one that is there is replaced.

    Raises:
        UserError: minari is not installed, the name is not one for Minari (`check_folder`), or the place cannot be
            written.
    """
    try:
        from gymnasium.spaces import Box
        from minari import __version__
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise UserError(f"writing {path} needs minari; install it with: pip install 'surefoot[train]'.") from error
    check_folder(path)
    spaces = [Box(-np.inf, np.inf, (dim,), np.float32) for dim in (dataset.obs_dim, dataset.act_dim)]
    # Minari loses its way among relative paths.
    with atomic_path(path.absolute()) as draft:
        (draft / "data").mkdir(parents=True)
        storage = MinariStorage.new(draft / "data", *spaces, data_format="hdf5")
        storage.update_episodes(
            EpisodeBuffer(
                id=index,
                observations=np.concatenate([dataset.observations[rows], dataset.next_observations[rows][-1:]]),
                **{theirs: getattr(dataset, ours)[rows] for theirs, ours in STEPS.items()},
            )
            for index, rows in enumerate(dataset.episode_slices())
        )
        storage.update_metadata(
            {"dataset_id": _dataset_id(path), "minari_version": __version__, KEY: dataset.metadata.to_json()}
        )


def check_folder(path: Path) -> None:
    """Refuse a folder that no Minari data set can be written to.

    Raises:
        UserError: its name does not end in a version, or something else stands there.
    """
    if not NAME.fullmatch(path.name):
        raise UserError(f"{path} is no name for a Minari data set, which ends in a version: write {path.name}-v0.")
    if path.exists() and data_folder(path) is None:
        raise UserError(f"{path} is there and is no Minari data set; give another name.")


def _dataset_id(path: Path) -> str:
    """Return what Minari calls the data set of a folder: the way there from Minari's own folder, or its bare name."""
    root = Path(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")).expanduser().resolve()
    place = path.expanduser().resolve()
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else place.name


def data_folder(path: Path) -> Path | None:
    """Return the folder that holds Minari's `metadata.json`, `path` itself or `path/data`, or None."""
    return next((folder for folder in (path, path / "data") if (folder / "metadata.json").is_file()), None)


def read_minari(path: Path) -> tuple[dict[str, np.ndarray], Metadata]:
    """Read every episode of a Minari data set whose observations and actions are plain vectors.

    An episode of T steps holds T + 1 observations, the last of which is what its final action led to. Where Minari
    marks the last step of an episode neither terminated nor truncated, it becomes a timeout, but for the last episode,
    where the data simply stops. The metadata is blank where `save_minari` did not write it.

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
    for episode in episodes[:-1]:
        episode["timeouts"][-1] |= not episode["terminals"][-1]
    arrays = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    text = stored.storage.metadata.get(KEY)
    return arrays, Metadata(source=f"Minari {stored.id}") if text is None else Metadata.from_json(text, path)


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
    return {"observations": observations[:-1], **arrays, "final_observations": observations[-1:]}
