"""SAC in the simulator: what it stores, that it learns, resumes to the bit, and what its runs leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import onnxruntime
import pytest
import torch

from deploy.bundle import Bundle
from offline_train.algorithms.sac import SacConfig
from offline_train.algorithms.sac_online import OnlineSac, OnlineSacConfig
from offline_train.checkpoint import load_checkpoint, save_checkpoint, state_equal
from offline_train.evaluate import simulator_return
from offline_train.export import Run
from offline_train.metrics import read_metrics
from offline_train.replay import Batch
from sim.environments import Environment, EnvironmentConfig, make_environment

POINT = """
<mujoco>
  <option timestep="0.02" gravity="0 0 0"/>
  <worldbody>
    <body><joint name="x" type="slide" axis="1 0 0" damping="2"/><geom size="0.1" mass="1"/></body>
  </worldbody>
  <actuator><motor name="x" joint="x" gear="6" ctrllimited="true" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


class Point(Environment):
    """A point on a line that a force pushes; the reward is minus its distance from 0."""

    task_id, reads_sensors = "point", False

    def initial_states(self, generator: np.random.Generator, n: int) -> np.ndarray:
        return np.stack([np.zeros(n), generator.uniform(-1, 1, n), np.zeros(n)], 1)

    def observe(self, states: np.ndarray, sensors: np.ndarray | None = None) -> np.ndarray:
        return states[:, 1:].copy()

    def reward(self, states: Any, actions: Any, next_states: np.ndarray, next_sensors: Any = None) -> np.ndarray:
        return -np.abs(next_states[:, 1])


def point() -> Point:
    """The task at 10 Hz."""
    spec = mujoco.MjSpec.from_string(POINT)
    config = EnvironmentConfig(name="point", termination="never", yardstick_return=None, behaviour=None)
    return Point(config, 5, 0.1, ("x", "v"), ("x",), np.array([-1.0]), np.array([1.0]), spec, spec.compile())


def make(environment: Environment, seed: int = 0, **settings: Any) -> OnlineSac:
    """The algorithm, small."""
    small: dict[str, Any] = {
        "updates": 40,
        "steps_per_epoch": 20,
        "batch_size": 32,
        "random_steps": 40,
        "robots": 4,
        "steps_per_update": 1,
        "sac": SacConfig(hidden=[16, 16], learning_rate=3e-3, target_entropy=None),
    }
    return OnlineSac(OnlineSacConfig(**small | settings), environment, seed)


def stored(algorithm: OnlineSac) -> Batch:
    """What the replay holds, in the order of making: each field `(steps, robots, ...)`."""
    batch = Batch.unpack(algorithm.replay.rows[: algorithm.steps], algorithm.replay.obs_dim, algorithm.replay.act_dim)
    return Batch(*(field.unflatten(0, (-1, algorithm.config.robots)) for field in batch))


def finish(algorithm: OnlineSac) -> OnlineSac:
    while not algorithm.finished:
        algorithm.train_epoch()
    return algorithm


def test_learns_to_stay_at_the_origin() -> None:
    # Starts are |x| = 0.5 away on average; at 3 m/s the way there is worth at most -0.5 x 3 steps / 2, so the best
    # return of 40 steps is about -1. A point that does not move gets -0.5 x 40 = -20.
    sac = SacConfig(hidden=[32, 32], learning_rate=3e-3, discount=0.9, target_entropy=None, average_rate=0.02)
    environment = point()
    algorithm = make(
        environment, updates=1_200, steps_per_epoch=400, batch_size=64, random_steps=400, episode_steps=40, sac=sac
    )
    finish(algorithm)
    assert simulator_return(algorithm.act_nominal, environment, 20, seed=1, steps=40) > -4.0


@pytest.mark.parametrize("steps_per_update", [1, 2, 4])
def test_control_steps_for_each_update_after_the_random_ones(steps_per_update: int) -> None:
    algorithm = make(point(), steps_per_update=steps_per_update)
    for updates in (20, 40):
        algorithm.train_epoch()
        assert (algorithm.updates, algorithm.steps) == (updates, 40 + steps_per_update * updates)
    assert algorithm.finished


def test_last_epoch_is_cut_to_the_budget() -> None:
    assert finish(make(point(), updates=25)).updates == 25


def test_falls_are_terminal_and_start_anew() -> None:
    batch = stored(finish(make(make_environment("hopper"), random_steps=400)))
    follows = (batch.obs[1:] == batch.next_obs[:-1]).all(-1)
    assert batch.terminal.sum() > 5
    # An episode goes on exactly where it has not ended; a start stands 1.25 m high with noise of 0.005.
    assert torch.equal(follows, batch.terminal[:-1] == 0)
    assert (batch.obs[1:][~follows][:, 0] - 1.25).abs().max() < 0.006


def test_timeouts_start_anew_and_are_not_terminal() -> None:
    algorithm = finish(make(point(), episode_steps=7))
    batch = stored(algorithm)
    follows = (batch.obs[1:] == batch.next_obs[:-1]).all(-1)
    ends = torch.arange(1, len(batch.obs)) % 7 == 0
    assert torch.equal(follows, ~ends[:, None].expand_as(follows))
    assert not batch.terminal.any()


def test_exploration_return_is_that_of_the_episodes_that_ended() -> None:
    algorithm = make(point(), episode_steps=12, steps_per_epoch=8, updates=8, random_steps=40)
    figures = algorithm.train_epoch()
    # 10 random steps and 2 more make 12 for each robot: all four episodes end in the epoch's last step.
    assert figures["exploration_return"] == pytest.approx(float(stored(algorithm).reward.sum(0).mean()), rel=1e-6)


def test_commands_fill_the_range_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make(make_environment("quadruped-walk"), random_steps=8, updates=4)
    sent, step = [], algorithm.plant.step
    monkeypatch.setattr(algorithm.plant, "step", lambda command: sent.append(command) or step(command))
    algorithm.train_epoch()
    actions = stored(algorithm).action.numpy()
    np.testing.assert_allclose(np.stack(sent), algorithm.environment.commands(actions), rtol=1e-6)
    assert np.abs(actions).max() <= 1.0


def test_same_seed_same_bits_and_another_seed_others() -> None:
    first, again, other = (finish(make(make_environment("hopper"), seed)).state_dict() for seed in (3, 3, 4))
    assert state_equal(first, again)
    assert not state_equal(first["sac"], other["sac"])


@pytest.mark.parametrize("name", ["hopper", "quadruped-walk"])
def test_resumes_in_the_middle_to_the_bit(name: str, tmp_path: Path) -> None:
    environment = make_environment(name)
    whole = finish(make(environment, episode_steps=9))
    first = make(environment, episode_steps=9)
    first.train_epoch()
    save_checkpoint(tmp_path / "part.safetensors", first.state_dict())
    second = make(environment, seed=8, episode_steps=9)
    second.load_state_dict(load_checkpoint(tmp_path / "part.safetensors"))
    assert state_equal(finish(second).state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("setting", "value"), [("updates", 0), ("robots", 0), ("random_steps", 0), ("horizon", 5), ("steps_per_update", 3)]
)
def test_settings_out_of_range_are_refused(setting: str, value: int) -> None:
    with pytest.raises(ValueError, match=setting):
        make(point(), **{setting: value})


CommandLine = Callable[..., Any]
SMALL = (
    "algorithm=sac",
    "algorithm.updates=40",
    "algorithm.steps_per_epoch=10",
    "algorithm.random_steps=20",
    "algorithm.steps_per_update=1",
    "algorithm.snapshot_every=4",
    "algorithm.batch_size=16",
    "algorithm.sac.hidden=[8,8]",
    "checkpoint_every=1",
    "evaluate_every=2",
    "evaluation_episodes=1",
)


@pytest.fixture
def train(command_line: CommandLine, tmp_path: Path) -> CommandLine:
    """Run `surefoot train algorithm=sac`, small, into a folder under the test's own."""

    def run(folder: str, *arguments: str) -> Any:
        online = ("dataset=online", "dataset.env=hopper")
        return command_line("train", *SMALL, *online, f"output={tmp_path / folder}", *arguments)

    return run


def test_train_export_and_load(command_line: CommandLine, train: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train("run", "seed=3").code == 0
    record = json.loads((folder / "run.json").read_text())
    assert record["dataset"] == {"sha256": "", "env": "hopper", "rows": 0}
    assert record["config"]["robot"]["name"] == "hopper" and record["config"]["seed"] == 3
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert ["return" in line for line in lines] == [False, True, False, True]
    assert not [*folder.glob("*.part.*")]

    done = command_line("export", f"run={folder}")
    assert done.code == 0, done
    bundle = Bundle.load(folder / "sac.bundle")
    assert (bundle.manifest.env, bundle.manifest.context) == ("hopper", None)
    assert bundle.act(np.zeros((5, 11))).shape == (5, 3)
    assert "trained in a simulator" in command_line("inspect", folder / "sac.bundle").out

    # 20 random steps and four epochs of 10: the one snapshot is the policy at the end.
    assert [path.name for path in (folder / "behaviour").iterdir()] == ["hopper-sac-60.onnx"]
    graph = (folder / "behaviour" / "hopper-sac-60.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in graph
    final = Run(folder).sac
    found = onnxruntime.InferenceSession(graph).run(["mean", "log_std"], {"obs": np.ones((3, 11), np.float32)})
    with torch.no_grad():
        expected = final.average_actor.distribution(torch.ones(3, 11))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_interrupted_run_resumes_to_the_bit(
    train: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("whole").code == 0
    original, calls = OnlineSac.train_epoch, iter(range(1, 100))

    def interrupted(self: OnlineSac) -> dict[str, float]:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineSac, "train_epoch", interrupted)
        assert train("parts").code == 130
    assert train("parts", "resume=true").code == 0
    for name in ("policy.safetensors", "snapshots/60.safetensors"):
        assert state_equal(load_checkpoint(tmp_path / "whole" / name), load_checkpoint(tmp_path / "parts" / name)), name
    assert read_metrics(tmp_path / "whole" / "metrics.jsonl") == read_metrics(tmp_path / "parts" / "metrics.jsonl")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dataset=halfcheetah-mixed"], "algorithm=sac learns in the simulator and reads no log; add dataset=online"),
        (["dataset=online"], "dataset.env"),
        (["dataset=online", "dataset.env=centipede"], "there is no environment 'centipede'"),
        (["dataset=online", "dataset.env=hopper", "robot=ant"], "the robot 'ant' has 27"),
        (["dataset=online", "dataset.env=hopper", "world_model=x"], "leave world_model out"),
        (["dataset=online", "dataset.env=hopper", "algorithm=mopo"], "algorithm=mopo learns from a log"),
    ],
)
def test_source_that_does_not_fit_is_refused(
    command_line: CommandLine, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = command_line("train", "algorithm=sac", *arguments, f"output={tmp_path / 'run'}")
    assert done.code == 2 and done.err.count("\n") == 1
    assert sentence in done.err, done.err
    assert not (tmp_path / "run").exists()
