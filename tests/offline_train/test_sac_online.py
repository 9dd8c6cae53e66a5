"""SAC in the simulator: what it stores, that it learns, resumes to the bit, and what its runs leave."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import onnxruntime
import pytest
import torch
from toy import state_equal

from adapters.files import read_jsonl
from deploy.bundle import Bundle
from offline_train.algorithms.sac import SacConfig
from offline_train.algorithms.sac_online import OnlineSac, OnlineSacConfig
from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.evaluate import simulator_return
from offline_train.finished_run import Run
from offline_train.replay import Batch
from offline_train.train import UNSEEN
from sim.environments import Environment, EnvironmentConfig, make_environment
from sim.online_robots import PlantRobots
from sim.perturb import NOMINAL, Perturbation
from sim.worlds import timeline

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

    def reward(
        self, states: Any, actions: Any, next_states: np.ndarray, next_sensors: Any = None, starts: Any = None
    ) -> np.ndarray:
        return -np.abs(next_states[:, 1])


def point() -> Point:
    """The task at 10 Hz."""
    spec = mujoco.MjSpec.from_string(POINT)
    config = EnvironmentConfig(name="point", termination="never", yardstick_return=None, behaviour=None)
    return Point(config, 5, 0.1, ("x", "v"), ("x",), np.array([-1.0]), np.array([1.0]), spec, spec.compile())


def make(
    environment: Environment,
    seed: int = 0,
    world: Perturbation = NOMINAL,
    start: dict[str, Any] | None = None,
    **settings: Any,
) -> OnlineSac:
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
    config = OnlineSacConfig(**small | settings)
    return OnlineSac(config, PlantRobots(environment, config.robots, seed, world), seed, start=start)


def test_the_replay_holds_all_that_the_robots_do() -> None:
    # 17 robots, 17 updates a step: every epoch of 20 updates takes two steps, of 34 rows, where 20 updates ask for 20.
    algorithm = make(point(), robots=17, updates=200)
    while not algorithm.finished:
        algorithm.train_epoch()
    assert algorithm.replay.size == algorithm.steps == algorithm.control_steps == 17 * 3 + 10 * 34
    assert len(algorithm.log(point(), "a test")) == algorithm.steps


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


def test_replay_as_a_data_set_is_what_each_robot_did() -> None:
    environment = make_environment("hopper")
    algorithm = finish(make(environment, random_steps=400, episode_steps=30))
    batch, data = stored(algorithm), algorithm.log(environment, "a test")
    assert len(data) == algorithm.steps and data.metadata.env == "hopper"
    steps = algorithm.steps // 4
    for robot in range(4):
        rows = slice(robot * steps, (robot + 1) * steps)
        np.testing.assert_array_equal(data.observations[rows], batch.obs[:, robot].numpy())
        np.testing.assert_array_equal(data.rewards[rows], batch.reward[:, robot].numpy())
        np.testing.assert_array_equal(data.terminals[rows], batch.terminal[:, robot].numpy())
        assert data.terminals[rows][-1] or data.timeouts[rows][-1]
    # Every episode starts 1.25 m high with noise of 0.005, and none is longer than 30 steps.
    starts = [rows.start for rows in data.episode_slices()]
    assert np.abs(data.observations[starts, 0] - 1.25).max() < 0.006
    assert max(rows.stop - rows.start for rows in data.episode_slices()) == 30
    assert not (data.terminals & data.timeouts).any() and data.timeouts.any() and data.terminals.any()


def test_replay_holds_commands_in_the_robots_units() -> None:
    environment = make_environment("quadruped-walk")
    algorithm = finish(make(environment))
    batch, data = stored(algorithm), algorithm.log(environment, "a test")
    # The third actuator goes from -0.8 to 0.8, the second from -1 to 1.1.
    np.testing.assert_allclose(data.actions[: len(batch.obs), 2], 0.8 * batch.action[:, 0, 2], atol=1e-6)
    np.testing.assert_allclose(data.actions[: len(batch.obs), 1], 0.05 + 1.05 * batch.action[:, 0, 1], atol=1e-6)


def test_resumed_run_remembers_where_episodes_began() -> None:
    algorithm = make(make_environment("halfcheetah-jump"))
    algorithm.train_epoch()
    again = make(make_environment("halfcheetah-jump"), seed=1)
    again.load_state_dict(copy.deepcopy(algorithm.state_dict()))
    algorithm.train_epoch()
    again.train_epoch()
    np.testing.assert_array_equal(stored(algorithm).reward, stored(again).reward)


DEAD = Perturbation(name="dead", actuator_gain={"x": 0.0})
PUSHED = Perturbation(name="pushed", body_mass={"*": 2.0}, external_force={"*": (6.0, 0.0, 0.0)})
LONG = Perturbation(name="long", limb_length={"thigh": 1.25}, body_mass={"*": 1.2})


def test_a_point_without_a_motor_stays_in_every_episode() -> None:
    batch = stored(finish(make(point(), world=DEAD, episode_steps=7)))
    assert batch.action.abs().max() > 0.5
    assert torch.equal(batch.obs, batch.next_obs)
    assert (batch.obs[0] != batch.obs[7]).any(-1).all()


def test_a_wind_blows_in_every_episode() -> None:
    # 6 N push a point of 2 kg, which is slowed by 2 N s/m, towards 3 m/s: after seven steps of 0.1 s, on average over
    # motors that push as much one way as the other, at 3 (1 - exp(-0.7)) = 1.51 m/s.
    batch = stored(finish(make(point(), world=PUSHED, episode_steps=7, robots=50, random_steps=50 * 35, updates=1)))
    speeds = batch.next_obs[6::7, :, 1]
    assert len(speeds) == 5
    np.testing.assert_allclose(speeds.mean(1), 1.51, atol=0.4)


def test_starts_stand_as_high_as_the_longer_leg_asks_for() -> None:
    environment = make_environment("hopper")
    batch = stored(finish(make(environment, world=LONG, random_steps=400)))
    starts = batch.obs[1:][~(batch.obs[1:] == batch.next_obs[:-1]).all(-1)]
    # The thigh of 0.45 m is a quarter longer; a start has noise of 0.005.
    assert len(starts) > 5 and (starts[:, 0] - (1.25 + 0.25 * 0.45)).abs().max() < 0.006


def test_physics_is_that_of_the_changed_world() -> None:
    environment = make_environment("hopper")
    algorithm = make(environment, world=LONG, random_steps=4, updates=1)
    model = timeline(environment, LONG)[0].model
    before = algorithm.robots.plant.states
    algorithm.train_epoch()
    data = mujoco.MjData(model)
    for lane, state in enumerate(before):
        mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        data.ctrl[:] = stored(algorithm).action[0, lane].numpy()
        mujoco.mj_step(model, data, environment.frame_skip)
        seen = np.concatenate([data.qpos[1:], np.clip(data.qvel, -10, 10)])
        np.testing.assert_allclose(stored(algorithm).next_obs[0, lane].numpy(), seen, atol=1e-5)


def test_evaluation_is_in_the_changed_world() -> None:
    starts = point().initial_states(np.random.default_rng(1), 20)[:, 1]
    found = simulator_return(lambda obs: torch.ones(len(obs), 1), point(), 20, seed=1, steps=40, world=DEAD)
    # Whatever the policy asks for, a point without a motor stays where it starts.
    assert found == pytest.approx(-40 * np.abs(starts).mean())


def test_exploration_return_is_that_of_the_episodes_that_ended() -> None:
    algorithm = make(point(), episode_steps=12, steps_per_epoch=8, updates=8, random_steps=40)
    figures = algorithm.train_epoch()
    # 10 random steps and 2 more make 12 for each robot: all four episodes end in the epoch's last step.
    assert figures["exploration_return"] == pytest.approx(float(stored(algorithm).reward.sum(0).mean()), rel=1e-6)


def test_commands_fill_the_range_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make(make_environment("quadruped-walk"), random_steps=8, updates=4)
    sent, step = [], algorithm.robots.plant.step
    monkeypatch.setattr(algorithm.robots.plant, "step", lambda command: sent.append(command) or step(command))
    algorithm.train_epoch()
    actions = stored(algorithm).action.numpy()
    np.testing.assert_allclose(np.stack(sent), algorithm.robots.environment.commands(actions), rtol=1e-6)
    assert np.abs(actions).max() <= 1.0


def test_same_seed_same_bits_and_another_seed_others() -> None:
    first, again, other = (finish(make(make_environment("hopper"), seed)).state_dict() for seed in (3, 3, 4))
    assert state_equal(first, again)
    assert not state_equal(first["policy"], other["policy"])


@pytest.mark.parametrize(("name", "world"), [("hopper", NOMINAL), ("hopper", LONG), ("quadruped-walk", NOMINAL)])
def test_resumes_in_the_middle_to_the_bit(name: str, world: Perturbation, tmp_path: Path) -> None:
    environment = make_environment(name)
    whole = finish(make(environment, world=world, episode_steps=9))
    first = make(environment, world=world, episode_steps=9)
    first.train_epoch()
    save_checkpoint(tmp_path / "part.safetensors", first.state_dict())
    second = make(environment, seed=8, world=world, episode_steps=9)
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
    lines = read_jsonl(folder / "metrics.jsonl")
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


def test_run_in_a_changed_world_says_so(command_line: CommandLine, train: CommandLine, tmp_path: Path) -> None:
    assert train("here").code == 0
    assert train("there", "perturbations=crippled", "world=dead-foot_joint").code == 0
    dead = {"name": "dead-foot_joint", "actuator_gain": {"foot_joint": 0.0}}
    for folder, told in (("here", (None, None, None)), ("there", ("crippled", "dead-foot_joint", dead))):
        config = json.loads((tmp_path / folder / "run.json").read_text())["config"]
        assert (config["suite"], config["world"], config["perturbation"]) == told
    final, evaluated = Run(tmp_path / "there").sac, read_jsonl(tmp_path / "there" / "metrics.jsonl")[-1]["return"]
    returns = [
        simulator_return(final, make_environment("hopper"), 1, seed=UNSEEN, world=world)
        for world in (Perturbation(**dead), NOMINAL)
    ]
    assert evaluated == returns[0] != returns[1]

    assert command_line("export", f"run={tmp_path / 'there'}", f"output={tmp_path / 'dead.bundle'}").code == 0
    config = Bundle.load(tmp_path / "dead.bundle").manifest.provenance.config
    assert (config["suite"], config["world"], config["perturbation"]) == ("crippled", "dead-foot_joint", dead)
    assert not [path for path in (tmp_path / "dead.bundle").iterdir() if str(tmp_path).encode() in path.read_bytes()]

    done = train("there", "perturbations=crippled", "world=locked-foot_joint", "resume=true")
    assert done.code == 2 and "was started with other settings (perturbation, world)" in done.err


def test_one_command_trains_in_several_worlds(
    train: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("${world}", "perturbations=crippled", "world=dead-foot_joint,dead-leg_joint", "-m").code == 0
    for world in ("dead-foot_joint", "dead-leg_joint"):
        assert json.loads((tmp_path / world / "run.json").read_text())["config"]["perturbation"]["name"] == world
    # Hydra's own record of the sweep lies with the runs, and not in the working folder.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dead-foot_joint", "dead-leg_joint", "outputs"]


def test_goes_on_from_an_earlier_policy() -> None:
    first = finish(make(point())).sac
    second = make(point(), seed=1, world=DEAD, start=copy.deepcopy(first.state_dict()))
    assert state_equal(second.sac.state_dict(), first.state_dict())
    start, noise = second.obs.clone(), second.generator.get_state()
    second.train_epoch()
    # Before its first update it acts as the earlier policy explores, and not at random.
    first.generator.set_state(noise)
    assert torch.equal(stored(second).action[0], first.explore(start))


def test_run_goes_on_from_an_earlier_one(train: CommandLine, tmp_path: Path) -> None:
    assert train("first").code == 0
    earlier = f"start_from={tmp_path / 'first'}"
    assert train("second", earlier, "algorithm.updates=1", "algorithm.sac.learning_rate=1e-12").code == 0
    states = [load_checkpoint(tmp_path / folder / "policy.safetensors") for folder in ("first", "second")]
    np.testing.assert_allclose(states[1]["log_alpha"], states[0]["log_alpha"], rtol=1e-6)
    assert [state["updates"] for state in states] == [40, 41]
    for arguments, sentence in (
        (["dataset.env=walker2d"], "first is no run of algorithm=sac in walker2d"),
        (["algorithm.sac.hidden=[8]"], "give algorithm.sac.hidden=[8, 8]"),
        ([f"start_from={tmp_path / 'none'}"], "there is no file"),
    ):
        done = train("third", earlier, *arguments)
        assert done.code == 2 and sentence in done.err, done.err
        assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["perturbations=crippled"], "perturbations=SUITE and world=NAME go together"),
        (["perturbations=crippled", "world=dead-horse"], "has no world 'dead-horse'"),
        (["perturbations=SUITE", "world=late"], "changes at step 500, and this takes a world that stays"),
        (["perturbations=SUITE", "world=gust"], "changes at step 7, and this takes a world that stays"),
        (["perturbations=SUITE", "world=noisy"], "'noisy' has noise or delays"),
        (["perturbations=SUITE", "world=slow"], "'slow' has noise or delays"),
        (["perturbations=SUITE", "world=blind"], "'blind' has noise or delays"),
    ],
)
def test_world_that_does_not_do_is_refused(
    train: CommandLine, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        """
        - {name: late, at_step: 500, body_mass: {"*": 2.0}}
        - {name: gust, schedule: [{at_step: 7, gravity: 0.5}]}
        - {name: noisy, observation_noise: {"*": 0.1}}
        - {name: slow, actuator_delay: 1}
        - {name: blind, observation_delay: 1}
        """
    )
    done = train("run", *(argument.replace("SUITE", str(suite)) for argument in arguments))
    assert done.code == 2 and done.err.count("\n") == 1
    assert sentence in done.err, done.err
    assert not (tmp_path / "run").exists()


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
    assert read_jsonl(tmp_path / "whole" / "metrics.jsonl") == read_jsonl(tmp_path / "parts" / "metrics.jsonl")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dataset=halfcheetah-mixed"], "algorithm=sac learns in the simulator and reads no log; add dataset=online"),
        (["dataset=online"], "dataset.env"),
        (["dataset=online", "dataset.env=centipede"], "there is no environment 'centipede'"),
        (["dataset=online", "dataset.env=hopper", "robot=ant"], "the robot 'ant' has 27"),
        (["dataset=online", "dataset.env=hopper", "world_model=x"], "leave world_model out"),
        (["dataset=online", "dataset.env=hopper", "algorithm=mopo"], "algorithm=mopo learns from a log"),
        (["algorithm=mopo", "perturbations=wind", "world=tail-wind-5"], "mopo learns from a log, whatever the world"),
        (["algorithm=none", "start_from=x"], "algorithm=none trains no policy that could start from an earlier one"),
    ],
)
def test_source_that_does_not_fit_is_refused(
    command_line: CommandLine, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = command_line("train", "algorithm=sac", *arguments, f"output={tmp_path / 'run'}")
    assert done.code == 2 and done.err.count("\n") == 1
    assert sentence in done.err, done.err
    assert not (tmp_path / "run").exists()
