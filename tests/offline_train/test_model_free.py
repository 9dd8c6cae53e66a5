"""What the model-free algorithms share, and one of them from the command line to a bundle."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import SMALL, refusal, stop_at, write_log
from torch import nn
from toy import Toy, state_equal, toy_batch

from adapters.files import read_jsonl
from deploy.bundle import Bundle
from offline_train.algorithms.base import bellman_target, mean_figures, move_towards
from offline_train.algorithms.model_free import ModelFree
from offline_train.algorithms.registry import make_model_free
from offline_train.algorithms.td3_bc import Td3BcConfig
from offline_train.checkpoint import load_checkpoint

CommandLine = Callable[..., Any]


def make(log: torch.Tensor, **settings: Any) -> ModelFree:
    small: dict[str, Any] = {"updates": 30, "steps_per_epoch": 10, "batch_size": 16, "hidden": [8, 8]}
    return make_model_free(Td3BcConfig(**small | settings), log, 2, 2, seed=0)


def test_bellman_target() -> None:
    # 1 + 0.9 x 3 = 3.7; the other row is terminal: its reward, 2.
    target = bellman_target(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), torch.tensor([3.0, 5.0]), 0.9)
    torch.testing.assert_close(target, torch.tensor([3.7, 2.0]))


def test_move_towards() -> None:
    target, learned = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        target.weight.fill_(1.0)
        learned.weight.fill_(5.0)
    move_towards(target, learned, 0.25)
    torch.testing.assert_close(target.weight, torch.full((1, 2), 2.0))
    assert float(learned.weight.detach().min()) == 5.0


def test_mean_figures() -> None:
    # A figure that only some steps give is averaged over those.
    steps = [{"a": torch.tensor(1.0)}, {"a": torch.tensor(3.0), "b": torch.tensor(5.0)}]
    assert mean_figures(steps) == {"a": 2.0, "b": 5.0}


def test_mean_figures_lets_go_of_figures() -> None:
    alive = list[weakref.ref[torch.Tensor]]()

    def steps() -> Iterator[dict[str, torch.Tensor]]:
        for number in range(4):
            step = {"a": torch.tensor(float(number))}
            alive.append(weakref.ref(step["a"]))
            yield step
            del step
            # The last one may live until the next is there.
            assert all(each() is None for each in alive[:-1])

    assert mean_figures(steps()) == {"a": 1.5}


def test_observations_are_standardised_by_the_log() -> None:
    batch = toy_batch(2_000, seed=1)
    log = batch._replace(obs=batch.obs * torch.tensor([10.0, 0.0]) + 7.0).pack()
    policy = make(log).policy
    # Uniform in 7 +- 10, of standard deviation 10 / sqrt(3) = 5.77, and constant: 0 and the margin.
    torch.testing.assert_close(policy.obs_mean, torch.tensor([7.0, 7.0]), atol=0.3, rtol=0.0)
    torch.testing.assert_close(policy.obs_std, torch.tensor([5.77, 1e-3]), atol=0.1, rtol=0.0)
    scaled = policy.normalise(policy.obs_mean + policy.obs_std)
    torch.testing.assert_close(scaled, torch.ones(2), atol=1e-3, rtol=0.0)


def test_batches_are_rows_of_the_log_and_steps_are_counted_on(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make(toy.packed)
    seen: list[tuple[Any, int]] = []
    monkeypatch.setattr(algorithm.policy, "update", lambda batch, step: seen.append((batch, step)) or {})
    while not algorithm.finished:
        algorithm.train_epoch()
    assert [step for _, step in seen] == list(range(30))
    rows = {tuple(row) for row in toy.packed.tolist()}
    assert all(tuple(row) in rows for batch, _ in seen for row in batch.pack().tolist())
    assert len({tuple(row) for batch, _ in seen for row in batch.pack().tolist()}) > 300


@pytest.fixture
def train(command_line: CommandLine, tmp_path: Path) -> Callable[..., Any]:
    """Run `surefoot train` on a small log, into a folder under the test's own."""
    log = write_log(tmp_path / "log.npz")
    small = ["algorithm.updates=30", "algorithm.steps_per_epoch=10", "algorithm.batch_size=32", "checkpoint_every=1"]

    def run(folder: str, *arguments: str, algorithm: str = "td3-bc") -> Any:
        source = ("dataset=file", f"dataset.path={log}", f"output={tmp_path / folder}", "evaluation_episodes=0")
        return command_line("train", *source, f"algorithm={algorithm}", *small, "evaluate_every=2", *arguments)

    return run


NARROW = "algorithm.hidden=[8,8]"


def test_train_export_and_load(command_line: CommandLine, train: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = train("run", NARROW, "seed=3", "evaluation_episodes=1")
    assert done.code == 0, done
    # No world model is fitted, and none is in the bundle.
    assert not [*folder.glob("world_model*")] and not [*folder.glob("*.part.*")]
    lines = read_jsonl(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 30] and {line["stage"] for line in lines} == {"policy"}
    assert ["return" in line for line in lines] == [False, True, True]
    assert json.loads((folder / "run.json").read_text())["config"]["algorithm"]["alpha"] == 2.5

    done = command_line("export", f"run={folder}")
    assert done.code == 0, done
    bundle = Bundle.load(folder / "td3-bc.bundle")
    assert bundle.manifest.provenance.algorithm == "td3-bc"
    assert bundle.manifest.context is None and bundle.manifest.delay is None
    assert not (folder / "td3-bc.bundle" / "dynamics.onnx").exists()
    action = bundle.act(np.random.default_rng(1).standard_normal((5, 17)))
    assert action.shape == (5, 6) and np.abs(action).max() <= 1.0
    refused = command_line("export", f"run={folder}", f"output={tmp_path / 'planned.bundle'}", "plan.horizon=3")
    assert "a run of algorithm=td3-bc has none" in refusal(refused)


def test_interrupted_run_resumes_to_the_bit(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("whole", NARROW).code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, ModelFree, "train_epoch", 3)
        assert train("parts", NARROW).code == 130
    assert not (tmp_path / "parts" / "policy.safetensors").exists()
    assert train("parts", NARROW, "resume=true").code == 0
    whole, parts = (load_checkpoint(tmp_path / folder / "policy.safetensors") for folder in ("whole", "parts"))
    assert state_equal(whole, parts)
    assert read_jsonl(tmp_path / "whole" / "metrics.jsonl") == read_jsonl(tmp_path / "parts" / "metrics.jsonl")


def test_a_world_model_that_is_given_goes_into_the_bundle(
    command_line: CommandLine, train: Callable[..., Any], tmp_path: Path
) -> None:
    ensemble = [setting for setting in SMALL if setting.startswith("ensemble.")]
    source = ("dataset=file", f"dataset.path={tmp_path / 'log.npz'}", f"output={tmp_path / 'model'}")
    assert command_line("train", "algorithm=none", *source, *ensemble).code == 0
    done = train("run", NARROW, f"world_model={tmp_path / 'model'}", *ensemble)
    assert done.code == 0, done
    models = [load_checkpoint(tmp_path / folder / "world_model.safetensors") for folder in ("model", "run")]
    assert state_equal(*models)
    assert command_line("export", f"run={tmp_path / 'run'}").code == 0
    bundle = Bundle.load(tmp_path / "run" / "td3-bc.bundle")
    # With it the controller can make up for delays.
    assert bundle.manifest.delay is not None
    obs = np.zeros((5, 17))
    assert bundle.predict_change(obs, bundle.act(obs))[0].shape == (5, 17)


@pytest.mark.parametrize(
    ("algorithm", "settings", "sentence"),
    [
        ("td3-bc", ["algorithm.alpha=0"], "alpha"),
        ("iql", ["algorithm.expectile=1"], "expectile"),
        ("edac", ["algorithm.eta=0"], "choose the algorithm by its name"),
        ("brac-v", [], "must be fewer"),
        ("bc", ["start_from=/nowhere"], "algorithm=bc starts from no earlier policy"),
        ("bc", ["world_model=/nowhere"], "/nowhere"),
        ("bc", ["dataset.path=null"], "algorithm=bc learns from a log"),
    ],
)
def test_what_cannot_be_is_one_line(
    train: Callable[..., Any], tmp_path: Path, algorithm: str, settings: list[str], sentence: str
) -> None:
    assert sentence in refusal(train("run", *settings, algorithm=algorithm))
    assert not (tmp_path / "run" / "policy.safetensors").exists()
