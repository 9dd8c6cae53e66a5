"""A controller at its rate, in processes of their own: what is counted, and what is left out of the count."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from adapters.errors import UserError
from deploy.bundle import Bundle
from sim.endurance import Endurance, at_rate, endurance_table, endure, resident
from sim.fault_plant import write_leg
from sim.rate_loop import NoisyRobot

MakeBundle = Callable[..., Path]


def test_bundle_is_the_same_but_for_its_rate(make_bundle: MakeBundle, tmp_path: Path) -> None:
    original = Bundle.load(make_bundle())
    made = at_rate(original, tmp_path / "fast.bundle", 125.0)
    assert made.manifest.robot.control_dt == 0.008
    same = original.manifest.robot.model_copy(update={"control_dt": 0.008})
    assert made.manifest.robot == same
    obs, context = np.ones(17), np.full(17, 1.1)
    np.testing.assert_array_equal(made.act(obs, context), original.act(obs, context))


def test_controller_keeps_its_rate_in_a_process(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = at_rate(Bundle.load(make_bundle()), tmp_path / "slow.bundle", 50.0)
    moves: list[int] = []
    result = endure(bundle, 1.6, tmp_path / "logs", move=moves.append)
    assert (result.place, result.steps) == ("fixed-rate loop", 80)
    assert 0 <= result.overruns <= result.steps
    assert 0 < result.step["p50"] <= result.step["p99"] <= result.step["max"]
    assert set(moves) <= {50} and moves == sorted(moves)
    # What it needs it has after a second; a Python with numpy and onnxruntime has 20 to 300 MB.
    assert 20e6 < result.memory_start < 300e6
    assert abs(result.memory_end - result.memory_start) < 20e6


def test_policy_node_keeps_its_rate(tmp_path: Path) -> None:
    pytest.importorskip("rclpy")
    write_leg(tmp_path / "leg.bundle", hz=50.0)
    result = endure(Bundle.load(tmp_path / "leg.bundle"), 1.6, tmp_path / "logs", through_ros2=True)
    assert result.place == "policy node"
    assert result.steps + result.missed == 80
    # Even a busy machine answers more than a few.
    assert result.steps > 15
    assert 0 < result.step["p50"] <= result.step["max"] < 5.0
    assert 0 <= result.lateness["p50"] <= result.lateness["max"]
    assert 20e6 < result.memory_start < 300e6


def test_process_that_fails_says_so(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = Bundle.load(make_bundle())
    (bundle.path / "policy.onnx").unlink()
    with pytest.raises(UserError, match=r"the loop process ended with exit code 1 .*policy.onnx is missing"):
        endure(bundle, 1.0, tmp_path / "logs")


def test_noisy_robot_is_always_fresh_and_within_limits(make_bundle: MakeBundle) -> None:
    robot = Bundle.load(make_bundle()).manifest.robot
    noisy = NoisyRobot(robot)
    seen = [noisy.observe() for _ in range(3)]
    assert [observation.time for observation in seen] == pytest.approx([0.05, 0.1, 0.15])
    assert all(observation.fresh and observation.values.shape == (17,) for observation in seen)
    assert not np.array_equal(seen[0].values, seen[1].values)
    assert max(np.abs(observation.values).max() for observation in seen) < 1.0


def test_resident_memory_is_that_of_a_process() -> None:
    before = resident(os.getpid())
    ballast = mmap.mmap(-1, 64_000_000)  # fresh pages, whatever the allocator has left from other tests
    for page in range(0, len(ballast), mmap.PAGESIZE):
        ballast[page] = 1
    assert 50e6 < resident(os.getpid()) - before < 80e6
    del ballast


def test_table() -> None:
    times = {"p50": 0.0001, "p99": 0.002, "max": 0.0125}
    row = Endurance("policy node", 120_000, 3, 4, times, times, 140_000_000, 141_500_000)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(endurance_table({"hz": 200.0, "minutes": 10.0, "rows": [asdict(row)]}))
    text = console.export_text()
    assert "200 Hz for 10 min" in text and "120,000" in text
    assert "0.10 / 2.00 / 12.50" in text and "140.0 -> 141.5" in text
