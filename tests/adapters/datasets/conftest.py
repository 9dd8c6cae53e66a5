"""A small data set, and every file form that can hold it: written, and damaged on purpose."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from adapters.datasets import Metadata, TransitionDataset, save_npz
from adapters.datasets.checks import FIELDS

# 6 + 4 + 5 rows: a timeout, a terminal, and data that simply stops with a timeout.
LENGTHS = (6, 4, 5)


def episodes(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, np.ndarray]:
    """Make the arrays of episodes with these lengths; every second one ends in a terminal."""
    generator = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
    for index, length in enumerate(lengths):
        states = generator.standard_normal((length + 1, 3)).astype(np.float32)
        last = np.arange(length) == length - 1
        parts["observations"].append(states[:-1])
        parts["next_observations"].append(states[1:])
        parts["actions"].append(generator.uniform(-1, 1, (length, 2)).astype(np.float32))
        parts["rewards"].append(generator.standard_normal(length).astype(np.float32))
        parts["terminals"].append(last & (index % 2 == 1))
        parts["timeouts"].append(last & (index % 2 == 0))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


METADATA = Metadata(env="toy", control_dt=0.02, observation_names=("x", "y", "z"), action_names=("u", "v"), source="us")


Change = Callable[[np.ndarray], np.ndarray] | None


class Form(ABC):
    """One file form: how tests write it and change a field of it."""

    name = ""

    @abstractmethod
    def write(self, dataset: TransitionDataset, folder: Path) -> Path:
        """Write the data set into the folder and return the path to load."""

    @abstractmethod
    def edit(self, path: Path, field: str, change: Change) -> None:
        """Replace a field by `change(field)`, or take it away."""

    def main_file(self, path: Path) -> Path:
        """Return the file that holds the numbers."""
        return path

    def empty(self, path: Path) -> None:
        """Take every row out."""
        for field in FIELDS:
            self.edit(path, field, lambda array: array[:0])


class PlainNpz(Form):
    """D4RL's layout as npz."""

    name = "plain npz"

    def write(self, dataset: TransitionDataset, folder: Path) -> Path:
        path = folder / "log.npz"
        np.savez(path, **dataset.arrays())
        return path

    def edit(self, path: Path, field: str, change: Change) -> None:
        with np.load(path) as archive:
            arrays = dict(archive)
        if field not in arrays:
            return
        array = arrays.pop(field)
        if change is not None:
            arrays[field] = change(array)
        np.savez(path, **arrays)


class CompactNpz(PlainNpz):
    """What `save_npz` writes."""

    name = "compact npz"

    def write(self, dataset: TransitionDataset, folder: Path) -> Path:
        path = folder / "log.npz"
        save_npz(dataset, path)
        return path


class Hdf5(Form):
    """D4RL's layout as HDF5."""

    name = "hdf5"

    def write(self, dataset: TransitionDataset, folder: Path) -> Path:
        path = folder / "log.hdf5"
        with h5py.File(path, "w") as file:
            for name, array in dataset.arrays().items():
                file[name] = array
            file["infos/qpos"] = np.zeros((len(dataset), 4))
        return path

    def edit(self, path: Path, field: str, change: Change) -> None:
        with h5py.File(path, "a") as file:
            _edit_group(file, field, change)


class MinariFolder(Form):
    """A Minari folder with HDF5 storage; its first episode is the one that is edited."""

    name = "minari"

    def write(self, dataset: TransitionDataset, folder: Path) -> Path:
        from gymnasium.spaces import Box
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage

        path = folder / "toy" / "log-v0"
        (path / "data").mkdir(parents=True)
        storage = MinariStorage.new(
            path / "data", Box(-9, 9, (dataset.obs_dim,)), Box(-1, 1, (dataset.act_dim,)), data_format="hdf5"
        )
        storage.update_episodes(
            EpisodeBuffer(
                id=index,
                observations=np.concatenate([dataset.observations[rows], dataset.next_observations[rows][-1:]]),
                actions=dataset.actions[rows],
                rewards=dataset.rewards[rows],
                terminations=dataset.terminals[rows],
                truncations=dataset.timeouts[rows],
            )
            for index, rows in enumerate(dataset.episode_slices())
        )
        self._change_json(path, dataset_id="toy/log-v0", minari_version="0.5.4")
        return path

    def edit(self, path: Path, field: str, change: Change) -> None:
        names = {"terminals": "terminations", "timeouts": "truncations"}
        with h5py.File(self.main_file(path), "a") as file:
            _edit_group(file["episode_0"], names.get(field, field), change)

    def main_file(self, path: Path) -> Path:
        return path / "data" / "main_data.hdf5"

    def empty(self, path: Path) -> None:
        self._change_json(path, total_episodes=0, total_steps=0)

    @staticmethod
    def _change_json(path: Path, **changes: object) -> None:
        file = path / "data" / "metadata.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _edit_group(group: h5py.Group, field: str, change: Change) -> None:
    array = group[field][()]
    del group[field]
    if change is not None:
        group[field] = change(array)


FORMS = {form.name: form for form in (PlainNpz(), CompactNpz(), Hdf5(), MinariFolder())}


@pytest.fixture
def dataset() -> TransitionDataset:
    """Return three episodes of 6, 4 and 5 rows."""
    return TransitionDataset.from_arrays(episodes(), METADATA, "the toy data")


@pytest.fixture
def make_arrays() -> Callable[..., dict[str, np.ndarray]]:
    """Return the function that makes the arrays of episodes."""
    return episodes


@pytest.fixture
def metadata() -> Metadata:
    """Return what the toy data is about."""
    return METADATA


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    """Return every file form in turn."""
    return FORMS[request.param]
