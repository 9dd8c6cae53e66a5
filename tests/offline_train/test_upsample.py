"""`surefoot upsample` end to end on a tiny log of HalfCheetah's shape, and training on what it draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import EPISODES, LENGTH, SMALL, refusal, write_log
from toy import ROBOT, state_equal

from adapters.datasets import Metadata, TransitionDataset, load_dataset
from adapters.files import read_json, read_jsonl
from offline_train.checkpoint import load_checkpoint
from offline_train.data import Data, mixed
from offline_train.diffusion import upsample
from offline_train.diffusion.fit import ModelTrainer
from offline_train.replay import Batch

CommandLine = Callable[..., Any]
ROWS = 70
TINY = (
    "method.max_steps=20",
    "method.steps_per_epoch=10",
    "method.batch_size=32",
    "method.width=16",
    "method.depth=2",
    "method.embedding=8",
    "method.sampler.steps=4",
)
TINY_VAE = ("method=vae", "method.max_steps=20", "method.steps_per_epoch=10", "method.hidden=[8]", "method.code=4")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log.npz")


@pytest.fixture
def draw(command_line: CommandLine, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `surefoot upsample` on the log into a folder under the test's own, in chunks of 30 rows."""
    monkeypatch.setattr(upsample, "CHUNK", 30)

    def run(folder: str, *arguments: str) -> Any:
        source = ("dataset=file", f"dataset.path={log}", f"rows={ROWS}", f"output={tmp_path / folder}")
        return command_line("upsample", *source, *arguments)

    return run


@pytest.mark.parametrize(
    "settings",
    [TINY, TINY_VAE, *[(f"method={name}-noise",) for name in ("additive", "multiplicative", "dynamics")]],
    ids=["synther", "vae", "additive", "multiplicative", "dynamics"],
)
def test_what_is_drawn_is_a_data_set_with_its_origin(
    draw: Callable[..., Any], log: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    done = draw("run", *settings, "seed=3")
    assert done.code == 0, done
    path = tmp_path / "run" / "synthetic.npz"
    assert f"dataset.synthetic={path}" in done.out
    real, found = load_dataset(log), load_dataset(path)
    assert len(found) == ROWS and (found.obs_dim, found.act_dim) == (real.obs_dim, real.act_dim)
    # Every transition is an episode of its own, which nothing ended.
    assert found.timeouts.all() and not found.terminals.any()
    metadata = found.metadata
    assert (metadata.env, metadata.control_dt) == (real.metadata.env, real.metadata.control_dt)
    assert metadata.observation_names == real.metadata.observation_names
    assert metadata.synthetic is not None and real.metadata.synthetic is None
    assert metadata.synthetic["source_sha256"] == real.metadata.sha256 and metadata.synthetic["seed"] == 3
    assert metadata.synthetic["config"] == read_json(tmp_path / "run" / "run.json")["config"]
    assert metadata.source.startswith("synthetic (")
    assert not (tmp_path / "run" / "chunks").exists() and not [*(tmp_path / "run").glob("*.part.*")]


def test_held_out_episodes_are_not_drawn_from(draw: Callable[..., Any], log: Path, tmp_path: Path) -> None:
    draw("run", "method=dynamics-noise")
    real, found = load_dataset(log), load_dataset(tmp_path / "run" / "synthetic.npz")
    train, holdout = real.split_episodes(0.05, np.random.default_rng(0))
    drawn = {tuple(row) for row in found.observations.tolist()}
    assert drawn <= {tuple(row) for row in train.observations.tolist()}
    assert not drawn & {tuple(row) for row in holdout.observations.tolist()}


def test_a_run_that_is_taken_up_again_draws_the_same(
    draw: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert draw("whole", *TINY).code == 0
    original, epochs = ModelTrainer.end_epoch, iter(range(1, 100))

    def killed(self: ModelTrainer) -> dict[str, float]:
        if next(epochs) == 2:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(ModelTrainer, "end_epoch", killed)
        assert draw("parts", *TINY).code == 130
    draws, drawn = iter(range(1, 100)), upsample.TransitionModel.__subclasses__()
    assert drawn
    model = upsample.Diffusion
    draw_rows = model.draw

    def stopped(self: Any, *arguments: Any) -> torch.Tensor:
        if next(draws) == 2:
            raise KeyboardInterrupt
        return draw_rows(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model, "draw", stopped)
        assert draw("parts", *TINY, "resume=true").code == 130
    assert [path.name for path in (tmp_path / "parts" / "chunks").iterdir()] == ["0.npy"]
    assert draw("parts", *TINY, "resume=true").code == 0
    steps = [line["step"] for line in read_jsonl(tmp_path / "parts" / "metrics.jsonl")]
    assert steps == [10, 20]
    models = [load_checkpoint(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert state_equal(*models)
    hashes = [load_dataset(tmp_path / name / "synthetic.npz").metadata.sha256 for name in ("whole", "parts")]
    assert hashes[0] == hashes[1]


def test_model_of_an_earlier_run_draws_with_another_sampler(draw: Callable[..., Any], tmp_path: Path) -> None:
    draw("first", *TINY)
    model = f"model={tmp_path / 'first'}"
    assert draw("again", *TINY, model).code == 0
    assert draw("faster", *TINY, model, "method.sampler.steps=3").code == 0
    rows = [load_dataset(tmp_path / name / "synthetic.npz").packed() for name in ("first", "again", "faster")]
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])
    line = refusal(draw("wider", *TINY, model, "method.width=32"))
    assert "method.width" in line


def test_refusals(draw: Callable[..., Any], command_line: CommandLine, log: Path, tmp_path: Path) -> None:
    assert draw("run", "method=dynamics-noise").code == 0
    assert "resume=true" in refusal(draw("run", "method=dynamics-noise"))
    assert "other settings" in refusal(draw("run", "method=additive-noise", "resume=true"))
    assert "takes no condition" in refusal(draw("x", *TINY_VAE, "condition={name: return, low: 0, high: 1}"))
    synthetic = tmp_path / "run" / "synthetic.npz"
    train = ("train", "algorithm=bc", "dataset=file", f"output={tmp_path / 'policy'}")
    for alone in ("real_fraction=0.5", "beginnings=5"):
        line = refusal(command_line(*train, f"dataset.path={log}", f"dataset.{alone}"))
        assert "give synthetic=FILE as well" in line
    line = refusal(command_line(*train, f"dataset.path={log}", f"dataset.synthetic={log}"))
    assert "real log" in line
    other = write_log(tmp_path / "other.npz", control_dt=0.05, env="walker2d")
    line = refusal(command_line(*train, f"dataset.path={other}", f"dataset.synthetic={synthetic}"))
    assert "halfcheetah" in line
    line = refusal(command_line(*train, f"dataset.path={log}", "dataset.rows=120", f"dataset.synthetic={synthetic}"))
    assert "another log" in line


@pytest.mark.parametrize("algorithm", ["td3-bc", "mopo"])
def test_policies_are_trained_on_it(
    draw: Callable[..., Any], command_line: CommandLine, log: Path, tmp_path: Path, algorithm: str
) -> None:
    draw("run", "method=dynamics-noise")
    synthetic = tmp_path / "run" / "synthetic.npz"
    own = SMALL if algorithm == "mopo" else [s for s in SMALL if "rollout" not in s and "sac" not in s]
    source = (
        "dataset=file",
        f"dataset.path={log}",
        f"dataset.synthetic={synthetic}",
        "dataset.real_fraction=0.25",
        "dataset.beginnings=5",
    )
    folder = tmp_path / "policy"
    done = command_line("train", f"algorithm={algorithm}", *source, f"output={folder}", *own)
    assert done.code == 0, done
    noted = read_json(folder / "run.json")["dataset"]
    assert noted["rows"] == EPISODES * LENGTH and noted["synthetic"]["rows"] == ROWS
    assert noted["synthetic"]["made_by"]["source_sha256"] == noted["sha256"]
    if algorithm == "td3-bc":
        # The robot's bundle needs the synthetic rows no more.
        synthetic.unlink()
        assert command_line("export", f"run={folder}").code == 0


def episodes_of(lengths: list[int], origin: dict[str, Any] | None = None) -> TransitionDataset:
    """Rows of the toy robot, each told by its reward: 100 x its episode + its step."""
    rewards = np.concatenate([100.0 * i + np.arange(n) for i, n in enumerate(lengths)]).astype(np.float32)
    pairs = np.zeros((len(rewards), 2), np.float32)
    arrays = {
        "observations": pairs,
        "actions": pairs,
        "rewards": rewards,
        "next_observations": pairs,
        "terminals": np.zeros(len(rewards), bool),
        "timeouts": np.isin(np.arange(len(rewards)), np.cumsum(lengths) - 1),
    }
    return TransitionDataset.from_arrays(arrays, Metadata(env="toy", control_dt=0.05, synthetic=origin), "the toy")


# Of 10 real rows. 34 / 10 = 3.4 are as many as 3 logs; half of them 1.7, as many as 2; 4 / 10 fewer than half a log.
@pytest.mark.parametrize(("drawn", "real_fraction", "times"), [(34, 0.0, 3), (34, 0.5, 2), (4, 0.0, 1)])
def test_beginnings_come_besides_as_often_as_the_log_has_them(drawn: int, real_fraction: float, times: int) -> None:
    # One of the three episodes is held out.
    real, synthetic = episodes_of([5, 5, 5]), episodes_of([1] * drawn, origin={})
    data = Data(real, ROBOT, 0.3, "cpu", synthetic, real_fraction, beginnings=2)
    rewards = Batch.unpack(data.learned(), 2, 2).reward.tolist()
    kept = sorted({100 * (int(reward) // 100) for reward in data.train.rewards})
    assert len(kept) == 2 and rewards[drawn:] == [float(first + step) for first in kept for step in range(2)] * times
    without = Data(real, ROBOT, 0.3, "cpu", synthetic, real_fraction).learned()
    assert torch.equal(data.learned()[:drawn], without) and len(without) == drawn


def test_beginnings_of_short_episodes_are_all_of_them() -> None:
    data = Data(episodes_of([3, 3, 3]), ROBOT, 0.3, "cpu", episodes_of([1] * 6, origin={}), beginnings=50)
    assert len(data.learned()) == 6 + 2 * 3


def test_mixed_keeps_the_share_and_repeats_a_short_log() -> None:
    log, synthetic = torch.arange(3.0)[:, None], 10.0 + torch.arange(8.0)[:, None]
    assert mixed(log, synthetic, 0.0).flatten().tolist() == [10, 11, 12, 13, 14, 15, 16, 17]
    # Half of eight: the log's three rows and one of them once more; then all twice, and two once more.
    half, whole = (mixed(log, synthetic, share).flatten().tolist() for share in (0.5, 1.0))
    assert sorted(half[:3]) == [0, 1, 2] and half[3] == half[0] and half[4:] == [10, 11, 12, 13]
    assert whole == (half[:3] * 3)[:8]


def test_mixed_takes_rows_of_the_whole_of_a_long_log() -> None:
    rows = mixed(torch.arange(1_000.0)[:, None], -torch.ones(1_000, 1), 0.1).flatten()
    taken = rows[rows >= 0]
    # 100 different rows, whose mean is 499.5 with a standard deviation of 1000 / sqrt(12 x 100) = 29.
    assert len(taken.unique()) == 100 and abs(float(taken.mean()) - 499.5) < 100
