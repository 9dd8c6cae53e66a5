"""Data sets in D4RL's HDF5 layout."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from adapters.datasets.checks import FIELDS, checked_fields, episode_ends
from adapters.datasets.transitions import Metadata, TransitionDataset
from adapters.errors import UserError
from adapters.files import atomic_path

# The attribute with our metadata; D4RL's own reader looks at arrays alone.
ATTRIBUTE = "surefoot"


def save_hdf5(dataset: TransitionDataset, path: Path) -> None:
    """Write a data set as D4RL does, an array for each field at the root of the file, atomically.

    Raises:
        UserError: h5py is not installed, or the place cannot be written.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"writing {path} needs h5py; install it with: pip install 'surefoot[train]'.") from error
    with atomic_path(path) as draft, h5py.File(draft, "w") as file:
        for name, array in dataset.arrays().items():
            file.create_dataset(name, data=array, compression="gzip")
        file.attrs[ATTRIBUTE] = dataset.metadata.to_json()


def read_hdf5(path: Path) -> tuple[dict[str, np.ndarray], Metadata]:
    """Read the arrays at the root of the file; what stands beside them, such as D4RL's `infos`, is left alone.

    D4RL's older files hold no `next_observations`: see `_end_one_row_early`. The metadata is blank where `save_hdf5`
    did not write it.

    Raises:
        UserError: h5py is not installed, or the file is not HDF5 or is damaged.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"reading {path} needs h5py; install it with: pip install 'surefoot[train]'.") from error
    arrays: dict[str, np.ndarray] = {}
    field = ""
    try:
        with h5py.File(path, "r") as file:
            for field in FIELDS:
                if isinstance(file.get(field), h5py.Dataset):
                    arrays[field] = file[field][()]
            text = file.attrs.get(ATTRIBUTE)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        place = f"the field '{field}' cannot be read" if field else "this is not a whole HDF5 file"
        raise UserError(f"{path}: {place}; it was cut short or damaged, copy or make it again.") from error
    if "next_observations" not in arrays:
        arrays = _end_one_row_early(arrays, str(path))
    return arrays, Metadata(source=path.name) if text is None else Metadata.from_json(text, path)


def _end_one_row_early(arrays: dict[str, np.ndarray], file: str) -> dict[str, np.ndarray]:
    """Make whole transitions of rows that hold no next observation, and warn of what that costs.

    What followed the last row of an episode was never written down, so that row gives its observation to the row
    before it and goes; the row before it becomes a timeout, since the task went on there.
    """
    arrays = checked_fields(arrays, [name for name in FIELDS if name != "next_observations"], file)
    ends = episode_ends(arrays["terminals"], arrays["timeouts"])
    # An episode of one row vanishes: nothing stands before its last row.
    has_row_before = ends & ~np.concatenate([[True], ends[:-1]])
    if not has_row_before.any():
        raise UserError(
            f"{file} has no field 'next_observations' and no episode of two rows to take it from; record it as well."
        )
    warnings.warn(
        f"{file} has no field 'next_observations': the last row of each of its {ends.sum()} episodes "
        f"({arrays['terminals'].sum()} of them terminals) was left out, and the row before it made a timeout.",
        stacklevel=2,
    )
    kept = {name: array[~ends] for name, array in arrays.items()}
    kept["timeouts"] = np.concatenate([has_row_before[1:], [False]])[~ends]
    kept["final_observations"] = arrays["observations"][has_row_before]
    return kept
