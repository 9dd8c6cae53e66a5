"""The closed loop against a controller made here, whose every answer is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from adapters.errors import UserError
from deploy.bundle import Bundle
from sim.environments import Environment, make_environment
from sim.perturb import NOMINAL, Perturbation
from sim.plant import BatchedPlant
from sim.rollout import EpisodeResult, run_episodes
from sim.validate import make_controller
from sim.worlds import make_world


@dataclass(frozen=True)
class _Command:
    action: np.ndarray
    context: np.ndarray | None = None
    error: str = ""


class _Feedback:
    """A proportional controller that records what it was asked; its context is (time, lane)."""

    def __init__(self, plant: BatchedPlant, with_context: bool = False) -> None:
        self.plant, self.with_context = plant, with_context
        self.times: list[float] = []
        self.observations: list[np.ndarray] = []
        self.truths: list[np.ndarray] = []
        self.states: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def step(self, time: float, obs: np.ndarray) -> _Command:
        self.times.append(time)
        self.observations.append(obs)
        self.truths.append(self.plant.observe())
        self.states.append(self.plant.states)
        action = np.clip(np.sin(20 * time) - obs[:, -self.plant.environment.act_dim :], -1, 1)
        lanes = np.arange(len(obs), dtype=float)
        context = np.stack([np.full(len(obs), time), lanes], 1) if self.with_context else None
        self.actions.append(action)
        return _Command(action, context)


@pytest.fixture(scope="module")
def cheetah() -> Environment:
    return make_environment("halfcheetah")


def _run(environment: Environment, worlds: list[Perturbation], **settings: int) -> tuple[EpisodeResult, _Feedback]:
    made: list[_Feedback] = []

    def factory(plant: BatchedPlant) -> _Feedback:
        made.append(_Feedback(plant))
        return made[-1]

    keywords = {"episodes": 2, "seed": 0, "steps": 40} | settings
    return run_episodes(environment, worlds, factory, **keywords), made[0]  # type: ignore[arg-type]


HEAVY = Perturbation(name="heavy", body_mass={"*": 1.5})
LATE = Perturbation(name="late", at_step=25, body_mass={"*": 1.5})


def test_shapes_and_the_calls_made(cheetah: Environment) -> None:
    result, controller = _run(cheetah, [NOMINAL, HEAVY, LATE])
    assert result.rewards.shape == (3, 2, 40)
    assert result.returns.shape == (3, 2)
    assert result.context is None
    assert (result.lengths == 40).all()
    assert not result.falls.any()
    assert controller.resets == 1
    # HalfCheetah's control period is 5 physics steps of 0.01 s.
    np.testing.assert_allclose(controller.times, 0.05 * np.arange(40))


def test_returns_are_those_of_a_loop_written_out(cheetah: Environment) -> None:
    result, _ = _run(cheetah, [NOMINAL], episodes=1)
    with BatchedPlant(cheetah, [cheetah.model()]) as plant:
        controller = _Feedback(plant)
        obs = plant.reset(states=cheetah.initial_states(np.random.default_rng([0, 0]), 1))
        total = 0.0
        for step in range(40):
            obs, reward, _ = plant.step(controller.step(step * 0.05, obs).action)
            total += reward[0]
    assert result.returns[0, 0] == pytest.approx(total, rel=1e-5)


def test_every_cell_starts_alike_and_episodes_differ(cheetah: Environment) -> None:
    _, controller = _run(cheetah, [NOMINAL, HEAVY], episodes=3)
    starts = controller.observations[0].reshape(2, 3, -1)
    np.testing.assert_array_equal(starts[0], starts[1])
    assert abs(starts[0, 0] - starts[0, 1]).max() > 0
    _, fewer = _run(cheetah, [NOMINAL], episodes=2)
    np.testing.assert_array_equal(fewer.observations[0], starts[0, :2])
    _, other = _run(cheetah, [NOMINAL], episodes=2, seed=1)
    assert abs(other.observations[0] - starts[0, :2]).max() > 0


def test_same_seed_same_bits_for_any_number_of_threads(cheetah: Environment) -> None:
    first, _ = _run(cheetah, [NOMINAL, HEAVY, LATE])
    second, _ = _run(cheetah, [NOMINAL, HEAVY, LATE], threads=2)
    np.testing.assert_array_equal(first.rewards, second.rewards)


def test_shares_of_a_bundle_controller_are_as_one_batch(make_bundle: Callable[..., Path]) -> None:
    # Seven lanes on three threads are shares of 3, 2 and 2; in a stronger wind a walker falls sooner.
    bundle, walker = Bundle.load(make_bundle(env="walker2d")), make_environment("walker2d")
    winds = [Perturbation(name=f"wind-{g}", gravity=(g, 0.0, -9.81)) for g in range(7)]

    def run(threads: int) -> EpisodeResult:
        return run_episodes(walker, winds, partial(make_controller, bundle, "inferred"), 1, 0, 120, threads)

    one, three = run(1), run(3)
    assert len(set(one.lengths.ravel())) > 1 and one.context is not None and three.context is not None
    for name in ("rewards", "lengths", "falls", "context"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))
    for world, length in enumerate(one.lengths[:, 0]):
        assert (one.context[world, 0, :length] != 0).all() and (one.context[world, 0, length:] == 0).all()


def test_a_share_that_fails_stops_the_others(cheetah: Environment) -> None:
    # The second share's controller fails at its first step; the first would have a hundred thousand.
    made = itertools.count()
    stepped: list[int] = []

    class Numbered(_Feedback):
        number = 0

        def step(self, time: float, obs: np.ndarray) -> _Command:
            return _Command(np.zeros((len(obs), 6)), error="broken" if self.number else "")

    def factory(plant: BatchedPlant) -> Numbered:
        controller = Numbered(plant)
        controller.number = next(made)
        return controller

    with pytest.raises(RuntimeError, match="failed at step 0: broken"):
        run_episodes(cheetah, [NOMINAL], factory, 4, 0, 100_000, threads=2, progress=stepped.append)
    assert len(stepped) < 100_000


def test_world_changes_at_its_step_and_not_before(cheetah: Environment) -> None:
    result, _ = _run(cheetah, [NOMINAL, HEAVY, LATE])
    nominal, heavy, late = result.rewards
    np.testing.assert_array_equal(late[:, :25], nominal[:, :25])
    assert (late[:, 25] != nominal[:, 25]).all()
    assert (heavy[:, 0] != nominal[:, 0]).all()


def test_fallen_lane_earns_nothing_more() -> None:
    environment = make_environment("hopper")
    wind = Perturbation(name="wind", gravity=(6.0, 0.0, -9.81))
    result, _ = _run(environment, [wind], episodes=4, steps=300)
    assert result.falls.all()
    for episode, length in enumerate(result.lengths[0]):
        assert 0 < length < 300
        rewards = result.rewards[0, episode]
        assert (rewards[:length] != 0).all()
        assert (rewards[length:] == 0).all()


def test_context_is_kept_lane_by_lane(cheetah: Environment) -> None:
    result = run_episodes(cheetah, [NOMINAL, HEAVY], lambda plant: _Feedback(plant, True), episodes=2, seed=0, steps=5)
    assert result.context is not None
    assert result.context.shape == (2, 2, 5, 2)
    # Lanes are numbered cell by cell: cell 1, episode 0 is lane 2.
    np.testing.assert_allclose(result.context[1, 0, :, 1], 2.0)
    np.testing.assert_allclose(result.context[1, 0, :, 0], 0.05 * np.arange(5))


def test_progress_counts_lanes(cheetah: Environment) -> None:
    seen: list[int] = []
    run_episodes(cheetah, [NOMINAL, HEAVY], _Feedback, episodes=3, seed=0, steps=4, progress=seen.append)
    assert seen == [6] * 4


def test_change_past_the_end_is_refused(cheetah: Environment) -> None:
    with pytest.raises(UserError, match="'late': at_step 25 is past the episode's 25 steps; run at least 26"):
        _run(cheetah, [LATE], steps=25)


def test_schedule_past_the_end_is_refused(cheetah: Environment) -> None:
    back = Perturbation.model_validate({"name": "back", "at_step": 5, "gravity": 0.5, "schedule": [{"at_step": 25}]})
    with pytest.raises(UserError, match="'back': at_step 25 is past the episode's 25 steps; run at least 26"):
        _run(cheetah, [back], steps=25)


def test_schedule_takes_the_place_of_what_was_before(cheetah: Environment) -> None:
    changes = [{"at_step": 20, "gravity": 0.8}, {"at_step": 30}]
    world = Perturbation.model_validate({"name": "x", "at_step": 10, "body_mass": {"*": 1.5}, "schedule": changes})
    result, controller = _run(cheetah, [NOMINAL, world])
    np.testing.assert_array_equal(result.rewards[0, :, :10], result.rewards[1, :, :10])
    light = Perturbation(name="light", gravity=0.8)
    for first, last, of_that_time in ((10, 20, HEAVY), (20, 30, light), (30, 40, NOMINAL)):
        # Lanes 2 and 3 are the changed world's; its commands are those of the closed loop, to the end of the stretch.
        model = make_world(cheetah, of_that_time).model
        with BatchedPlant(cheetah, [model, model]) as plant:
            plant.reset(states=controller.states[first][2:])
            for step in range(first, last):
                _, rewards, _ = plant.step(controller.actions[step][2:])
                np.testing.assert_array_equal(rewards.astype(np.float32), result.rewards[1, :, step])


def test_late_observations_are_those_of_some_steps_before(cheetah: Environment) -> None:
    worlds = [
        Perturbation(name="late", observation_delay=3),
        Perturbation(name="later", at_step=10, observation_delay=2),
    ]
    _, controller = _run(cheetah, worlds, episodes=1, steps=20)
    seen, truth = np.array(controller.observations), np.array(controller.truths)
    np.testing.assert_array_equal(seen[:, 0], truth[[0, 0, 0, *range(17)], 0])
    # Two steps late from step 10 on: what was seen at step 9 is held until the next one, of step 10, is due at step 12.
    np.testing.assert_array_equal(seen[:, 1], truth[[*range(10), 9, 9, *range(10, 18)], 1])


def test_late_commands_act_some_steps_after(cheetah: Environment) -> None:
    class Script(_Feedback):
        """The same actions whatever it sees, the first lane's two steps before the second one's."""

        def step(self, time: float, obs: np.ndarray) -> _Command:
            step = round(time / 0.05)
            actions = np.random.default_rng(0).uniform(-1, 1, (20, 6))
            return _Command(np.stack([actions[step], actions[step - 2] if step >= 2 else np.zeros(6)]))

    worlds = [Perturbation(name="late", actuator_delay=2), NOMINAL]
    result = run_episodes(cheetah, worlds, Script, episodes=1, seed=0, steps=20)
    # The reward too is that of the command which acts.
    np.testing.assert_array_equal(result.rewards[0], result.rewards[1])


BLURRED = Perturbation(name="blurred", observation_noise={"*_velocity": 0.3})


def test_noise_is_the_same_for_every_policy_and_beside_any_other_world(cheetah: Environment) -> None:
    def noise(controller: _Feedback) -> np.ndarray:
        return (np.array(controller.observations) - np.array(controller.truths))[:, -2:]

    _, alone = _run(cheetah, [BLURRED])
    _, beside = _run(cheetah, [HEAVY, LATE, BLURRED])
    np.testing.assert_array_equal(alone.observations, np.array(beside.observations)[:, -2:])

    class Other(_Feedback):
        def step(self, time: float, obs: np.ndarray) -> _Command:
            return _Command(-super().step(time, obs).action)

    others: list[_Feedback] = []

    def factory(plant: BatchedPlant) -> _Feedback:
        others.append(Other(plant))
        return others[-1]

    run_episodes(cheetah, [BLURRED], factory, episodes=2, seed=0, steps=40)
    assert abs(np.array(others[0].truths) - np.array(alone.truths)).max() > 0.1
    np.testing.assert_allclose(noise(others[0]), noise(alone), atol=1e-12)
    first, second = noise(alone).swapaxes(0, 1)
    assert abs(first - second).max() > 0.1
    _, reseeded = _run(cheetah, [BLURRED], seed=1)
    assert abs(noise(reseeded) - noise(alone)).max() > 0.1


def test_rewards_and_ends_are_those_of_the_true_states() -> None:
    environment = make_environment("hopper")
    blind = Perturbation(name="blind", observation_noise={"*": 10.0}, observation_delay=5)

    class Still(_Feedback):
        def step(self, time: float, obs: np.ndarray) -> _Command:
            return _Command(np.zeros((len(obs), 3)))

    result = run_episodes(environment, [blind, NOMINAL], Still, episodes=2, seed=0, steps=300)
    assert result.falls.all()
    np.testing.assert_array_equal(result.lengths[0], result.lengths[1])
    np.testing.assert_array_equal(result.rewards[0], result.rewards[1])


def test_exception_caught_by_the_controller_does_not_pass_for_a_result(cheetah: Environment) -> None:
    class Broken(_Feedback):
        def step(self, time: float, obs: np.ndarray) -> _Command:
            return _Command(np.zeros((len(obs), 6)), error="ZeroDivisionError: oops" if time > 0.1 else "")

    with pytest.raises(RuntimeError, match="at step 3: ZeroDivisionError: oops"):
        run_episodes(cheetah, [NOMINAL], Broken, episodes=1, seed=0, steps=10)
