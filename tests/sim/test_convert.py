"""`surefoot convert`: forms, tasks and own rewards on the command line, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from adapters.datasets import TransitionDataset, load_dataset, save_npz
from sim.collect import collect
from sim.relabel import relabel

CommandLine = Callable[..., Any]


@pytest.fixture(scope="module")
def data() -> TransitionDataset:
    return collect("random", 2000, seed=0)


@pytest.fixture
def log(data: TransitionDataset, tmp_path: Path) -> Path:
    save_npz(data, tmp_path / "log.npz")
    return tmp_path / "log.npz"


def test_every_form_and_back(command_line: CommandLine, data: TransitionDataset, log: Path, tmp_path: Path) -> None:
    place: Path = log
    for name in ("a.hdf5", "b.h5", "c/d-v0", "e.npz"):
        done = command_line("convert", f"input={place}", f"output={tmp_path / name}")
        assert (done.code, done.err) == (0, "")
        assert data.metadata.sha256 in done.out and "rows         2000" in done.out
        place = tmp_path / name
    assert load_dataset(place).metadata == data.metadata


def test_new_task(command_line: CommandLine, data: TransitionDataset, log: Path, tmp_path: Path) -> None:
    done = command_line("convert", f"input={log}", "task=halfcheetah-jump", f"output={tmp_path / 'jump.npz'}")
    assert done.code == 0, done
    expected = relabel(data, "halfcheetah-jump")
    assert load_dataset(tmp_path / "jump.npz").metadata == expected.metadata
    assert f"mean return  {expected.episode_returns().mean():.1f}" in done.out


def test_several_are_joined(command_line: CommandLine, data: TransitionDataset, log: Path, tmp_path: Path) -> None:
    done = command_line("convert", f"input=[{log},{log}]", f"output={tmp_path / 'both.npz'}")
    assert done.code == 0, done
    both = load_dataset(tmp_path / "both.npz")
    np.testing.assert_array_equal(both.rewards, np.tile(data.rewards, 2))


def plain_hdf5(data: TransitionDataset, path: Path) -> Path:
    """D4RL's arrays, and no word of what they are."""
    with h5py.File(path, "w") as file:
        for name, array in data.arrays().items():
            file[name] = array
    return path


def test_file_that_does_not_say_what_it_is(command_line: CommandLine, data: TransitionDataset, tmp_path: Path) -> None:
    path, output = plain_hdf5(data, tmp_path / "d4rl.hdf5"), tmp_path / "x.npz"
    done = command_line("convert", f"input={path}", "env=halfcheetah", f"output={output}")
    assert done.code == 0, done
    assert load_dataset(output).metadata.sha256 == data.metadata.sha256
    # The period is the environment's; of a robot that is not known here it has to be given.
    assert load_dataset(output).metadata.control_dt == 0.05
    done = command_line("convert", f"input={path}", "env=dog", "control_dt=0.02", f"output={output}")
    assert done.code == 0 and load_dataset(output).metadata.env == "dog"


def test_own_rewards_by_their_path(
    command_line: CommandLine, data: TransitionDataset, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards.py").write_text("def still(obs, action, next_obs):\n    return -abs(next_obs[:, 8])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    done = command_line("convert", f"input={log}", "reward=my_rewards:still", "output=still.npz")
    assert done.code == 0, done
    still = load_dataset(tmp_path / "still.npz")
    np.testing.assert_array_equal(still.rewards, -np.abs(data.next_observations[:, 8]))
    # After a new task, they see what that observes: the torso's height comes before the velocities.
    done = command_line(
        "convert", f"input={log}", "task=halfcheetah-jump", "reward=my_rewards:still", "output=high.npz"
    )
    high = load_dataset(tmp_path / "high.npz")
    assert high.metadata.env == "halfcheetah-jump"
    np.testing.assert_array_equal(high.rewards, -np.abs(high.next_observations[:, 8]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["input=nowhere-v0"], "there is no data set at nowhere-v0"),
        (["input=cut.hdf5", "env=halfcheetah"], "cut.hdf5: this is not a whole HDF5 file"),
        (["input=poor.hdf5", "env=halfcheetah"], "poor.hdf5 has no field 'actions'"),
        (["input=plain.hdf5"], "does not say which environment or robot it is from"),
        (["input=log.npz", "env=hopper"], "is data of 'halfcheetah', not of 'hopper'"),
        (["input=plain.hdf5", "env=hopper", "task=hopper-backward"], "has 17 observations and 6 actions where hopper"),
        (["input=log.npz", "task=ant-angle"], "is a task of Ant-v5's robot"),
        (["input=log.npz", "output=log"], "write log-v0"),
        (["input=log.npz", "reward=nowhere:f"], "reward=nowhere:f is not there"),
        (["input=log.npz", "reward=numpy:f"], "reward=numpy:f is not there"),
        (["input=log.npz", "reward=numpy"], "reward=numpy is not there"),
        (["input=log.npz", "reward=numpy:pi"], "reward=numpy:pi fails on this data"),
        (["input=log.npz", "speed=guessed"], "speed='guessed' is refused"),
    ],
)
def test_mistake_is_one_sentence_and_exit_code_2(
    command_line: CommandLine,
    data: TransitionDataset,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = plain_hdf5(data, tmp_path / "plain.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(plain_hdf5(data, tmp_path / "poor.hdf5"), "a") as file:
        del file["actions"]
    before = sorted(tmp_path.rglob("*"))
    output = [] if any(argument.startswith("output") for argument in arguments) else ["output=x.npz"]
    done = command_line("convert", *arguments, *output)
    assert (done.code, done.err.count("\n")) == (2, 1), done
    assert sentence in done.err
    assert sorted(tmp_path.rglob("*")) == before
