"""One battery for every reader: what was written is read bit for bit, what is malformed is refused in a sentence."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from adapters.datasets import Metadata, TransitionDataset, load_dataset, save_npz
from adapters.errors import UserError

if TYPE_CHECKING:
    from conftest import Form

MakeArrays = Callable[..., dict[str, np.ndarray]]


def refusal(path: Path, **settings: Any) -> str:
    """Load what must be refused, and return the one sentence."""
    with pytest.raises(UserError) as caught:
        load_dataset(path, **{"env": "toy", "control_dt": 0.02, **settings})
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sentence.endswith(".")
    return sentence


def replaced(array: np.ndarray, row: int, value: float) -> np.ndarray:
    array = array.copy()
    array[row] = value
    return array


def test_reads_back_bit_for_bit(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    loaded = load_dataset(form.write(dataset, tmp_path), env="toy", control_dt=0.02)
    for name, array in dataset.arrays().items():
        read = loaded.arrays()[name]
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()
    assert loaded.metadata.sha256 == dataset.metadata.sha256
    assert (loaded.metadata.env, loaded.metadata.control_dt) == ("toy", 0.02)


def test_double_precision_is_rounded_to_float32(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    form.edit(path, "actions", lambda array: array.astype(np.float64))
    loaded = load_dataset(path, env="toy", control_dt=0.02)
    assert loaded.metadata.sha256 == dataset.metadata.sha256


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite(form: Form, dataset: TransitionDataset, tmp_path: Path, value: float) -> None:
    path = form.write(dataset, tmp_path)
    form.edit(path, "observations", lambda array: replaced(array, 3, value))
    assert "'observations' is not finite in float32 at row 3;" in refusal(path)


def test_a_number_too_large_for_float32(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    form.edit(path, "rewards", lambda array: replaced(array.astype(np.float64), 2, 1e39))
    assert "'rewards' is not finite in float32 at row 2;" in refusal(path)


def test_a_flag_that_is_neither_0_nor_1(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    form.edit(path, "terminals", lambda array: replaced(array.astype(np.int64), 4, 7))
    assert "'terminals' is 7 at row 4" in refusal(path)


def test_wrong_kind(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    form.edit(path, "actions", lambda array: array.astype(np.complex64))
    assert "'actions' holds complex" in refusal(path)


def test_wrong_shape(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    form.edit(path, "rewards", lambda array: array[:, None])
    assert "'rewards'" in refusal(path)
    assert "shape" in refusal(path)


def test_a_field_that_stops_early(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    form.edit(path, "actions", lambda array: array[:4])
    # Minari's fields are cut by episode, so there the sentence names the episode and its rows.
    assert re.search(r"'actions' (stops at row 4 of 15|has 4 rows where 6 rewards need 6)", refusal(path))


def test_a_missing_field(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    form.edit(path, "actions", None)
    assert "'actions'" in refusal(path)


def test_empty(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    form.empty(path)
    assert "empty" in refusal(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_cut_short(form: Form, dataset: TransitionDataset, tmp_path: Path, share: float) -> None:
    path = form.write(dataset, tmp_path)
    file = form.main_file(path)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert "cut short or damaged" in refusal(path)


def test_a_file_that_is_something_else(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    form.main_file(path).write_text("not a data set\n" * 100)
    assert "whole" in refusal(path) or "cannot be read" in refusal(path)


# The other forms hold no next observations but an episode's last, so there the order of rows is all there is.
@pytest.mark.parametrize("form", ["plain npz", "hdf5"], indirect=True)
def test_rows_out_of_order(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    # Rows 8 and 9 are inside the second episode (6 to 9): after the swap, row 7 leads to what is now row 9.
    order = np.arange(15)
    order[[8, 9]] = [9, 8]
    for field in dataset.arrays():
        form.edit(path, field, lambda array: array[order])
    assert "'next_observations' at row 7 is not the observation of row 8" in refusal(path)


@pytest.mark.parametrize("form", ["plain npz", "hdf5"], indirect=True)
def test_a_gap_marked_as_a_timeout(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    without_row_2 = np.delete(np.arange(15), 2)
    for field in dataset.arrays():
        form.edit(path, field, lambda array: array[without_row_2])
    assert "at row 1 " in refusal(path)
    form.edit(path, "timeouts", lambda array: replaced(array, 1, True))
    assert len(load_dataset(path, env="toy", control_dt=0.02).episode_slices()) == 4


def test_final_observations_must_match_the_episodes(dataset: TransitionDataset, tmp_path: Path) -> None:
    path = tmp_path / "log.npz"
    arrays = dataset.arrays()
    del arrays["next_observations"]
    np.savez(path, **arrays, final_observations=np.zeros((2, 3), np.float32))
    assert "'final_observations' has 2 rows where 3 episodes end" in refusal(path)


@pytest.mark.parametrize("form", ["hdf5"], indirect=True)
def test_hdf5_without_next_observations_warns_of_lost_rows(
    form: Form, dataset: TransitionDataset, tmp_path: Path
) -> None:
    path = form.write(dataset, tmp_path)
    form.edit(path, "next_observations", None)
    with pytest.warns(UserWarning, match=r"last row of each of its 3 episodes \(1 of them terminals\) was left out"):
        loaded = load_dataset(path, env="toy", control_dt=0.02)
    # Episodes of 6, 4 and 5 rows lose rows 5, 9 and 14; each new last row leads to the row that was lost.
    kept = [0, 1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13]
    np.testing.assert_array_equal(loaded.rewards, dataset.rewards[kept])
    np.testing.assert_array_equal(loaded.next_observations, dataset.next_observations[kept])
    np.testing.assert_array_equal(np.flatnonzero(loaded.timeouts), [4, 7, 11])
    assert not loaded.terminals.any()


@pytest.mark.parametrize("form", ["hdf5"], indirect=True)
def test_hdf5_without_next_observations_loses_short_episodes(
    form: Form, make_arrays: MakeArrays, metadata: Metadata, tmp_path: Path
) -> None:
    path = form.write(TransitionDataset.from_arrays(make_arrays((1, 3)), metadata, "toy"), tmp_path)
    form.edit(path, "next_observations", None)
    with pytest.warns(UserWarning, match="2 episodes"):
        loaded = load_dataset(path, env="toy", control_dt=0.02)
    # Row 0 is an episode by itself; rows 1 and 2 of the second episode stay.
    assert len(loaded) == 2
    assert loaded.timeouts.tolist() == [False, True]


@pytest.mark.parametrize("form", ["minari"], indirect=True)
def test_minari_episode_without_an_end_is_a_timeout(form: Form, dataset: TransitionDataset, tmp_path: Path) -> None:
    path = form.write(dataset, tmp_path)
    form.edit(path, "timeouts", np.zeros_like)
    loaded = load_dataset(path, env="toy", control_dt=0.02)
    assert loaded.metadata.sha256 == dataset.metadata.sha256


@pytest.mark.parametrize("given", [{"env": "walker"}, {"control_dt": 0.05}])
def test_settings_that_contradict_the_file(dataset: TransitionDataset, tmp_path: Path, given: dict[str, Any]) -> None:
    save_npz(dataset, tmp_path / "log.npz")
    assert "not" in refusal(tmp_path / "log.npz", **given)


def test_metadata_comes_from_the_file(dataset: TransitionDataset, tmp_path: Path) -> None:
    save_npz(dataset, tmp_path / "log.npz")
    assert load_dataset(tmp_path / "log.npz").metadata == dataset.metadata


@pytest.mark.parametrize("form", ["hdf5"], indirect=True)
@pytest.mark.parametrize(("given", "name"), [({"env": None}, "dataset.env"), ({"control_dt": None}, "control_dt")])
def test_a_file_that_does_not_say_what_it_is_needs_settings(
    form: Form, dataset: TransitionDataset, tmp_path: Path, given: dict[str, Any], name: str
) -> None:
    assert name in refusal(form.write(dataset, tmp_path), **given)


def test_rows_changed_after_writing(dataset: TransitionDataset, tmp_path: Path) -> None:
    path = tmp_path / "log.npz"
    save_npz(dataset, path)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["rewards"][5] += 1
    np.savez(path, **arrays)
    assert "SHA-256" in refusal(path)


@pytest.mark.parametrize("content", ["{", "[]", '{"env": "toy"}', json.dumps({"control_dt": "fast"})])
def test_metadata_that_is_not_ours(dataset: TransitionDataset, tmp_path: Path, content: str) -> None:
    np.savez(tmp_path / "log.npz", **dataset.arrays(), metadata=np.array(content))
    assert "'metadata'" in refusal(tmp_path / "log.npz")


def test_pickled_arrays_are_refused(dataset: TransitionDataset, tmp_path: Path) -> None:
    arrays = dataset.arrays() | {"rewards": np.array([1.0, None], object)}
    np.savez(tmp_path / "log.npz", allow_pickle=True, **arrays)
    assert "'rewards' cannot be read" in refusal(tmp_path / "log.npz")


@pytest.mark.parametrize("name", ["nothing.npz", "notes.txt", "folder"])
def test_what_is_no_data_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    refusal(tmp_path / name)


def test_package_paths(tmp_path: Path) -> None:
    assert len(load_dataset("package://adapters/datasets/data/halfcheetah-mixed.npz")) == 150_000
    with pytest.raises(UserError, match="there is no package 'nowhere'"):
        load_dataset("package://nowhere/data.npz")


@pytest.mark.parametrize(("form", "missing"), [("hdf5", "h5py"), ("minari", "minari")], indirect=["form"])
def test_a_reader_that_is_not_installed(
    form: Form, dataset: TransitionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    path = form.write(dataset, tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    assert f"needs {missing}" in refusal(path)


def test_writing_fails_whole(dataset: TransitionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.npz"
    path.write_text("before")
    monkeypatch.setattr(np, "savez_compressed", lambda file, **_: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(UserError, match="disk is full"):
        save_npz(dataset, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
