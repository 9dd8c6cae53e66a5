"""`surefoot train` and `surefoot export` end to end, on a tiny log of HalfCheetah's shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import state_equal

from adapters.datasets import Metadata, TransitionDataset, load_dataset, save_npz
from adapters.files import read_json, read_jsonl
from deploy.bundle import Bundle
from offline_train.algorithms.mopo import Mopo
from offline_train.checkpoint import load_checkpoint
from offline_train.models.fit import EnsembleTrainer

CommandLine = Callable[..., Any]

EPISODES, LENGTH, OBS_DIM, ACT_DIM = 6, 60, 17, 6
SMALL = (
    "ensemble.members=2",
    "ensemble.elites=2",
    "ensemble.hidden=[8,8]",
    "ensemble.max_steps=30",
    "ensemble.steps_per_epoch=10",
    "ensemble.batch_size=32",
    "algorithm.updates=30",
    "algorithm.steps_per_epoch=10",
    "algorithm.batch_size=32",
    "algorithm.rollout_starts=20",
    "algorithm.sac.hidden=[8,8]",
    "checkpoint_every=1",
    "evaluate_every=2",
    "evaluation_episodes=0",
)


def write_log(path: Path, *, obs_dim: int = OBS_DIM, control_dt: float = 0.05, env: str = "halfcheetah") -> Path:
    """A log of a stable linear system under random actions."""
    generator = np.random.default_rng(0)
    push = 0.1 * generator.standard_normal((ACT_DIM, obs_dim))
    rows = EPISODES * LENGTH
    actions = generator.uniform(-1, 1, (rows, ACT_DIM))
    observations, after = np.zeros((2, rows, obs_dim))
    for row in range(rows):
        first = row % LENGTH == 0
        observations[row] = 0.1 * generator.standard_normal(obs_dim) if first else after[row - 1]
        after[row] = 0.9 * observations[row] + actions[row] @ push + 0.01 * generator.standard_normal(obs_dim)
    arrays = {
        "observations": observations,
        "actions": actions,
        "rewards": observations[:, 0],
        "next_observations": after,
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % LENGTH == LENGTH - 1,
    }
    arrays = {name: v if v.dtype == bool else v.astype(np.float32) for name, v in arrays.items()}
    save_npz(TransitionDataset.from_arrays(arrays, Metadata(env=env, control_dt=control_dt), "the log"), path)
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log.npz")


Train = Callable[..., Any]


@pytest.fixture
def train(command_line: CommandLine, log: Path, tmp_path: Path) -> Train:
    """Run `surefoot train` on the log, small, into a folder under the test's own."""

    def run(folder: str, *arguments: str) -> Any:
        return command_line(
            "train", "dataset=file", f"dataset.path={log}", f"output={tmp_path / folder}", *SMALL, *arguments
        )

    return run


def refusal(done: Any) -> str:
    """The one line of a refused command."""
    assert done.code == 2, done
    assert done.err.startswith("surefoot: ") and done.err.count("\n") == 1, done.err
    return done.err


PRIOR = ("algorithm.prior.updates=10", "algorithm.prior.steps_per_epoch=10", "algorithm.prior.hidden=[8]")


@pytest.mark.parametrize("algorithm", ["mopo", "augwm", "morel", "mabe"])
def test_train_export_and_load(command_line: CommandLine, train: Train, tmp_path: Path, algorithm: str) -> None:
    folder = tmp_path / "run"
    more = PRIOR if algorithm == "mabe" else ()
    done = train("run", f"algorithm={algorithm}", "seed=3", "evaluation_episodes=1", *more)
    assert done.code == 0, done
    assert f"surefoot export run={folder}" in done.out

    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["algorithm"]["name"] == algorithm and record["config"]["seed"] == 3
    assert len(record["dataset"]["sha256"]) == 64 and record["dataset"]["rows"] == EPISODES * LENGTH
    assert {"surefoot", "torch", "numpy"} <= record["versions"].keys()
    errors = json.loads((folder / "world_model.json").read_text())
    assert errors["holdout_episodes"] == 1 and 0 < errors["holdout_mse"] < 2
    assert [*errors["horizon_rmse"]] == ["1", "5", "20", "50"]
    lines = read_jsonl(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["stage"] == "world_model"] == [10, 20, 30]
    policy = [line for line in lines if line["stage"] == "policy"]
    assert [line["step"] for line in policy] == [10, 20, 30]
    score = 100 * (policy[-1]["return"] + 280.178953) / (12135.0 + 280.178953)
    assert policy[-1]["d4rl_score"] == pytest.approx(score)
    # The score is told once, and with it that D4RL's is another version of the task.
    shown = f"return in halfcheetah after 30 updates: {policy[-1]['return']:,.0f}, D4RL score {score:.1f} ("
    assert shown in done.out and done.out.count("D4RL score") == done.out.count("an older version of the task") == 1
    # Evaluated at every second epoch and at the end.
    assert ["return" in line for line in policy] == ["model_reward" in line for line in policy] == [False, True, True]
    assert not [*folder.glob("*.part.*")]

    done = command_line("export", f"run={folder}", f"output={tmp_path / 'out.bundle'}")
    assert done.code == 0, done
    bundle = Bundle.load(tmp_path / "out.bundle")
    assert bundle.manifest.provenance.algorithm == algorithm
    assert bundle.manifest.provenance.dataset_sha256 == record["dataset"]["sha256"]
    obs = np.random.default_rng(1).standard_normal((5, OBS_DIM))
    if algorithm != "augwm":
        assert bundle.manifest.context is None
        action = bundle.act(obs)
    else:
        assert bundle.manifest.context is not None and bundle.manifest.context.dim == OBS_DIM
        action = bundle.act(obs, np.ones((5, OBS_DIM)))
        assert bundle.predict_change(obs, action)[0].shape == (5, OBS_DIM)
    assert action.shape == (5, ACT_DIM) and np.abs(action).max() <= 1.0


def stop_at(monkeypatch: pytest.MonkeyPatch, kind: type, method: str, call: int) -> None:
    """Make the n-th call of a method what Ctrl-C is."""
    original, calls = getattr(kind, method), iter(range(1, 1_000))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(kind, method, interrupted)


@pytest.mark.parametrize(
    ("kind", "method", "call"), [(EnsembleTrainer, "end_epoch", 2), (Mopo, "train_epoch", 1), (Mopo, "train_epoch", 3)]
)
def test_interrupted_run_resumes_to_the_bit(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, method: str, call: int
) -> None:
    assert train("whole").code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, kind, method, call)
        assert train("parts").code == 130
    assert not (tmp_path / "parts" / "policy.safetensors").exists()
    assert train("parts", "resume=true").code == 0
    for name in ("world_model.safetensors", "policy.safetensors"):
        assert state_equal(load_checkpoint(tmp_path / "whole" / name), load_checkpoint(tmp_path / "parts" / name)), name
    assert read_jsonl(tmp_path / "whole" / "metrics.jsonl") == read_jsonl(tmp_path / "parts" / "metrics.jsonl")
    assert (tmp_path / "whole" / "world_model.json").read_text() == (
        tmp_path / "parts" / "world_model.json"
    ).read_text()


def test_run_is_neither_overwritten_nor_resumed_with_other_settings(train: Train, tmp_path: Path) -> None:
    assert train("run").code == 0
    before = (tmp_path / "run" / "policy.safetensors").read_bytes()
    assert "holds a run already" in refusal(train("run"))
    line = refusal(train("run", "resume=true", "seed=9", "algorithm.horizon=2"))
    assert "other settings" in line and "seed" in line and "algorithm" in line
    # Resuming a finished run changes nothing.
    assert train("run", "resume=true", "checkpoint_every=3").code == 0
    assert (tmp_path / "run" / "policy.safetensors").read_bytes() == before


def test_a_run_does_not_go_on_with_another_log_under_the_same_name(train: Train, log: Path, tmp_path: Path) -> None:
    assert train("run", "evaluation_episodes=0").code == 0
    record = (tmp_path / "run" / "run.json").read_bytes()
    dataset = load_dataset(log)
    arrays = dataset.arrays() | {"rewards": dataset.rewards + 1.0}
    save_npz(TransitionDataset.from_arrays(arrays, dataset.metadata, "another"), log)
    (tmp_path / "run" / "policy.safetensors").unlink()
    again = ("run", "evaluation_episodes=0", "resume=true")
    assert "was started with another data set than there is under that name now" in refusal(train(*again))
    assert (tmp_path / "run" / "run.json").read_bytes() == record


def test_seed_decides_the_result(train: Train, tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(folder, f"seed={seed}").code == 0
    policies = [load_checkpoint(tmp_path / folder / "policy.safetensors") for folder in "abc"]
    assert state_equal(policies[0], policies[1]) and not state_equal(policies[0], policies[2])


def test_bf16_trains_the_policy_in_another_precision_and_the_world_model_in_the_same(
    train: Train, tmp_path: Path
) -> None:
    for name, more in (("exact", ()), ("rough", ("bf16=true",)), ("again", ("bf16=true",))):
        assert train(name, "algorithm=mopo", *more).code == 0
    policies = [load_checkpoint(tmp_path / name / "policy.safetensors") for name in ("exact", "rough", "again")]
    models = [(tmp_path / name / "world_model.safetensors").read_bytes() for name in ("exact", "rough")]
    assert models[0] == models[1]
    assert not state_equal(policies[0], policies[1]) and state_equal(policies[1], policies[2])
    assert "bf16" in refusal(train("exact", "algorithm=mopo", "bf16=true", "resume=true"))


def test_world_model_of_an_earlier_run_is_taken(train: Train, command_line: CommandLine, tmp_path: Path) -> None:
    assert train("first", "algorithm=augwm").code == 0
    # Its sizes are those of the earlier run, whatever else is said, and the record says so.
    taken = train("second", "algorithm=mopo", f"world_model={tmp_path / 'first'}", "ensemble.hidden=[4]")
    assert taken.code == 0, taken
    recorded = [read_json(tmp_path / folder / "run.json")["config"]["ensemble"] for folder in ("first", "second")]
    assert recorded[0] == recorded[1]
    exported = command_line("export", f"run={tmp_path / 'second'}")
    assert exported.code == 0, exported
    models = [load_checkpoint(tmp_path / folder / "world_model.safetensors") for folder in ("first", "second")]
    assert state_equal(*models)
    assert not [line for line in read_jsonl(tmp_path / "second" / "metrics.jsonl") if line["stage"] == "world_model"]


def test_world_model_of_other_data_is_refused(train: Train, log: Path, tmp_path: Path) -> None:
    assert train("first").code == 0
    write_log(log, control_dt=0.05)
    with np.load(log) as stored:
        changed = dict(stored) | {"rewards": stored["rewards"] + 1.0}
    del changed["metadata"]
    np.savez(log, **changed)
    done = train("second", "dataset.env=halfcheetah", "dataset.control_dt=0.05", f"world_model={tmp_path / 'first'}")
    assert "learned from other data" in refusal(done)


def test_log_of_another_robot_is_refused(train: Train, log: Path) -> None:
    write_log(log, obs_dim=5)
    line = refusal(train("run"))
    assert "5 observation dimensions" in line and "halfcheetah" in line and "17" in line


def test_log_of_another_control_period_is_refused(train: Train, log: Path) -> None:
    write_log(log, control_dt=0.02)
    line = refusal(train("run"))
    assert "0.02 s" in line and "0.05 s" in line


def test_log_that_is_cut_short_is_refused(train: Train, log: Path, tmp_path: Path) -> None:
    log.write_bytes(log.read_bytes()[:-500])
    assert "log.npz" in refusal(train("run"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_log_of_an_unknown_environment_is_refused(train: Train, log: Path) -> None:
    write_log(log, env="centipede")
    assert "no environment 'centipede'" in refusal(train("run"))


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("algorithm.horizn=3", "horizn"),
        ("algorithm.horizon=0", "horizon"),
        ("+algorithm.z=3", "z"),
        ("algorithm.penalty=guess", "guess"),
        ("ensemble.members=0", "members"),
        ("algorithm.z_low=1.2", "z_low"),
        ("world_model=/nowhere", "/nowhere"),
        ("device=tpu", "tpu"),
    ],
)
def test_bad_setting_is_one_line_that_names_it(train: Train, setting: str, names: str) -> None:
    assert names in refusal(train("run", setting))


def test_half_a_run_is_not_exported(
    command_line: CommandLine, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, Mopo, "train_epoch", 2)
        assert train("run").code == 130
    assert "no finished run" in refusal(command_line("export", f"run={tmp_path / 'run'}"))
    assert "nowhere" in refusal(command_line("export", "run=/nowhere"))
    assert not [*tmp_path.rglob("*.bundle")]


def test_export_without_its_log_is_refused(command_line: CommandLine, train: Train, log: Path, tmp_path: Path) -> None:
    assert train("run").code == 0
    log.unlink()
    assert "no data set at" in refusal(command_line("export", f"run={tmp_path / 'run'}"))


def test_damaged_checkpoint_is_refused(command_line: CommandLine, train: Train, tmp_path: Path) -> None:
    assert train("run").code == 0
    policy = tmp_path / "run" / "policy.safetensors"
    policy.write_bytes(policy.read_bytes()[:-100])
    assert "policy.safetensors is not a whole checkpoint" in refusal(command_line("export", f"run={tmp_path / 'run'}"))


def test_a_conditioned_policy_goes_on_from_mopo(train: Train, tmp_path: Path) -> None:
    assert train("base", "algorithm=mopo", "evaluation_episodes=0").code == 0
    onwards = ["algorithm=augwm-actuators", f"world_model={tmp_path / 'base'}", "evaluation_episodes=0"]
    done = train("on", *onwards, f"start_from={tmp_path / 'base'}")
    assert done.code == 0, done
    record = json.loads((tmp_path / "on" / "run.json").read_text())
    assert record["config"]["start_from"] == str(tmp_path / "base")
    # Its count of updates goes on, so the averaged actor stays as slow as it was: 30 and 30.
    assert float(load_checkpoint(tmp_path / "on" / "policy.safetensors")["updates"]) == 60
    assert "is no run of algorithm=mopo in" in refusal(train("no", *onwards, f"start_from={tmp_path / 'on'}"))
    assert "there is no file" in refusal(train("no", *onwards, f"start_from={tmp_path / 'none'}"))
    wider = refusal(train("no", *onwards, f"start_from={tmp_path / 'base'}", "algorithm.sac.hidden=[9,9]"))
    assert "give algorithm.sac.hidden=[" in wider
    assert not (tmp_path / "no").exists()


def test_rma_takes_no_synthetic_rows(train: Train, tmp_path: Path) -> None:
    rma = ("algorithm=rma", "algorithm.adaptation_updates=1", f"dataset.synthetic={tmp_path / 'synthetic.npz'}")
    assert "algorithm=rma learns from stretches of a log" in refusal(train("run", *rma))
    assert not (tmp_path / "run").exists()


def test_a_prior_of_another_size_is_refused(train: Train, tmp_path: Path) -> None:
    small = ["algorithm.prior.updates=5", "algorithm.prior.batch_size=16", "evaluation_episodes=0"]
    assert train("base", "algorithm=mabe", "algorithm.prior.hidden=[8,8]", *small).code == 0
    onwards = ["algorithm=augwm-mabe", f"world_model={tmp_path / 'base'}", f"start_from={tmp_path / 'base'}", *small]
    assert "give algorithm.prior.hidden=[8, 8]" in refusal(train("no", *onwards))
    assert not (tmp_path / "no").exists()
