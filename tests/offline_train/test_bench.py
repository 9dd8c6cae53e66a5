"""`surefoot bench`: how figures are taken, and that every case of the table does its work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offline_train import bench, bench_cases, bench_diffusion
from offline_train import bench_reference as plain
from offline_train.bench_cases import SPEED_CASES, Case, Peer, packed, repeated, transitions
from offline_train.bench_diffusion import DIFFUSION_CASES
from offline_train.replay import Batch

CommandLine = Callable[..., Any]


class Clock:
    """A clock that only work moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter_ns", lambda: round(self.now * 1e9))

    def work(self, *seconds: float) -> Callable[[float], int]:
        """Ten units of work that take the next of these times, over and over."""
        turns = iter(seconds * 100)

        def work(share: float) -> int:
            self.now += next(turns)
            return 10

        return work


def test_speed_is_the_best_repeat_and_the_median_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ours: 10 units in 9 s (warm-up), then 2, 4 and 5 s: 5, 2.5 and 2 a second. Plain: 10, 5 and 8 s: 1, 2 and 1.25.
    clock = Clock(monkeypatch)
    case = Case("work", "steps", clock.work(9, 2, 4, 5), clock.work(9, 10, 5, 8), repeats=3, peer=Peer("them", 3))
    row = bench.measure(case)
    assert row["unit"] == "steps/s"
    assert row["best"] == {"ours": 5.0, "plain": 2.0}
    assert row["median"] == {"ours": 2.5, "plain": 1.25}
    assert row["ratio"] == 2.5
    assert row["peer"] == {"name": "them", "speed": 3}


def test_latency_is_in_microseconds_by_call(monkeypatch: pytest.MonkeyPatch) -> None:
    # Calls of 1, 2 and 3 ms after a warm-up of 9 s: median 2,000 us, 99th percentile 2,000 + 0.98 x 1,000 us.
    clock = Clock(monkeypatch)
    ours, theirs = clock.work(9.0, 0.001, 0.002, 0.003), clock.work(9.0, 0.008, 0.008, 0.008)
    row = bench.measure(Case("call", "steps", ours, theirs, repeats=3, latency=True))
    assert row["unit"] == "us"
    assert row["p50"]["ours"] == pytest.approx(2_000.0) and row["p99"]["ours"] == pytest.approx(2_980.0)
    assert row["ratio"] == pytest.approx(4.0)


def test_repeated_work_does_its_share_and_at_least_one_unit() -> None:
    done: list[int] = []
    work = repeated(lambda: done.append(1), 20)
    assert [work(1.0), work(0.25), work(0.0)] == [20, 5, 1]
    assert len(done) == 26


def test_every_case_runs_and_is_reported(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REAL_ROWS", "MODEL_ROWS", "ROLLOUT_STARTS"):
        monkeypatch.setattr(bench_cases, name, 1_000)
    done = command_line("bench", "effort=0.001", f"json={tmp_path / 'bench.json'}")
    assert done.code == 0, done
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["threads"] == 1 and torch.get_num_threads() == 1
    assert len(report["rows"]) == SPEED_CASES
    names = [row["name"] for row in report["rows"]]
    assert len({*names}) == SPEED_CASES
    assert all(row["ratio"] > 0 for row in report["rows"])
    assert "Speeds on one thread" in done.out and "OfflineRL-Kit" in done.out


def test_every_case_of_diffusion_runs(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_diffusion, "WIDTH", 16)
    done = command_line("bench", "name=diffusion", "effort=0.01", f"json={tmp_path / 'bench.json'}")
    assert done.code == 0, done
    report = json.loads((tmp_path / "bench.json").read_text())
    assert len({row["name"] for row in report["rows"]}) == len(report["rows"]) == DIFFUSION_CASES
    assert "SynthER" in done.out


def test_unknown_benchmark(command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line("bench", "name=sped", f"json={tmp_path / 'bench.json'}")
    assert done.code == 2 and "no benchmark 'sped'; choose one of speed, diffusion, context, faults" in done.err
    assert not [*tmp_path.iterdir()]


def test_rate_is_kept_by_a_bundle_of_full_size(command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line("bench", "name=rate", "hz=25", "minutes=0.02", f"json={tmp_path / 'rate.json'}")
    assert done.code == 0, done
    report = json.loads((tmp_path / "rate.json").read_text())
    # 1.2 s at 25 Hz.
    assert [(row["place"], row["steps"]) for row in report["rows"]] == [("fixed-rate loop", 30)]
    assert "25 Hz for 0.02 min" in done.out


def test_rate_has_no_other_transport_than_ros2(command_line: CommandLine) -> None:
    done = command_line("bench", "name=rate", "transport=lcm")
    assert done.code == 2 and "name=rate has no transport=lcm; give ros2" in done.err


def test_plain_transitions_are_the_packed_ones() -> None:
    fields = transitions(20, np.random.default_rng(0))
    batch = Batch.unpack(packed(fields), bench_cases.OBS_DIM, bench_cases.ACT_DIM)
    for name, values in fields.items():
        assert torch.equal(getattr(batch, name), torch.from_numpy(values))


@pytest.mark.parametrize(
    "make",
    [
        plain.PlainSac,
        plain.PlainTd3Bc,
        lambda obs_dim, act_dim, hidden: plain.PlainEdac(obs_dim, act_dim, hidden, members=3),
    ],
)
def test_plain_learner_learns_the_same_problem(make: Callable[..., Any]) -> None:
    # The reward is minus the squared first action: the plain learner has to do the work that it is timed on.
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    fields = transitions(500, generator)
    fields["reward"] = -4.0 * np.square(fields["action"][:, 0] - 0.5)
    fields["terminal"] = np.ones(500, np.float32)
    learner = make(bench_cases.OBS_DIM, bench_cases.ACT_DIM, [32])
    first = learner.update(plain.sample(fields, 256, generator))["critic"]
    losses = [learner.update(plain.sample(fields, 256, generator))["critic"] for _ in range(150)]
    assert np.mean(losses[-10:]) < 0.9 * first


def test_plain_ensemble_fits_and_its_rollout_has_every_step() -> None:
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    fields = transitions(500, generator)
    inputs = np.concatenate([fields["obs"], fields["action"]], -1)
    targets: np.ndarray = np.repeat(inputs[:, :1], bench_cases.OBS_DIM + 1, 1)
    model = plain.PlainEnsemble(bench_cases.OBS_DIM, bench_cases.ACT_DIM, 5, [16])
    losses = [model.update(inputs, targets, generator.integers(0, 500, (5, 64))) for _ in range(100)]
    assert losses[-1] < losses[0] - 0.5
    actions = np.zeros((30, bench_cases.ACT_DIM), np.float32)
    steps = plain.plain_rollout(model, fields["obs"][:30], lambda obs: actions, 3, generator)
    assert {name: len(values) for name, values in steps.items()} == dict.fromkeys(fields, 90)


@pytest.mark.parametrize("kind", ["linear_forward", "scale", "affine", "shared_scale"])
def test_plain_context_finds_the_scaling(kind: str) -> None:
    generator = np.random.default_rng(0)
    push = generator.standard_normal((2, 3))

    def predict_change(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 0.3 * obs + action @ push, np.ones(3)

    context, found = plain.PlainContext(predict_change, kind, window=50), np.zeros(0)
    for _ in range(60):
        obs, action = generator.standard_normal(3), generator.uniform(-1, 1, 2)
        found = context.update(obs, action, obs + 1.2 * predict_change(obs, action)[0])
    np.testing.assert_allclose(found, np.broadcast_to(1.2, found.shape), atol=1e-6)


def test_scaled_batch_scales_the_change_of_state() -> None:
    fields = transitions(50, np.random.default_rng(0))
    scaled = plain.scaled_batch(fields, np.random.default_rng(1))
    obs, z = np.split(scaled["obs"], 2, axis=-1)
    np.testing.assert_allclose(scaled["next_obs"][:, :17] - obs, z * (fields["next_obs"] - fields["obs"]), atol=1e-5)
    assert z.min() >= 0.5 and z.max() <= 1.5


def test_plain_actor_is_bounded() -> None:
    learner = plain.PlainSac(3, 2, [8])
    action = learner.act(np.ones((5, 3), np.float32))
    assert action.shape == (5, 2) and np.abs(action).max() <= 1.0
    assert isinstance(learner.draw(torch.ones(1, 3))[1], Tensor)
