"""`surefoot collect`: recipes, seeds, the behaviour policies, and refusals."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import surefoot
from adapters.datasets import TransitionDataset, load_dataset
from adapters.errors import UserError
from deploy.bundle import Bundle
from sim.collect import SNAPSHOTS, collect, policy_schedule, recipe_policies, shipped_environments, shipped_policies
from sim.environments import make_environment
from sim.mujoco_plant import find_world
from sim.plant import BatchedPlant
from sim.weakening import draw_weakening
from sim.worlds import make_world

ENVIRONMENT = make_environment("halfcheetah")


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("random", (0,)),
        ("medium", (125_000,)),
        ("mixed", (0, 25_000, 50_000, 75_000, 100_000, 125_000)),
        ("medium-expert", (125_000, 300_000)),
    ],
)
def test_recipes(recipe: str, expected: tuple[int, ...]) -> None:
    assert recipe_policies(recipe, make_environment("halfcheetah")) == expected


@pytest.mark.parametrize(
    ("policies", "stretches", "expected"),
    [
        (1, 2, [0, 0]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        # 8 stretches over 6 policies: stretch i takes policy floor(6 i / 8).
        (6, 8, [0, 0, 1, 2, 3, 3, 4, 5]),
        (2, 4, [0, 0, 1, 1]),
    ],
)
def test_policies_get_equal_consecutive_shares(policies: int, stretches: int, expected: list[int]) -> None:
    assert policy_schedule(range(policies), stretches * 1000) == expected


@pytest.mark.parametrize(("policies", "steps"), [(1, 1500), (1, 0), (6, 5000), (2, 1000)])
def test_steps_must_be_whole_stretches_of_every_policy(policies: int, steps: int) -> None:
    with pytest.raises(UserError, match=f"steps={steps} does not do .* at least {1000 * policies}"):
        policy_schedule(range(policies), steps)


@pytest.mark.parametrize("env", shipped_environments())
def test_every_environment_with_policies_has_their_recipes(env: str) -> None:
    environment = make_environment(env)
    behaviour = environment.config.behaviour
    assert behaviour is not None and behaviour.medium in shipped_policies(env)
    mixed = recipe_policies("mixed", environment)
    assert mixed[0] == 0 and mixed[-1] == behaviour.medium and len(mixed) > 3
    assert behaviour.expert in shipped_policies(env) and behaviour.expert > behaviour.medium
    # A quadruped starts the way up that chance has it, and one that lies on its back earns nothing.
    starts = 8 if env == "quadruped-walk" else 1
    data = collect("mixed", 1000 * starts * len(mixed), seed=0, env=env)
    rewards = data.rewards.reshape(len(mixed), -1).sum(1) / starts
    # In 1,000 steps every policy earns more than the random one, and the last at least half the yardstick.
    assert (rewards[1:] > rewards[0]).all() and rewards[-1] > 0.5 * environment.config.yardstick_return
    better = collect("medium-expert", 4000 * starts, seed=0, env=env)
    returns = [better.rewards[rows].sum() for rows in better.episode_slices()]
    ends = np.flatnonzero(better.terminals | better.timeouts)
    medium, expert = (np.mean(returns, where=of) for of in (ends < len(better) // 2, ends >= len(better) // 2))
    assert expert > 1.1 * medium


def test_environment_without_policies_acts_at_random_alone() -> None:
    hopper = make_environment("hopper")
    bare = dataclasses.replace(hopper, config=hopper.config.model_copy(update={"behaviour": None}))
    assert recipe_policies("random", bare) == (0,)
    with pytest.raises(UserError, match=r"no behaviour policies are shipped for env=hopper.*env=halfcheetah"):
        recipe_policies("mixed", bare)


def test_after_a_fall_the_next_episode_begins() -> None:
    data = collect("random", 2000, seed=0, env="hopper")
    ends = np.flatnonzero(data.terminals | data.timeouts)
    # A hopper under random actions falls within some twenty steps; every stretch of 1,000 is cut off at its end.
    assert data.terminals.sum() > 50 and {999, 1999} <= set(ends)
    assert set(np.flatnonzero(data.timeouts)) <= {999, 1999}
    starts = data.observations[np.append(0, ends[:-1] + 1)]
    # Starts are 1.25 m high with noise of 0.005, each its own.
    assert abs(starts[:, 0] - 1.25).max() < 0.006
    assert len(np.unique(starts[:, 0])) == len(starts)
    alone = collect("random", 2000, seed=0, env="hopper", episodes_in_parallel=1)
    np.testing.assert_array_equal(alone.observations, data.observations)


def test_random_commands_fill_the_range() -> None:
    data, environment = collect("random", 1000, seed=0, env="quadruped-walk"), make_environment("quadruped-walk")
    # 1,000 uniform draws leave a gap of about a thousandth of the range at either end.
    np.testing.assert_allclose(data.actions.min(0), environment.action_low, atol=0.03)
    np.testing.assert_allclose(data.actions.max(0), environment.action_high, atol=0.03)


@pytest.fixture(scope="module")
def medium() -> TransitionDataset:
    return collect("medium", 3000, seed=3, episodes_in_parallel=2)


def test_every_episode_is_1000_steps_and_a_timeout(medium: TransitionDataset) -> None:
    assert [rows.stop for rows in medium.episode_slices()] == [1000, 2000, 3000]
    assert medium.timeouts.sum() == 3
    assert not medium.terminals.any()


def test_medium_returns_are_those_of_the_policy(medium: TransitionDataset) -> None:
    # The data's notes give 4,604 for the stochastic policy at 125,000 steps.
    assert medium.episode_returns().mean() == pytest.approx(4600, abs=300)


def test_same_settings_same_data_whatever_the_threads(medium: TransitionDataset) -> None:
    again = collect("medium", 3000, seed=3, episodes_in_parallel=2, threads=2)
    assert again.metadata.sha256 == medium.metadata.sha256


def test_another_seed_other_data(medium: TransitionDataset) -> None:
    other = collect("medium", 1000, seed=4)
    assert (other.observations[0] != medium.observations[0]).any()
    assert (other.actions[0] != medium.actions[0]).any()


def test_an_episode_keeps_its_start_and_noise_whatever_runs_beside_it(medium: TransitionDataset) -> None:
    alone = collect("medium", 3000, seed=3, episodes_in_parallel=1)
    starts = [0, 1000, 2000]
    np.testing.assert_array_equal(alone.observations[starts], medium.observations[starts])
    # Batches of another size round the network's output differently, by a few units in the last place.
    np.testing.assert_allclose(alone.actions[starts], medium.actions[starts], rtol=1e-4, atol=1e-5)


def test_rows_are_what_the_simulator_does(medium: TransitionDataset) -> None:
    environment = make_environment("halfcheetah")
    # Episode 0 again, by its recorded actions, from the start that its own generator draws.
    start = environment.initial_states(np.random.default_rng(3).spawn(3)[0], 1)
    with BatchedPlant(environment, [environment.model()]) as plant:
        observed = plant.reset(states=start)
        for step in range(20):
            np.testing.assert_array_equal(medium.observations[step], observed[0].astype(np.float32))
            observed, rewards, _ = plant.step(medium.actions[step : step + 1])
            assert medium.rewards[step] == np.float32(rewards[0])


def test_actions_are_squashed_gaussians_of_the_snapshot(medium: TransitionDataset) -> None:
    session = onnxruntime.InferenceSession((SNAPSHOTS / "halfcheetah-sac-125000.onnx").read_bytes())
    mean, log_std = session.run(["mean", "log_std"], {"obs": medium.observations})
    inside = np.abs(medium.actions) < 0.999
    noise = (np.arctanh(np.clip(medium.actions, -0.999, 0.999)) - mean) / np.exp(log_std)
    # Where the action is not saturated the noise can be read back. Policy means below 1 saturate least.
    certain = inside & (np.abs(mean) + 2.5 * np.exp(log_std) < 3.0)
    assert certain.sum() > 1000
    assert abs(noise[certain].mean()) < 0.1
    assert noise[certain].std() == pytest.approx(1.0, abs=0.05)


def test_random_actions_are_uniform() -> None:
    actions = collect("random", 2000, seed=0).actions
    assert np.abs(actions).max() <= 1.0
    # Uniform on [-1, 1]: variance 1/3 and kurtosis 9/5.
    assert actions.mean() == pytest.approx(0.0, abs=0.03)
    assert actions.var() == pytest.approx(1 / 3, abs=0.02)
    assert (actions**4).mean() / actions.var() ** 2 == pytest.approx(1.8, abs=0.05)


def test_a_bundle_acts_in_the_place_of_a_recipe(make_bundle: Callable[..., Path]) -> None:
    first, second = make_bundle(), make_bundle(context=False, name="second")
    data = collect("mixed", 4000, seed=3, bundles=[str(first), str(second)])
    for path, rows in ((first, slice(0, 2000)), (second, slice(2000, 4000))):
        bundle = Bundle.load(path)
        context = None if bundle.manifest.context is None else np.ones((2000, 17))
        np.testing.assert_allclose(data.actions[rows], bundle.act(data.observations[rows], context), atol=1e-5)


def test_noise_of_a_bundle_is_in_half_of_the_stretches_and_stays_within_the_commands(
    make_bundle: Callable[..., Path],
) -> None:
    path = make_bundle(context=False)
    data = collect("mixed", 20_000, seed=0, bundles=[str(path)], noise=0.3)
    added = (data.actions - Bundle.load(path).act(data.observations)).reshape(20, 1000, 6)
    noisy = np.abs(added).max((1, 2)) > 1e-4
    # A fair coin for each of 20 stretches: fewer than 4 or more than 16 heads have a chance of 0.3 %.
    assert 4 <= noisy.sum() <= 16
    inside = np.abs(data.actions.reshape(20, 1000, 6)[noisy]) < 1
    # Cut off at the commands' limits; what is not cut off is narrower than the noise of 0.3, but not by much.
    assert 0.15 < added[noisy][inside].std() < 0.3
    assert np.abs(data.actions).max() <= 1


@pytest.mark.parametrize("pushed", [(), (8, 9)])
def test_a_policy_that_reads_gains_is_told_what_each_motor_will_get(
    make_bundle: Callable[..., Path], pushed: tuple[int, ...]
) -> None:
    path = make_bundle(gains=True, pushed=pushed)
    data = collect("mixed", 1000, seed=2, bundles=[str(path)], weakened=1.0)
    # The seed of the stretch gives its start, its noise and whether there is noise, and then the gains.
    generator = np.random.default_rng(2).spawn(1)[0]
    ENVIRONMENT.initial_states(generator, 1)
    generator.standard_normal((1000, 6))
    generator.random()
    gains = draw_weakening(generator, 1000, 6, 1.0)
    assert (gains == 0).any()
    told = np.concatenate([np.zeros((1000, len(pushed))), gains], 1)
    expected = gains * Bundle.load(path).act(data.observations, told)
    np.testing.assert_allclose(data.actions, expected, atol=1e-5)


def test_names_are_those_of_the_shipped_data(medium: TransitionDataset) -> None:
    shipped = load_dataset("package://adapters/datasets/data/halfcheetah-mixed.npz").metadata
    for name in ("env", "control_dt", "observation_names", "action_names"):
        assert getattr(medium.metadata, name) == getattr(shipped, name)


def command(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    monkeypatch.setattr(sys, "argv", ["surefoot", "collect", *overrides])
    surefoot.main()


def test_a_changed_robot_is_logged_as_it_moves(make_bundle: Callable[..., Path]) -> None:
    path = str(make_bundle(context=False))
    place = "joint-failure:dead-bthigh"
    data = collect("mixed", 1000, seed=3, bundles=[path], place=place)
    model = make_world(ENVIRONMENT, find_world(place)).model
    start = ENVIRONMENT.initial_states(np.random.default_rng(3).spawn(1)[0], 1)
    with BatchedPlant(ENVIRONMENT, [model]) as plant:
        observed = plant.reset(states=start)
        for step in range(20):
            np.testing.assert_array_equal(data.observations[step], observed[0].astype(np.float32))
            observed, _, _ = plant.step(data.actions[step : step + 1])
    assert "world=joint-failure:dead-bthigh" in data.metadata.source
    assert data.metadata.sha256 != collect("mixed", 1000, seed=3, bundles=[path]).metadata.sha256


def test_policies_of_a_robot_act_in_all_its_tasks(make_bundle: Callable[..., Path]) -> None:
    bundles = [str(make_bundle(context=False))]
    forward, backward = (
        collect("mixed", 1000, 3, env, bundles=bundles) for env in ("halfcheetah", "halfcheetah-backward")
    )
    np.testing.assert_array_equal(forward.observations, backward.observations)
    # Speed is paid the other way round, effort as before.
    cost = 0.1 * np.square(forward.actions.astype(np.float64)).sum(1)
    np.testing.assert_allclose(backward.rewards + cost, -(forward.rewards + cost), atol=1e-5)
    assert recipe_policies("mixed", make_environment("ant-angle")) == recipe_policies("mixed", make_environment("ant"))


def test_a_bundle_of_another_environment_is_refused(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="is a bundle for env=hopper, not for env=halfcheetah; give env=hopper"):
        collect("mixed", 1000, seed=0, bundles=[str(make_bundle(env="hopper"))])


def test_command_writes_what_collect_returns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "random.npz"
    command(monkeypatch, "recipe=random", "steps=2000", "seed=5", f"output={output}", "episodes_in_parallel=2")
    written = load_dataset(output)
    assert written.metadata == collect("random", 2000, seed=5, episodes_in_parallel=2).metadata
    printed = capsys.readouterr().out
    assert written.metadata.sha256 in printed
    assert f"mean return  {written.episode_returns().mean():.1f}" in printed
    assert "rows         2000" in printed
    other = tmp_path / "random.hdf5"
    command(monkeypatch, "recipe=random", "steps=2000", "seed=5", f"output={other}", "episodes_in_parallel=2")
    assert load_dataset(other).metadata == written.metadata
    assert "episodes     2" in printed


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("recipe=expert", "there is no recipe 'expert'"),
        ("steps=2500", "steps=2500 does not do"),
        ("steps=many", "steps=many is not possible"),
        ("seed=-1", "seed=-1 is not possible"),
        ("episodes_in_parallel=0", "episodes_in_parallel=0 is not possible"),
        ("threads=0", "threads=0 is not possible"),
        ("world=heavy", "perturbations=SUITE and world=NAME go together"),
        ("noise=0.1", "the policies of a recipe have their own noise"),
        ("noise=2", "noise=2 is no share of the commands' range"),
        ("bundle=nowhere", "there is no bundle nowhere"),
        ("env=nowhere", "env/nowhere"),
        ("env=halfcheetah-jump", "no behaviour policies are shipped for env=halfcheetah-jump"),
        ("output=data.csv", "output=data.csv is not the name of a data set"),
    ],
)
def test_command_refuses_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, "output=data.npz", setting)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
