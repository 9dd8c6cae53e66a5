"""What a TransitionDataset answers: episodes, returns, statistics, packed rows, splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.datasets import Metadata, TransitionDataset, load_dataset, save_npz
from adapters.errors import UserError

MakeArrays = Callable[..., dict[str, np.ndarray]]


def chain(length: int, obs_dim: int = 1) -> dict[str, np.ndarray]:
    """Return one episode that counts 0, 1, 2, ... in every dimension, without flags."""
    states = np.repeat(np.arange(length + 1, dtype=np.float32)[:, None], obs_dim, axis=1)
    return {
        "observations": states[:-1].copy(),
        "actions": np.zeros((length, 1), np.float32),
        "rewards": np.arange(length, dtype=np.float32),
        "next_observations": states[1:].copy(),
        "terminals": np.zeros(length, bool),
        "timeouts": np.zeros(length, bool),
    }


def make(arrays: dict[str, np.ndarray]) -> TransitionDataset:
    return TransitionDataset.from_arrays(arrays, Metadata(env="toy", control_dt=0.1), "toy")


def test_an_episode_ends_at_a_flag_or_with_the_data() -> None:
    arrays = chain(7)
    arrays["terminals"][1] = arrays["timeouts"][4] = True
    assert make(arrays).episode_slices() == [slice(0, 2), slice(2, 5), slice(5, 7)]


def test_returns() -> None:
    arrays = chain(7)
    arrays["terminals"][1] = arrays["timeouts"][4] = True
    # Rewards 0 .. 6: 0 + 1, 2 + 3 + 4, 5 + 6.
    np.testing.assert_array_equal(make(arrays).episode_returns(), [1.0, 9.0, 11.0])


def test_packed(dataset: TransitionDataset) -> None:
    packed = dataset.packed()
    assert packed.shape == (15, 2 * 3 + 2 + 2)
    assert packed.dtype == np.float32
    np.testing.assert_array_equal(packed[:, :3], dataset.observations)
    np.testing.assert_array_equal(packed[:, 3:5], dataset.actions)
    np.testing.assert_array_equal(packed[:, 5], dataset.rewards)
    np.testing.assert_array_equal(packed[:, 6:9], dataset.next_observations)
    # Only the second episode, rows 6 to 9, ends in a terminal; timeouts do not stop bootstrapping.
    np.testing.assert_array_equal(np.flatnonzero(packed[:, 9]), [9])


def test_select_episodes_keeps_the_order_given(dataset: TransitionDataset) -> None:
    selected = dataset.select_episodes([2, 0])
    np.testing.assert_array_equal(selected.rewards, dataset.rewards[[10, 11, 12, 13, 14, 0, 1, 2, 3, 4, 5]])
    assert selected.metadata.sha256 != dataset.metadata.sha256


def test_an_episode_that_simply_stopped_can_be_followed_by_another() -> None:
    arrays = chain(5)
    arrays["timeouts"][1] = True
    selected = make(arrays).select_episodes([1, 0])
    assert selected.timeouts.tolist() == [False, False, True, False, True]


@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=8),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_is_a_partition_into_whole_episodes(lengths: list[int], fraction: float, seed: int) -> None:
    arrays = chain(sum(lengths))
    arrays["timeouts"][np.cumsum(lengths) - 1] = True
    train, holdout = make(arrays).split_episodes(fraction, np.random.default_rng(seed))
    # The rewards number the rows, so they tell where each row came from.
    assert sorted([*train.rewards, *holdout.rewards]) == list(range(sum(lengths)))
    for part in (train, holdout):
        starts = {float(part.rewards[rows.start]) for rows in part.episode_slices()}
        assert starts <= {0.0, *np.cumsum(lengths).astype(float)}
    held_out = len(holdout.episode_slices())
    assert held_out == min(max(round(fraction * len(lengths)), 1), len(lengths) - 1)


def test_split_is_a_function_of_the_generator(dataset: TransitionDataset) -> None:
    parts = [dataset.split_episodes(0.3, np.random.default_rng(seed))[1].metadata.sha256 for seed in (1, 1, 2, 3, 4, 5)]
    assert parts[0] == parts[1]
    assert len(set(parts)) > 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, np.nan])
def test_split_refuses_an_impossible_fraction(dataset: TransitionDataset, fraction: float) -> None:
    with pytest.raises(UserError, match="hold-out fraction"):
        dataset.split_episodes(fraction, np.random.default_rng(0))


def test_split_refuses_a_single_episode() -> None:
    with pytest.raises(UserError, match="one episode only"):
        make(chain(5)).split_episodes(0.5, np.random.default_rng(0))


@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6), seed=st.integers(0, 99), open_end=st.booleans())
def test_compact_file_rebuilds_every_bit(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int, open_end: bool
) -> None:
    generator = np.random.default_rng(seed)
    arrays = chain(sum(lengths), obs_dim=2)
    ends = np.cumsum(lengths) - 1
    arrays["terminals"][ends] = generator.random(len(ends)) < 0.5
    arrays["timeouts"][ends] = ~arrays["terminals"][ends]
    if open_end:
        arrays["terminals"][-1] = arrays["timeouts"][-1] = False
    arrays["next_observations"][ends] = generator.standard_normal((len(ends), 2))
    written = make(arrays)
    path = tmp_path_factory.mktemp("compact") / "log.npz"
    save_npz(written, path)
    loaded = load_dataset(path)
    for name, array in written.arrays().items():
        assert loaded.arrays()[name].tobytes() == array.tobytes()
    assert loaded.metadata == written.metadata


def test_zeros_of_different_sign_are_the_same_observation(tmp_path: Path) -> None:
    arrays = chain(3)
    arrays["observations"] = np.array([[1.0], [0.0], [2.0]], np.float32)
    arrays["next_observations"] = np.array([[-0.0], [2.0], [3.0]], np.float32)
    save_npz(make(arrays), tmp_path / "log.npz")
    assert len(load_dataset(tmp_path / "log.npz")) == 3


def test_the_hash_sees_every_field() -> None:
    arrays = chain(4)
    hashes = {make(arrays).metadata.sha256}
    for name, value in (("actions", 1), ("rewards", 9), ("next_observations", 9), ("terminals", 1), ("timeouts", 1)):
        changed = {key: array.copy() for key, array in arrays.items()}
        changed[name][3] = value
        hashes.add(make(changed).metadata.sha256)
    assert len(hashes) == 6


def test_names_must_fit_the_columns(metadata: Metadata, make_arrays: MakeArrays) -> None:
    short = dataclasses.replace(metadata, observation_names=("x",))
    with pytest.raises(UserError, match="'observations' has 3 columns where the metadata names 1"):
        TransitionDataset.from_arrays(make_arrays(), short, "toy")


def test_the_arrays_are_copied(make_arrays: MakeArrays, metadata: Metadata) -> None:
    arrays = make_arrays()
    made = TransitionDataset.from_arrays(arrays, metadata, "toy")
    arrays["rewards"][0] = 99.0
    assert made.rewards[0] != 99.0


def test_joined_data_sets_keep_their_episodes_apart() -> None:
    long, short = make(chain(5)), make(chain(3))
    joined = TransitionDataset.join([long, short])
    assert joined.episode_slices() == [slice(0, 5), slice(5, 8)]
    # The first record simply stopped, so its end is a timeout: row 4 is not followed by row 5.
    assert list(np.flatnonzero(joined.timeouts)) == [4, 7]
    np.testing.assert_array_equal(joined.rewards, [0, 1, 2, 3, 4, 0, 1, 2])


@pytest.mark.parametrize(
    ("change", "field"),
    [({"env": "other"}, "env"), ({"control_dt": 0.2}, "control_dt"), ({"action_names": ("b",)}, "action_names")],
)
def test_data_sets_of_different_robots_are_not_joined(change: dict[str, Any], field: str) -> None:
    one = make(chain(3))
    other = TransitionDataset.from_arrays(chain(3), dataclasses.replace(one.metadata, **change), "other")
    with pytest.raises(UserError, match=f"cannot be joined: {field} is"):
        TransitionDataset.join([one, other])


def test_several_files_are_read_as_one_data_set(tmp_path: Path) -> None:
    save_npz(make(chain(3)), tmp_path / "a.npz")
    save_npz(make(chain(4)), tmp_path / "b.npz")
    joined = load_dataset([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert len(joined) == 7 and joined.metadata.env == "toy"
    assert joined.metadata.sha256 == TransitionDataset.join([make(chain(3)), make(chain(4))]).metadata.sha256
    with pytest.raises(UserError, match="empty list of paths"):
        load_dataset([])


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6), seed=st.integers(0, 99), data=st.data())
def test_subset_is_a_short_log_of_the_same_rows(lengths: list[int], seed: int, data: st.DataObject) -> None:
    arrays = chain(sum(lengths))
    arrays["timeouts"][np.cumsum(lengths) - 1] = True
    whole = make(arrays)
    rows = data.draw(st.integers(1, len(whole)))
    part = whole.subset(rows, np.random.default_rng(seed))
    assert (len(part) == rows and part.metadata.sha256 != whole.metadata.sha256) or rows == len(whole)
    # Rows keep their order, and every episode is one of the log's, at most one of them cut at its end.
    starts = {rows.start: rows.stop - rows.start for rows in whole.episode_slices()}
    found = [(int(part.observations[rows.start, 0]), rows.stop - rows.start) for rows in part.episode_slices()]
    assert [start for start, _ in found] == sorted(start for start, _ in found)
    assert all(length <= starts[start] for start, length in found)
    assert sum(length < starts[start] for start, length in found) <= 1
    again = whole.subset(rows, np.random.default_rng(seed))
    assert again.metadata.sha256 == part.metadata.sha256


@pytest.mark.parametrize("rows", [0, 16])
def test_subset_refuses_more_rows_than_there_are(dataset: TransitionDataset, rows: int) -> None:
    with pytest.raises(UserError, match=f"{rows} rows are asked for and the data has 15"):
        dataset.subset(rows, np.random.default_rng(0))


def test_what_made_synthetic_data_is_kept(dataset: TransitionDataset, tmp_path: Path) -> None:
    made_by = {"source_sha256": "0" * 64, "config": {"rows": 15}, "seed": 3}
    marked = dataclasses.replace(dataset.metadata, synthetic=made_by, sha256="")
    synthetic = TransitionDataset.from_arrays(dataset.arrays(), marked, "toy")
    for name, one in (("real.npz", dataset), ("synthetic.npz", synthetic)):
        save_npz(one, tmp_path / name)
    assert load_dataset(tmp_path / "real.npz").metadata.synthetic is None
    assert load_dataset(tmp_path / "synthetic.npz").metadata.synthetic == made_by
    with pytest.raises(UserError, match="synthetic is None in one"):
        TransitionDataset.join([dataset, synthetic])
