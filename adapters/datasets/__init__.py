"""Data sets in files: `load_dataset` reads npz, HDF5, Minari and robots' logs into a checked `TransitionDataset`.

`save_dataset` writes npz, HDF5 and Minari.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adapters.datasets.hdf5 import read_hdf5, save_hdf5
from adapters.datasets.lcmlog import is_lcm_log, read_lcm_log
from adapters.datasets.minari import check_folder, data_folder, read_minari, save_minari
from adapters.datasets.npz import read_npz, save_npz
from adapters.datasets.robot_log import LogLayout
from adapters.datasets.rosbag import bag_in, read_rosbag
from adapters.datasets.transitions import Metadata, TransitionDataset
from adapters.errors import UserError

__all__ = [
    "LogLayout",
    "Metadata",
    "TransitionDataset",
    "check_output",
    "load_dataset",
    "save_dataset",
    "save_npz",
]

PACKAGE_PREFIX = "package://"

Read = tuple[dict[str, np.ndarray], Metadata]

WRITERS = {".npz": save_npz, ".hdf5": save_hdf5, ".h5": save_hdf5, "": save_minari}


def load_dataset(
    path: str | Path | Sequence[str | Path],
    env: str | None = None,
    control_dt: float | None = None,
    layout: LogLayout | None = None,
) -> TransitionDataset:
    """Read and check a data set; what stands at the path decides the reader.

    Args:
        path: one, or several that are joined: an npz file, an HDF5 file (.hdf5 or .h5), a Minari folder, an LCM log
            (.lcm or lcmlog-*) or a bag of ROS 2 (.mcap, .db3 or their folder); `package://` begins the path of a file
            that is shipped with Surefoot.
        env: environment or robot id; needed where the file does not say it.
        control_dt: control period in seconds; needed where the file does not say it, as no robot's log does.
        layout: what a robot's log is to be read as; without one, rewards are 0 and a bag cannot be read.

    Raises:
        UserError: nothing readable stands there, the data is malformed (see `checks.checked_arrays`), altered since it
            was written, or says something else than `env` or `control_dt`.
    """
    if not isinstance(path, str | Path):
        if not path:
            raise UserError("there is no data set in the empty list of paths; give one at least.")
        return TransitionDataset.join([load_dataset(one, env, control_dt, layout) for one in path])
    place = _resolve(str(path))
    arrays, metadata = _read(place, control_dt, layout)
    if env and metadata.env and env != metadata.env:
        raise UserError(f"{place} is data of '{metadata.env}', not of '{env}'; choose the environment that it is from.")
    if control_dt and metadata.control_dt and not math.isclose(control_dt, metadata.control_dt, rel_tol=1e-6):
        raise UserError(
            f"{place} was recorded every {metadata.control_dt} s, not every {control_dt} s; leave control_dt out."
        )
    described = dataclasses.replace(
        metadata, env=metadata.env or env or "", control_dt=metadata.control_dt or control_dt or 0.0
    )
    dataset = TransitionDataset.from_arrays(arrays, described, str(place))
    if metadata.sha256 not in ("", dataset.metadata.sha256):
        raise UserError(
            f"{place}: the rows do not have the SHA-256 in the field 'metadata', so they were changed after they were "
            "written; get the file anew, or remove 'metadata' if the change is meant."
        )
    return dataset


def save_dataset(dataset: TransitionDataset, path: Path) -> None:
    """Write a data set, atomically; its name decides the form. `load_dataset` gives back the same bits and metadata.

    Args:
        dataset: the data.
        path: see `check_output`; what is there is replaced.

    Raises:
        UserError: the name is none for a data set, a package is not installed, or the place cannot be written.
    """
    check_output(path)
    WRITERS[path.suffix](dataset, path)


def check_output(path: Path) -> None:
    """Refuse a name that no data set can be written under, before the work that it would be the result of.

    A name ends in .npz, or, for D4RL's layout, in .hdf5 or .h5; without an ending it is the folder of a Minari data
    set, NAME-v0.

    Raises:
        UserError: it is another name.
    """
    if path.suffix not in WRITERS or (path.suffix and path.is_dir()):
        raise UserError(
            f"output={path} is not the name of a data set; choose one that ends in .npz or .hdf5, or a Minari folder, "
            "NAME-v0."
        )
    if not path.suffix:
        check_folder(path)


def _resolve(path: str) -> Path:
    """Return the place of a path on disk, `package://PACKAGE/REST` included."""
    if not path.startswith(PACKAGE_PREFIX):
        return Path(path).expanduser()
    package, _, rest = path.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        return Path(str(importlib.resources.files(package).joinpath(rest)))
    except (ModuleNotFoundError, ValueError) as error:
        raise UserError(f"{path}: there is no package '{package}'; write {PACKAGE_PREFIX}PACKAGE/FILE.") from error


def _read(path: Path, control_dt: float | None, layout: LogLayout | None) -> Read:
    """Read what stands at the path."""
    if not path.exists():
        raise UserError(f"there is no data set at {path}; check the path.")
    if path.is_dir() and data_folder(path):
        return read_minari(path)
    if path.is_file() and path.suffix == ".npz":
        return read_npz(path)
    if path.is_file() and path.suffix in (".hdf5", ".h5"):
        return read_hdf5(path)
    if is_lcm_log(path):
        return read_lcm_log(path, _period(control_dt, path), layout)
    if bag_in(path):
        return read_rosbag(path, _period(control_dt, path), layout)
    raise UserError(
        f"{path} is no data set; give an .npz file, an .hdf5 or .h5 file, a Minari folder, an LCM log or a bag of "
        "ROS 2."
    )


def _period(control_dt: float | None, path: Path) -> float:
    """Return the control period, without which gaps in a robot's log cannot be seen."""
    if control_dt is None or not control_dt > 0:
        raise UserError(f"{path} does not say its control period; give the seconds from row to row as control_dt.")
    return control_dt
