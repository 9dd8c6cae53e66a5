"""Data sets as npz files: the compact form that Surefoot writes, and D4RL's plain layout."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from adapters.datasets.checks import FIELDS, episode_ends
from adapters.datasets.transitions import Metadata, TransitionDataset
from adapters.errors import UserError
from adapters.files import atomic_path

# What numpy and zipfile raise, depending on where the damage is.
DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError, NotImplementedError)


def save_npz(dataset: TransitionDataset, path: Path) -> None:
    """Write a data set in the compact form, atomically.

    Within an episode the next observation is the following row, so only the last one of every episode is kept, as
    `final_observations (episodes, obs_dim)`; loading rebuilds the rest bit for bit. The metadata is a JSON string.

    Raises:
        UserError: the place cannot be written.
    """
    arrays: dict[str, Any] = dict(dataset.arrays())
    ends = episode_ends(dataset.terminals, dataset.timeouts)
    arrays["final_observations"] = arrays.pop("next_observations")[ends]
    arrays["metadata"] = np.array(json.dumps(dataclasses.asdict(dataset.metadata)))
    with atomic_path(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_npz(path: Path) -> tuple[dict[str, np.ndarray], Metadata]:
    """Read the arrays by D4RL's names, and the metadata, which is blank where the file holds none.

    Raises:
        UserError: the file is no npz archive, or it is damaged.
    """
    stored = _read_archive(path)
    metadata = _read_metadata(str(stored["metadata"]), path) if "metadata" in stored else Metadata(source=path.name)
    return {name: array for name, array in stored.items() if name in (*FIELDS, "final_observations")}, metadata


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """Return every array of the archive."""
    stored: dict[str, np.ndarray] = {}
    field = ""
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile
        with np.load(path, allow_pickle=False) as archive:
            for field in archive.files:
                stored[field] = archive[field]
    except DAMAGE as error:
        place = f"the field '{field}' cannot be read" if field else "this is not a whole npz file"
        raise UserError(f"{path}: {place}; it was cut short or damaged, copy or make it again.") from error
    return stored


def _read_metadata(text: str, path: Path) -> Metadata:
    """Return the metadata that `save_npz` wrote."""
    try:
        content = json.loads(text)
        return Metadata(
            env=str(content["env"]),
            control_dt=float(content["control_dt"]),
            observation_names=tuple(map(str, content["observation_names"])),
            action_names=tuple(map(str, content["action_names"])),
            source=str(content["source"]),
            sha256=str(content["sha256"]),
            synthetic=content.get("synthetic"),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: the field 'metadata' is not what save_npz writes ({error}); write it again."
        ) from error
