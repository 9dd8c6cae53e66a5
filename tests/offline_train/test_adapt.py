"""`surefoot adapt` on the toy robot: what it corrects, when it keeps the old policy, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_train import refusal, stop_at
from torch import Tensor
from toy import NOISE, ROBOT, state_equal, toy_batch, toy_step

from adapters.datasets import Metadata, TransitionDataset, save_npz
from deploy.bundle import Bundle
from offline_train import adapt, export, finished_run, train
from offline_train.adapt import describe, in_segments, inferred_context, judge, make_nominal, told_verdict
from offline_train.algorithms.augwm_actuators import ActuatorAugWmConfig
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.sac import Sac, SacConfig, anchor_loss
from offline_train.checkpoint import load_checkpoint
from offline_train.evaluate import Imagined, imagine
from offline_train.finished_run import Run
from offline_train.models.fit import EnsembleTrainer
from offline_train.settings import TrainConfig
from sim.terminations import never

CommandLine = Callable[..., Any]
Act = Callable[[Tensor], Tensor]

# The changed robot stands on a slope: every step it slips so far along x.
SLIP = torch.tensor([0.15, 0.0])
ENVIRONMENT = SimpleNamespace(name="point", config=SimpleNamespace(termination="never"))


def record(act: Act, slip: Tensor, path: Path, *, episodes: int, steps: int, seed: int) -> Path:
    """A log of the toy robot, its episodes one after another."""
    generator = torch.Generator().manual_seed(seed)
    obs, rows = 2.0 * torch.rand(episodes, 2, generator=generator) - 1.0, []
    for _ in range(steps):
        action = act(obs)
        after, reward = toy_step(obs, action)
        after = after + slip + NOISE * torch.randn(after.shape, generator=generator)
        rows.append((obs, action, reward, after))
        obs = after
    columns = [torch.stack(column, 1).flatten(0, 1).numpy() for column in zip(*rows, strict=True)]
    arrays = dict(zip(("observations", "actions", "rewards", "next_observations"), columns, strict=True))
    arrays |= {
        "terminals": np.zeros(episodes * steps, bool),
        "timeouts": np.arange(episodes * steps) % steps == steps - 1,
    }
    save_npz(TransitionDataset.from_arrays(arrays, Metadata(env="point", control_dt=0.05), "the log"), path)
    return path


def true_return(act: Act, slip: Tensor) -> float:
    """Mean reward a step over 50 steps from 100 starts, without noise."""
    obs, total = 2.0 * torch.rand(100, 2, generator=torch.Generator().manual_seed(5)) - 1.0, 0.0
    for _ in range(50):
        after, reward = toy_step(obs, act(obs))
        obs, total = after + slip, total + float(reward.mean())
    return total / 50


class Place(NamedTuple):
    """A finished run on the original robot, and a log of its policy on the changed one."""

    run: Path
    log: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("adapt")
    generator = torch.Generator().manual_seed(3)

    def wander(obs: Tensor) -> Tensor:
        return (-obs + 2.0 * torch.rand(obs.shape, generator=generator) - 1.0).clamp(-1, 1)

    log = record(wander, torch.zeros(2), folder / "original.npz", episodes=40, steps=50, seed=1)
    small = {"hidden": [32, 32], "discount": 0.9, "learning_rate": 3e-3, "target_rate": 0.02, "average_rate": 0.002}
    config = TrainConfig.model_validate(
        {
            "algorithm": {
                "name": "mopo",
                "updates": 750,
                "rollout_starts": 500,
                "steps_per_epoch": 250,
                "batch_size": 128,
                "sac": small,
            },
            "dataset": {"name": "original", "path": str(log)},
            "robot": ROBOT,
            "output": folder / "run",
            "seed": 0,
            "world_model": None,
            "ensemble": {"members": 4, "elites": 4, "hidden": [32, 32], "learning_rate": 3e-3, "max_steps": 600},
            "checkpoint_every": 100,
            "evaluate_every": 100,
            "evaluation_episodes": 0,
            "threads": 1,
            "device": "cpu",
            "resume": False,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (adapt, export, finished_run, train):
            patch.setattr(module, "make_environment", lambda name: ENVIRONMENT)
        train.run(config)
        policy = Run(folder / "run").sac
        yield Place(folder / "run", record(policy.explore, SLIP, folder / "changed.npz", episodes=4, steps=400, seed=2))


@pytest.fixture
def adapted(command_line: CommandLine, place: Place, tmp_path: Path) -> Callable[..., Any]:
    """Run `surefoot adapt` on the toy, into a folder under the test's own."""

    def run(folder: str, *arguments: str) -> Any:
        given = {"run": place.run, "log": place.log, "output": tmp_path / folder}
        small = ("model_steps=300", "updates=500", "anchor=0.01")
        return command_line("adapt", *(f"{key}={value}" for key, value in given.items()), *small, *arguments)

    return run


def test_adapted_policy_is_better_on_the_changed_robot(
    adapted: Callable[..., Any], command_line: CommandLine, place: Place, tmp_path: Path
) -> None:
    done = adapted("new")
    assert done.code == 0, done
    folder = tmp_path / "new"
    report = json.loads((folder / "adapt.json").read_text())
    errors = report["one_step_error"]
    assert errors["after"]["log"] < 0.5 * errors["before"]["log"]
    assert errors["after"]["original"] > errors["before"]["original"]
    assert report["policy"] == "new" and report["verdict"]["least"] > 0 and "the new policy is taken" in done.out

    old, new = Run(place.run).sac, Run(folder).sac
    with torch.no_grad():
        before, after, best = (
            true_return(act, SLIP) for act in (old, new, lambda obs: (-(obs + SLIP) / 0.3).clamp(-1, 1))
        )
    # The best a policy can do: walk to the origin and lean against the slope.
    assert before < best - 0.1
    assert after > before + 0.5 * (best - before)

    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["adaptation"]["run"] == str(place.run)
    assert record["config"]["adaptation"]["log_sha256"] == report["log"]["sha256"]
    bundle = Bundle.load(folder / "mopo.bundle")
    obs = np.array([[0.2, -0.1]], np.float32)
    np.testing.assert_allclose(bundle.act(obs), new(torch.from_numpy(obs)).detach().numpy(), atol=1e-5)
    done = command_line("export", f"run={folder}", f"output={tmp_path / 'again.bundle'}")
    assert done.code == 0, done


def test_old_policy_is_kept_where_the_new_one_is_worse(
    adapted: Callable[..., Any], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = adapt.train_policy

    def spoil(config: Any, settings: Any, algorithm: Mopo, *rest: Any, **more: Any) -> None:
        learn(config, settings, algorithm, *rest, **more)
        state = load_checkpoint(config.output / "fine_tuned.safetensors")
        last = max(name for name in state if name.startswith("average_actor") and name.endswith("weight"))
        state[last] = -state[last]
        adapt.save_checkpoint(config.output / "fine_tuned.safetensors", state)

    monkeypatch.setattr(adapt, "train_policy", spoil)
    done = adapted("kept", "updates=10")
    assert done.code == 0, done
    report = json.loads((tmp_path / "kept" / "adapt.json").read_text())
    assert report["policy"] == "old" and "the old policy is kept: the new policy" in done.out
    policies = [load_checkpoint(folder / "policy.safetensors") for folder in (place.run, tmp_path / "kept")]
    assert state_equal(*policies)
    errors = report["one_step_error"]
    assert errors["after"]["log"] < 0.5 * errors["before"]["log"]
    assert (tmp_path / "kept" / "mopo.bundle").is_dir()


def test_interrupted_adaptation_resumes_to_the_bit(
    adapted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(adapt, "export", lambda *_: 0.0)
    assert adapted("whole", "updates=260").code == 0
    interruptions: list[tuple[type, str, int]] = [(EnsembleTrainer, "end_epoch", 3), (Mopo, "train_epoch", 2)]
    for kind, method, call in interruptions:
        with monkeypatch.context() as patch:
            stop_at(patch, kind, method, call)
            assert adapted("parts", "updates=260", "resume=true").code == 130
        assert not (tmp_path / "parts" / "policy.safetensors").exists()
    assert adapted("parts", "updates=260", "resume=true").code == 0
    for name in ("world_model", "fine_tuned", "policy"):
        files = [tmp_path / folder / f"{name}.safetensors" for folder in ("whole", "parts")]
        assert state_equal(*map(load_checkpoint, files)), name
    reports = [json.loads((tmp_path / folder / "adapt.json").read_text()) for folder in ("whole", "parts")]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]
    assert "holds a run already" in refusal(adapted("whole"))
    assert "adaptation" in refusal(adapted("whole", "updates=260", "resume=true", "anchor=0.2"))


def imagined(penalised: list[list[float]], uncertainty: float) -> Imagined:
    """Rollouts from three starts in the world of each elite."""
    values = torch.tensor(penalised)
    return Imagined(values, values, torch.full_like(values, uncertainty))


@pytest.mark.parametrize(
    ("new", "uncertainty", "accepted", "least", "reason"),
    [
        # Differences 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.303, so the interval begins at 2 - 4.303 / sqrt(3).
        ([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], 1.0, False, -0.484, "not clearly better"),
        # Differences 1.9, 2, 2.1: it begins at 2 - 0.248.
        ([[1.9, 2.0, 2.1], [5.0, 5.0, 5.0]], 1.0, True, 1.752, "keeps to the log"),
        ([[1.9, 2.0, 2.1], [5.0, 5.0, 5.0]], 1.6, False, 1.752, "says little"),
        ([[9.0, 9.0, 9.0], [-0.1, -0.1, -0.1]], 1.0, False, -0.1, "not clearly better"),
    ],
)
def test_judgement(new: list[list[float]], uncertainty: float, accepted: bool, least: float, reason: str) -> None:
    verdict = judge(imagined([[0.0] * 3] * 2, 1.0), imagined(new, uncertainty), usual=1.0)
    assert verdict.accepted == accepted and reason in verdict.reason
    assert verdict.gain == pytest.approx(np.mean(new))
    assert verdict.least == pytest.approx(least, abs=1e-3)


def test_rollouts_that_are_not_finite_keep_the_old_policy_and_can_be_told() -> None:
    verdict = judge(imagined([[0.0] * 3] * 2, 1.0), imagined([[math.nan, 1.0, 2.0]] * 2, 1.0), usual=1.0)
    assert not verdict.accepted and "not finite" in verdict.reason
    report = {
        "one_step_error": {stage: {"log": 0.1, "original": 0.2} for stage in ("before", "after")},
        "reward_per_step": {"before": 1.0, "after": None},
        "policy": "old",
        "verdict": told_verdict(verdict),
        "seconds": {},
    }
    assert json.loads(json.dumps(report, allow_nan=False))["verdict"]["gain"] is None
    assert "1.00 old, not finite new" in describe(report, Path("run"))


class ThreeWorlds:
    """Nothing moves, and member m promises the reward m + the sum of the observation, without noise."""

    elite_index, target_std = torch.tensor([2, 0]), torch.ones(3)

    def predict(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        world = torch.arange(3.0)[:, None].expand(-1, len(obs))
        # Robots of world i drift by i to the one side and as far to the other, which leaves the reward as it is.
        mean = torch.stack([world, -world, world + obs.sum(-1)], -1)
        return mean, torch.zeros_like(mean)


def test_imagined_rewards_are_those_of_each_world() -> None:
    starts = torch.tensor([[0.4, 0.0], [0.0, -0.2]])

    def rolled(terminated: Callable[[Tensor], Tensor]) -> Imagined:
        model: Any = ThreeWorlds()
        return imagine(
            model,
            lambda obs: torch.zeros_like(obs),
            starts,
            steps=5,
            seed=0,
            penalty="ensemble_std",
            penalty_weight=0.5,
            terminated=terminated,
        )

    expected = np.array([[2.4, 1.8], [0.4, -0.2]])
    found = rolled(never)
    np.testing.assert_allclose(found.reward, expected, rtol=1e-5)
    # Drifts of 0, 1 and 2 have the variance 2/3 in both dimensions of the state: u = sqrt(2/3) = 0.81650.
    np.testing.assert_allclose(found.penalised, expected - 0.5 * 0.81650, atol=1e-4)
    # The sample standard deviation of drifts and rewards is 1.
    np.testing.assert_allclose(found.disagreement, np.ones((2, 2)), rtol=1e-5)
    # A robot that falls at once earns what its first step does: a fifth of the mean over five steps.
    fallen = rolled(lambda obs: torch.ones(len(obs), dtype=torch.bool))
    np.testing.assert_allclose(fallen.reward, expected / 5, rtol=1e-5)
    np.testing.assert_allclose(fallen.disagreement, found.disagreement, rtol=1e-5)


def test_segments_end_where_episodes_do() -> None:
    rows = np.zeros((7, 1), np.float32)
    ends = {"terminals": np.array([0, 0, 0, 1, 0, 0, 0], bool), "timeouts": np.array([0, 0, 0, 0, 0, 0, 1], bool)}
    arrays = {"observations": rows, "actions": rows, "rewards": rows[:, 0], "next_observations": rows, **ends}
    log = in_segments(TransitionDataset.from_arrays(arrays, Metadata(env="e", control_dt=1.0), "the log"), 2)
    # Episodes of 4 and 3 steps, the first one with a terminal: cut after 2, terminal, cut after 2, end.
    assert [(s.start, s.stop) for s in log.episode_slices()] == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert log.terminals.tolist() == ends["terminals"].tolist() and not (log.terminals & log.timeouts).any()


def test_nominal_context_becomes_what_was_told() -> None:
    sac = Sac(torch.zeros(4), torch.tensor([1.0, 1.0, 0.3, 0.4]), 2, SacConfig(hidden=[8]), torch.Generator())
    obs, told, nominal = torch.randn(5, 2), torch.tensor([0.5, 0.0]), torch.tensor([1.1, 1.0])
    further = torch.tensor([0.8, 1.2])
    with torch.no_grad():
        expected = [sac(torch.cat([obs, c.expand(5, 2)], -1)) for c in (told, further * told)]
        make_nominal(sac, told, nominal)
        found = [sac(torch.cat([obs, c.expand(5, 2)], -1)) for c in (nominal, further * nominal)]
    # A motor that gives nothing counts as one that gives a thousandth.
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=0)


def test_nominal_push_becomes_what_was_told() -> None:
    # The policy that was told a push of 0.3 and a gain of 0.5 is the one that is now told 0 and 1.
    sac = Sac(torch.zeros(4), torch.tensor([1.0, 1.0, 0.3, 0.4]), 2, SacConfig(hidden=[8]), torch.Generator())
    obs, told, nominal = torch.randn(5, 2), torch.tensor([0.3, 0.5]), torch.tensor([0.0, 1.0])
    with torch.no_grad():
        expected = [sac(torch.cat([obs, torch.tensor(c).expand(5, 2)], -1)) for c in ((0.3, 0.5), (0.2, 0.6))]
        make_nominal(sac, told, nominal, pushed=1)
        found = [sac(torch.cat([obs, torch.tensor(c).expand(5, 2)], -1)) for c in ((0.0, 1.0), (-0.1, 1.2))]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_context_is_what_the_old_bundle_would_infer(place: Place) -> None:
    base, gains = Run(place.run), torch.tensor([1.0, 0.5])
    batch = toy_batch(1_000, seed=4)
    after = toy_step(batch.obs, gains * batch.action)[0]
    arrays = {"observations": batch.obs, "actions": batch.action, "rewards": batch.reward, "next_observations": after}
    ends = {"terminals": np.zeros(1_000, bool), "timeouts": np.ones(1_000, bool)}
    metadata = Metadata(env="point", control_dt=0.05)
    log = TransitionDataset.from_arrays({k: v.numpy() for k, v in arrays.items()} | ends, metadata, "the log")
    assert base.model is not None
    told = inferred_context(base, base.model, ActuatorAugWmConfig(), log)
    assert told is not None
    np.testing.assert_allclose(told, gains, atol=0.1)
    assert inferred_context(base, base.model, MopoConfig(), log) is None


def test_anchor_loss() -> None:
    # Mean |Q| = (2 + 4) / 2 = 3; |a - a0|^2 = 0.25 + 0 and 0 + 1, mean 0.625; 0.1 x 3 x 0.625 = 0.1875.
    action, held = torch.tensor([[0.5, 0.0], [0.0, 1.0]]), torch.zeros(2, 2)
    assert float(anchor_loss(action, held, torch.tensor([[2.0, -4.0]]), 0.1)) == pytest.approx(0.1875)


def test_anchor_holds_a_policy_where_it_was() -> None:
    batch = toy_batch(64, seed=1)
    moved = []
    for weight in (0.0, 1e3):
        sac = Sac(torch.zeros(2), torch.ones(2), 2, SacConfig(hidden=[8]), torch.Generator().manual_seed(0))
        before = sac(batch.obs)
        sac.train_on({name: value.clone() for name, value in sac.state_dict().items()}, weight)
        assert torch.equal(sac(batch.obs), before) and "anchor" not in " ".join(sac.state_dict())
        for _ in range(100):
            sac.update(batch)
        moved.append(float((sac(batch.obs) - before).abs().mean()))
    assert moved[1] < 0.2 * moved[0]


def altered(place: Place, path: Path, **changes: Any) -> Path:
    """The log of the changed robot with other rows or metadata."""
    with np.load(place.log) as stored:
        arrays = dict(stored)
    metadata = json.loads(str(arrays.pop("metadata"))) | {"sha256": ""} | changes.pop("metadata", {})
    np.savez(path, metadata=np.array(json.dumps(metadata)), **(arrays | changes))
    return path


def test_log_that_will_not_do_is_refused(adapted: Callable[..., Any], place: Place, tmp_path: Path) -> None:
    with np.load(place.log) as stored:
        rows = {name: stored[name] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
        last = stored["final_observations"]
    short = {name: values[:400] for name, values in rows.items()}
    wide = {name: np.repeat(rows[name], 2, axis=1) for name in ("observations",)}
    cases = {
        "0.02": {"metadata": {"control_dt": 0.02}},
        "point": {"metadata": {"env": "walker2d"}},
        "4 observation dimensions": wide
        | {"final_observations": np.repeat(last, 2, axis=1), "metadata": {"observation_names": list("abcd")}},
        "400 steps, 20 s": short | {"final_observations": last[:1]},
        "no rewards": {"rewards": np.zeros_like(rows["rewards"])},
    }
    for sentence, changes in cases.items():
        log = altered(place, tmp_path / "bad.npz", **changes)
        assert sentence in refusal(adapted("out", f"log={log}"))
    assert "nowhere.npz" in refusal(adapted("out", "log=/nowhere.npz"))
    assert not (tmp_path / "out").exists()


def test_run_that_will_not_do_is_refused(adapted: Callable[..., Any], place: Place, tmp_path: Path) -> None:
    def copied(name: str, **changes: Any) -> Path:
        shutil.copytree(place.run, tmp_path / name)
        record = json.loads((tmp_path / name / "run.json").read_text())
        for key, value in changes.items():
            record["config"][key] = value
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        return tmp_path / name

    unfinished = copied("unfinished")
    (unfinished / "policy.safetensors").unlink()
    gone = copied("gone", dataset={"name": "gone", "path": str(tmp_path / "gone.npz")})
    online = copied("online", algorithm={"name": "sac"})
    for run, sentence in (
        (unfinished, "no finished run"),
        (gone, "gone.npz"),
        (online, "algorithm=sac"),
        (tmp_path / "nowhere", "nowhere"),
    ):
        assert sentence in refusal(adapted("out", f"run={run}"))
    assert not (tmp_path / "out").exists()
