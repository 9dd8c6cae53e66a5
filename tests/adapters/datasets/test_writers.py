"""One battery for every file form that is written: it comes back bit for bit, and the form's own library reads it."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.datasets import Metadata, TransitionDataset, check_output, load_dataset, save_dataset
from adapters.errors import UserError

MakeArrays = Callable[..., dict[str, np.ndarray]]
NAMES = ("log.npz", "log.hdf5", "log.h5", "toy/log-v0")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Return a name of every form in turn."""
    return request.param


def assert_same(read: TransitionDataset, written: TransitionDataset) -> None:
    """Every bit, and everything that is known about them."""
    for field, array in written.arrays().items():
        found = read.arrays()[field]
        assert (found.dtype, found.shape) == (array.dtype, array.shape), field
        assert found.tobytes() == array.tobytes(), field
    assert read.metadata == written.metadata


def test_comes_back_bit_for_bit(name: str, dataset: TransitionDataset, tmp_path: Path) -> None:
    save_dataset(dataset, tmp_path / name)
    assert_same(load_dataset(tmp_path / name), dataset)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    ends=st.lists(st.sampled_from(["terminal", "timeout", "both"]), min_size=4, max_size=4),
    open_end=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_ends_of_episodes_come_back(
    make_arrays: MakeArrays,
    metadata: Metadata,
    tmp_path: Path,
    lengths: list[int],
    ends: list[str],
    open_end: bool,
    seed: int,
) -> None:
    arrays = make_arrays(tuple(lengths), seed)
    for row, end in zip(np.cumsum(lengths) - 1, ends, strict=False):
        arrays["terminals"][row], arrays["timeouts"][row] = end != "timeout", end != "terminal"
    if open_end:
        arrays["terminals"][-1] = arrays["timeouts"][-1] = False
    data = TransitionDataset.from_arrays(arrays, metadata, "toy")
    for name in NAMES:
        save_dataset(data, tmp_path / name)
        assert_same(load_dataset(tmp_path / name), data)


def test_from_one_form_to_the_next(dataset: TransitionDataset, tmp_path: Path) -> None:
    data = dataset
    for name in (*NAMES, *reversed(NAMES)):
        save_dataset(data, tmp_path / name)
        data = load_dataset(tmp_path / name)
    assert_same(data, dataset)


def test_what_was_there_is_replaced(
    name: str, dataset: TransitionDataset, make_arrays: MakeArrays, metadata: Metadata, tmp_path: Path
) -> None:
    save_dataset(TransitionDataset.from_arrays(make_arrays((3,), 7), metadata, "toy"), tmp_path / name)
    save_dataset(dataset, tmp_path / name)
    assert_same(load_dataset(tmp_path / name), dataset)


def test_relative_paths(name: str, dataset: TransitionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_dataset(dataset, Path(name))
    assert_same(load_dataset(name), dataset)


def test_names_that_contradict_the_metadata(name: str, dataset: TransitionDataset, tmp_path: Path) -> None:
    save_dataset(dataset, tmp_path / name)
    with pytest.raises(UserError, match=r"is data of 'toy', not of 'walker'"):
        load_dataset(tmp_path / name, env="walker")


def test_rows_changed_after_writing(dataset: TransitionDataset, tmp_path: Path) -> None:
    for name, place in (("log.hdf5", "rewards"), ("toy/log-v0/data/main_data.hdf5", "episode_1/rewards")):
        save_dataset(dataset, tmp_path / name.partition("/data")[0])
        with h5py.File(tmp_path / name, "a") as file:
            file[place][2] += 1
        with pytest.raises(UserError, match="do not have the SHA-256"):
            load_dataset(tmp_path / name.partition("/data")[0])


def test_hdf5_has_the_arrays_that_d4rl_reads(dataset: TransitionDataset, tmp_path: Path) -> None:
    save_dataset(dataset, tmp_path / "log.hdf5")
    found: dict[str, Any] = {}
    with h5py.File(tmp_path / "log.hdf5", "r") as file:
        # As D4RL's get_dataset: every HDF5 data set in the file, whole.
        file.visititems(lambda key, item: found.update({key: item[:]}) if isinstance(item, h5py.Dataset) else None)
    assert found.keys() == dataset.arrays().keys()
    for field, array in dataset.arrays().items():
        np.testing.assert_array_equal(found[field], array)


def test_minari_reads_what_we_wrote(
    dataset: TransitionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    save_dataset(dataset, tmp_path / "toy" / "log-v0")
    assert [*minari.list_local_datasets()] == ["toy/log-v0"]
    read = minari.load_dataset("toy/log-v0")
    assert (read.id, read.total_episodes, read.total_steps) == ("toy/log-v0", 3, 15)
    assert read.observation_space.shape == (3,) and read.action_space.shape == (2,)
    for episode, rows in zip(read.iterate_episodes(), dataset.episode_slices(), strict=True):
        np.testing.assert_array_equal(episode.observations[:-1], dataset.observations[rows])
        np.testing.assert_array_equal(episode.observations[1:], dataset.next_observations[rows])
        np.testing.assert_array_equal(episode.actions, dataset.actions[rows])
        np.testing.assert_array_equal(episode.rewards, dataset.rewards[rows])
        np.testing.assert_array_equal(episode.terminations, dataset.terminals[rows])
        np.testing.assert_array_equal(episode.truncations, dataset.timeouts[rows])


def test_we_read_what_minari_wrote(dataset: TransitionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffers = [
        EpisodeBuffer(
            id=index,
            observations=np.concatenate([dataset.observations[rows], dataset.next_observations[rows][-1:]]),
            actions=dataset.actions[rows],
            rewards=dataset.rewards[rows],
            terminations=dataset.terminals[rows],
            truncations=dataset.timeouts[rows],
        )
        for index, rows in enumerate(dataset.episode_slices())
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "toy/theirs-v0", buffers, observation_space=Box(-9, 9, (3,)), action_space=Box(-1, 1, (2,))
        )
    read = load_dataset(tmp_path / "toy" / "theirs-v0", env="toy", control_dt=0.02)
    assert read.metadata.source == "Minari toy/theirs-v0"
    expected = dataclasses.replace(
        dataset.metadata,
        observation_names=read.metadata.observation_names,
        action_names=read.metadata.action_names,
        source=read.metadata.source,
    )
    assert_same(read, dataclasses.replace(dataset, metadata=expected))


def test_id_outside_of_minaris_folder_is_the_name(dataset: TransitionDataset, tmp_path: Path) -> None:
    save_dataset(dataset, tmp_path / "log-v3")
    assert json.loads((tmp_path / "log-v3" / "data" / "metadata.json").read_text())["dataset_id"] == "log-v3"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("log.csv", "is not the name of a data set"),
        ("folder.npz", "is not the name of a data set"),
        ("log", "write log-v0"),
        ("my log-v0", "is no name for a Minari data set"),
        ("notes-v0", "is there and is no Minari data set"),
    ],
)
def test_names_that_are_refused(dataset: TransitionDataset, tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "notes-v0").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for refuse in (lambda: check_output(tmp_path / name), lambda: save_dataset(dataset, tmp_path / name)):
        with pytest.raises(UserError, match=sentence) as caught:
            refuse()
        assert str(caught.value).endswith(".")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("name", "missing"), [("log.hdf5", "h5py"), ("log-v0", "minari")])
def test_a_writer_that_is_not_installed(
    dataset: TransitionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f"needs {missing}"):
        save_dataset(dataset, tmp_path / name)
