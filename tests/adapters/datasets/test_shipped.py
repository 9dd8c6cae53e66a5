"""The shipped data is whole: the replay that every result in this repo starts from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

import adapters.datasets
import configs
from adapters.datasets import TransitionDataset, load_dataset

DATASETS = Path(configs.__path__[0]) / "dataset"


@pytest.fixture(scope="module")
def mixed() -> TransitionDataset:
    settings = yaml.safe_load((DATASETS / "halfcheetah-mixed.yaml").read_text())
    return load_dataset(settings["path"], settings["env"], settings["control_dt"])


def test_halfcheetah_mixed_is_the_recorded_replay(mixed: TransitionDataset) -> None:
    assert (len(mixed), mixed.obs_dim, mixed.act_dim) == (150_000, 17, 6)
    assert [rows.stop - rows.start for rows in mixed.episode_slices()] == [1000] * 150
    assert mixed.timeouts.sum() == 150
    assert not mixed.terminals.any()
    digest = hashlib.sha256(mixed.packed().tobytes()).hexdigest()
    assert digest == "5826683187a37e9de56263ef51623d2a153aedacc38ae852e2404e7924e71ed8"
    assert mixed.metadata.sha256 == "4e2ce2230cf48231119901ec1b167e38ee76cfc2292f4756e1324be850f6e22c"


def test_halfcheetah_mixed_learns_to_run(mixed: TransitionDataset) -> None:
    returns = mixed.episode_returns()
    assert returns[:5].mean() == pytest.approx(-240, abs=60)
    assert returns[-5:].mean() > 4500


def test_halfcheetah_mixed_says_what_it_is(mixed: TransitionDataset) -> None:
    assert (mixed.metadata.env, mixed.metadata.control_dt) == ("halfcheetah", 0.05)
    assert mixed.metadata.action_names == ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")


def test_the_shipped_file_is_small() -> None:
    file = Path(adapters.datasets.__path__[0]) / "data" / "halfcheetah-mixed.npz"
    assert file.stat().st_size <= 16_000_000


@pytest.mark.parametrize(
    ("name", "env", "rows", "dims", "episodes"),
    [
        ("halfcheetah", "halfcheetah", 15_000, (17, 6), 15),
        ("door", "adroit-door", 6_704, (39, 28), 25),
        ("pen", "adroit-pen", 4_975, (45, 24), 25),
    ],
)
def test_demonstrations_are_whole(name: str, env: str, rows: int, dims: tuple[int, int], episodes: int) -> None:
    settings = yaml.safe_load((DATASETS / f"{name}-demos.yaml").read_text())
    demos = load_dataset(settings["path"], settings["env"], settings["control_dt"])
    assert (len(demos), (demos.obs_dim, demos.act_dim), demos.metadata.env) == (rows, dims, env)
    assert len(demos.episode_slices()) == episodes
    if env != "halfcheetah":
        assert set(demos.rewards.tolist()) == {0.0, 1.0}
    else:
        assert demos.episode_returns().mean() == pytest.approx(11_400, rel=0.01)
