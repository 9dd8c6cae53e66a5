"""SAC with a synthetic replay: when models are fitted, what batches are made of, resuming to the bit, its commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sac_online import finish, point
from toy import state_equal

from adapters.files import read_json, read_jsonl
from offline_train.algorithms.redq import RedqConfig
from offline_train.algorithms.sac import SacConfig
from offline_train.algorithms.sac_online import OnlineSac
from offline_train.algorithms.synther_online import OnlineSynther, OnlineSyntherConfig
from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.diffusion.edm import SamplerConfig
from offline_train.diffusion.synther import DiffusionConfig
from sim.online_robots import PlantRobots

SMALL: dict[str, Any] = {
    "updates": 120,
    "steps_per_epoch": 40,
    "batch_size": 32,
    "random_steps": 20,
    "updates_per_step": 4,
    "sac": SacConfig(hidden=[16, 16], learning_rate=3e-3, target_entropy=None),
}
DIFFUSION = DiffusionConfig(
    width=16, depth=2, embedding=8, max_steps=20, steps_per_epoch=10, batch_size=16, sampler=SamplerConfig(steps=4)
)
SYNTHETIC: dict[str, Any] = {"refresh_every": 25, "synthetic_rows": 50, "diffusion": DIFFUSION}


def make(seed: int = 0, **settings: Any) -> OnlineSynther:
    config = OnlineSyntherConfig(**SMALL | SYNTHETIC | settings)
    return OnlineSynther(config, PlantRobots(point(), config.robots, seed), seed)


def test_updates_come_in_rows() -> None:
    algorithm = finish(OnlineSac(RedqConfig(**SMALL), PlantRobots(point(), 1, 0), 0))
    # 20 random steps, then four updates a step.
    assert (algorithm.updates, algorithm.steps) == (120, 20 + 30)


def test_models_are_fitted_on_schedule_and_replace_what_was_drawn() -> None:
    algorithm, seen = make(refresh_every=24), []
    while not algorithm.finished:
        figures = algorithm.train_epoch()
        seen.append((algorithm.steps, algorithm.models, "model_holdout_loss" in figures, algorithm.synthetic.clone()))
    # Steps 30, 40 and 50: the first model at step 24, the second at 48.
    assert [entry[:3] for entry in seen] == [(30, 1, True), (40, 1, False), (50, 2, True)]
    assert [len(entry[3]) for entry in seen] == [50, 50, 50]
    assert torch.equal(seen[0][3], seen[1][3]) and not torch.equal(seen[1][3], seen[2][3])


def test_no_model_is_fitted_after_the_last_control_step() -> None:
    assert finish(make(refresh_every=25)).models == 1  # at step 25, and not at 50, which is the last
    # 3 robots and 12 updates a step: 7 steps of 3 at random, then 3 epochs of 4 steps, so that 57 is the last.
    assert finish(make(refresh_every=19, robots=3)).models == 2


@pytest.mark.parametrize("real_fraction", [0.0, 0.25, 1.0])
def test_batches_have_their_share_of_real_rows(real_fraction: float) -> None:
    algorithm = make(real_fraction=real_fraction)
    algorithm.train_epoch()
    algorithm.synthetic = torch.full_like(algorithm.synthetic, 1e3)
    assert int((algorithm._batch().reward < 1e3).sum()) == round(32 * real_fraction)


def test_batches_are_real_before_the_first_model() -> None:
    algorithm = make(refresh_every=1_000)
    algorithm.train_epoch()
    assert not len(algorithm.synthetic)
    rows = {tuple(row) for row in algorithm.replay.rows[: algorithm.steps].tolist()}
    assert {tuple(row) for row in algorithm._batch().pack().tolist()} <= rows


def test_resume_is_equal_to_the_bit(tmp_path: Path) -> None:
    whole = finish(make())
    first = make()
    first.train_epoch()
    save_checkpoint(tmp_path / "part.safetensors", first.state_dict())
    second = make(seed=5)
    second.load_state_dict(load_checkpoint(tmp_path / "part.safetensors"))
    assert state_equal(whole.state_dict(), finish(second).state_dict())


@pytest.mark.parametrize("algorithm", ["redq", "synther"])
def test_train_and_export(command_line: Callable[..., Any], tmp_path: Path, algorithm: str) -> None:
    small = ["updates=40", "steps_per_epoch=20", "batch_size=16", "random_steps=30", "sac.hidden=[8]", "critics=3"]
    if algorithm == "synther":
        small += ["refresh_every=31", "synthetic_rows=40", "diffusion.width=8", "diffusion.embedding=8"]
        small += ["diffusion.max_steps=4", "diffusion.steps_per_epoch=2", "diffusion.sampler.steps=3"]
    online = ("dataset=online", "dataset.env=hopper", "evaluation_episodes=0", f"output={tmp_path / 'run'}")
    done = command_line("train", f"algorithm={algorithm}", *online, *[f"algorithm.{setting}" for setting in small])
    assert done.code == 0, done
    assert read_json(tmp_path / "run" / "run.json")["config"]["algorithm"]["critics"] == 3
    figures = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in figures] == [20, 40]
    assert any("model_holdout_loss" in line for line in figures) == (algorithm == "synther")
    assert command_line("export", f"run={tmp_path / 'run'}").code == 0
    assert (tmp_path / "run" / f"{algorithm}.bundle" / "policy.onnx").is_file()


def test_another_number_of_critics_is_refused(command_line: Callable[..., Any], tmp_path: Path) -> None:
    small = ["updates=20", "steps_per_epoch=20", "batch_size=16", "random_steps=30", "sac.hidden=[8]"]
    train = ("train", "algorithm=redq", "dataset=online", "dataset.env=hopper", "evaluation_episodes=0")
    settings = [f"algorithm.{setting}" for setting in small]
    assert command_line(*train, *settings, "algorithm.critics=3", f"output={tmp_path / 'a'}").code == 0
    done = command_line(*train, *settings, f"start_from={tmp_path / 'a'}", f"output={tmp_path / 'b'}")
    assert done.code == 2 and "has 3 critics; give algorithm.critics=3" in done.err
    assert not (tmp_path / "b").exists()
