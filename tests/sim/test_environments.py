"""The batched tasks against gymnasium's and dm_control's own, step by step: one battery for all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import gymnasium
import mujoco
import numpy as np
import pytest

from adapters.errors import UserError
from sim.environments import (
    ENVIRONMENT_FOLDER,
    FULL_PHYSICS,
    Environment,
    GymnasiumTask,
    make_environment,
    quiet_mujoco,
)
from sim.plant import BatchedPlant

NAMES = sorted(file.stem for file in ENVIRONMENT_FOLDER.glob("*.yaml"))


class Reference(Protocol):
    """The original of a task, with the solver's warm start zeroed before every control step as in the plant."""

    model: Any
    control_dt: float
    low: np.ndarray
    high: np.ndarray

    def reset(self, seed: int) -> np.ndarray:
        """Start as the original does; returns the observation."""

    def start(self, state: np.ndarray) -> np.ndarray:
        """Start in a state `(nstate,)`; returns the observation."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Return observation, reward and terminated."""


# What the tasks pay that gymnasium does not know: from the velocity in the plane, |action|^2, and how far the torso is
# above where the episode began.
PAID: dict[str, Callable[[np.ndarray, float, float], float]] = {
    "halfcheetah-jump": lambda v, squared, rise: min(v[0], 3.0) - 0.1 * squared + 15.0 * rise,
    "halfcheetah-capped": lambda v, squared, rise: min(v[0], 3.0) - 0.1 * squared,
    "halfcheetah-backward": lambda v, squared, rise: -v[0] - 0.1 * squared,
    "walker2d-backward": lambda v, squared, rise: -v[0] - 0.001 * squared + 1.0,
    "hopper-backward": lambda v, squared, rise: -v[0] - 0.001 * squared + 1.0,
    "ant": lambda v, squared, rise: v[0] - 0.5 * squared + 1.0,
    # cos 30 = sqrt(3) / 2, sin 30 = 1 / 2
    "ant-angle": lambda v, squared, rise: 3**0.5 / 2 * v[0] + 0.5 * v[1] - 0.5 * squared + 1.0,
}


class GymnasiumReference:
    """Gymnasium's own environment; rewards that are not its own are computed from its physics."""

    def __init__(self, environment: GymnasiumTask) -> None:
        self.name = environment.name
        with quiet_mujoco(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.env = gymnasium.make(environment.config.gym_id, **environment.config.gym_options)
        self.bare: Any = self.env.unwrapped
        self.model, self.control_dt = self.bare.model, self.bare.dt
        space: Any = self.env.action_space
        self.low, self.high = space.low, space.high
        self.env.reset(seed=0)

    def reset(self, seed: int) -> np.ndarray:
        return self._observed(self.env.reset(seed=seed)[0])

    def start(self, state: np.ndarray) -> np.ndarray:
        self.bare.set_state(*np.split(state[1:], [self.model.nq]))
        self.start_height = self._torso_height()
        return self._observed(self.bare._get_obs())

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        before = self.bare.data.qpos[:2].copy()
        self.bare.data.qacc_warmstart[:] = 0
        observation, reward, terminated, _, _ = self.bare.step(action)
        if self.name in PAID:
            # Gymnasium's Ant takes its speed from a frame that lags behind; ours is that of the position.
            velocity = (self.bare.data.qpos[:2] - before) / self.control_dt
            reward = PAID[self.name](velocity, float(action @ action), self._torso_height() - self.start_height)
            # Those that fall are paid 1 for each step that they do not.
            reward -= float(terminated)
        return self._observed(observation), reward, terminated

    def _torso_height(self) -> float:
        """The height of the torso's frame, which a step leaves behind by part of a physics step."""
        mujoco.mj_kinematics(self.model, self.bare.data)
        return float(self.bare.data.body("torso").xpos[2])

    def _observed(self, observation: np.ndarray) -> np.ndarray:
        """qpos[1:], the torso's height and qvel are what the authors of halfcheetah-jump observe."""
        return np.insert(observation, 8, self._torso_height()) if self.name == "halfcheetah-jump" else observation


class DmControlReference:
    """dm_control's own environment."""

    def __init__(self, environment: Environment) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from dm_control import suite
        domain, task = environment.task_id.removeprefix("dm_control/").split("-")
        self.random = np.random.RandomState()
        self.env = suite.load(
            domain, task, task_kwargs={"random": self.random}, environment_kwargs={"flat_observation": True}
        )
        self.physics = self.env.physics
        self.model, self.control_dt = self.physics.model.ptr, self.env.control_timestep()
        self.low, self.high = self.env.action_spec().minimum, self.env.action_spec().maximum
        self.env.reset()

    def reset(self, seed: int) -> np.ndarray:
        # The seed of an episode is the first that the generator of this seed draws.
        self.random.seed(generator_of(seed).integers(2**32))
        return self.env.reset().observation["observations"]

    def start(self, state: np.ndarray) -> np.ndarray:
        with self.physics.reset_context():
            self.physics.set_state(state, sig=FULL_PHYSICS)
        terms = self.env.task.get_observation(self.physics)
        return np.concatenate([np.ravel(term) for term in terms.values()])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        self.physics.data.qacc_warmstart[:] = 0
        step = self.env.step(action)
        return step.observation["observations"], step.reward, step.discount != 1.0


def generator_of(seed: int) -> np.random.Generator:
    """The generator that gymnasium makes of a seed."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Environment, Reference]]:
    """Our description of a task and the original."""
    environment = make_environment(request.param)
    if isinstance(environment, GymnasiumTask):
        yield environment, GymnasiumReference(environment)
    else:
        yield environment, DmControlReference(environment)


Pair = tuple[Environment, Reference]


def test_description_is_the_originals(pair: Pair) -> None:
    environment, reference = pair
    assert environment.control_dt == pytest.approx(reference.control_dt)
    assert environment.frame_skip * environment.model().opt.timestep == pytest.approx(reference.control_dt)
    assert reference.reset(0).shape == (environment.obs_dim,)
    np.testing.assert_array_equal(environment.action_low, reference.low)
    np.testing.assert_array_equal(environment.action_high, reference.high)
    assert len(set(environment.observation_names)) == environment.obs_dim


def test_model_is_the_originals(pair: Pair) -> None:
    environment, reference = pair
    for model in (environment.model(), compiled(environment)):
        for name in ("body_mass", "body_inertia", "geom_size", "geom_friction", "jnt_range", "dof_damping", "qpos0"):
            np.testing.assert_array_equal(getattr(model, name), getattr(reference.model, name))
        assert model.opt.timestep == reference.model.opt.timestep
        assert model.opt.integrator == reference.model.opt.integrator


def compiled(environment: Environment) -> mujoco.MjModel:
    """The model compiled from the specification."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return environment.spec().compile()


def test_start_is_the_originals_for_the_same_generator(pair: Pair) -> None:
    environment, reference = pair
    expected = reference.reset(7)
    with BatchedPlant(environment, [environment.model()]) as plant:
        ours = plant.reset(states=environment.initial_states(generator_of(7), 1))
    np.testing.assert_allclose(ours[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["within", "beyond"])
def test_steps_are_the_originals(pair: Pair, scale: float) -> None:
    environment, reference = pair
    generator = np.random.default_rng(3)
    # Two robots, of which the reference goes along with the second.
    starts = environment.initial_states(generator, 2)
    expected = reference.start(starts[1])
    moved = 0.0
    with BatchedPlant(environment, [environment.model()] * 2) as plant:
        observations = plant.reset(states=starts)
        np.testing.assert_allclose(observations[1], expected, rtol=0, atol=1e-9)
        for _ in range(50):
            actions = scale * environment.commands(generator.uniform(-1, 1, (2, environment.act_dim)))
            expected, expected_reward, expected_end = reference.step(actions[1])
            before = observations
            observations, rewards, ends = plant.step(actions)
            np.testing.assert_allclose(observations[1], expected, rtol=1e-9, atol=1e-9)
            assert rewards[1] == pytest.approx(expected_reward, abs=1e-9)
            assert ends[1] == expected_end
            moved += np.abs(observations - before).max()
        # In the middle of an episode too, a state that is set is observed as after a reset, with the motors off.
        plant.states = plant.states
        np.testing.assert_allclose(plant.observe()[1], reference.start(plant.states[1]), rtol=1e-9, atol=1e-9)
    assert moved > 1.0


def test_ants_returns_are_gymnasiums() -> None:
    environment: Any = make_environment("ant")
    reference = GymnasiumReference(environment)
    generator = np.random.default_rng(0)
    start = environment.initial_states(generator, 1)
    reference.start(start[0])
    ours = theirs = 0.0
    with BatchedPlant(environment, [environment.model()]) as plant:
        plant.reset(states=start)
        for _ in range(60):
            action = generator.uniform(-1, 1, 8)
            reference.bare.data.qacc_warmstart[:] = 0
            theirs += reference.bare.step(action)[1]
            ours += plant.step(action[None])[1][0]
    # The frame lags by far less than a physics step; at 1 m/s a whole one is 0.01 m, 0.2 in the sum of speeds x / dt.
    assert ours == pytest.approx(theirs, abs=0.02)


def test_what_ant_angle_leaves_out_is_less_than_0_04_a_step() -> None:
    # The authors' formula takes 5e-4 times the sum of squared contact forces, clipped to [-1, 1], off.
    environment: Any = make_environment("ant-angle")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference: Any = gymnasium.make("Ant-v5", contact_cost_weight=5e-4).unwrapped
    reference.reset(seed=0)
    costs = []
    for _ in range(200):
        *_, info = reference.step(reference.np_random.uniform(-1, 1, 8))
        costs.append(-info["reward_contact"])
    assert 0.0 < max(costs) < 0.04 and environment.config.control_cost == 0.5


def test_height_counts_from_where_each_robots_episode_began() -> None:
    environment = make_environment("halfcheetah-jump")
    states = environment.initial_states(np.random.default_rng(0), 2)
    with BatchedPlant(environment, [environment.model()] * 2) as plant:
        plant.reset(states=states)
        plant.step(np.zeros((2, 6)))
        higher = states[:1].copy()
        higher[:, 2] += 0.1
        plant.restart(np.array([0]), higher)
        assert (plant.starts[0] == higher).all() and (plant.starts[1] == states[1]).all()
        before = plant.states
        _, rewards, _ = plant.step(np.zeros((2, 6)))
        # 15 a metre, and the speed, which is below 3 m/s at the start; no command, so no cost.
        rise = plant.states[:, 2] - np.array([higher[0, 2], states[1, 2]])
        speed = (plant.states[:, 1] - before[:, 1]) / 0.05
        np.testing.assert_allclose(rewards, speed + 15.0 * rise, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "mean_return", "score"),
    [
        # 100 (r - random) / (expert - random): 0 at random, 100 at expert, half way between them 50.
        ("halfcheetah", -280.178953, 0.0),
        ("halfcheetah", 12135.0, 100.0),
        ("walker2d", 0.5 * (1.629008 + 4592.3), 50.0),
        # 100 (1000 + 20.272305) / (3234.3 + 20.272305)
        ("hopper", 1000.0, 31.3489),
        # 100 (0 + 325.6) / (3879.7 + 325.6)
        ("ant", 0.0, 7.7426),
    ],
)
def test_d4rl_score(name: str, mean_return: float, score: float) -> None:
    reference = make_environment(name).config.d4rl
    assert reference is not None and reference.score(mean_return) == pytest.approx(score, abs=1e-4)


def test_other_tasks_have_no_d4rl_score() -> None:
    of_d4rl = {"halfcheetah", "walker2d", "hopper", "ant"}
    assert {name for name in NAMES if make_environment(name).config.d4rl is not None} == of_d4rl


def test_commands_span_the_range(pair: Pair) -> None:
    environment = pair[0]
    ends = environment.commands(np.stack([-np.ones(environment.act_dim), np.ones(environment.act_dim)]))
    np.testing.assert_allclose(ends, [environment.action_low, environment.action_high], atol=1e-12)


def test_starts_are_spread_as_the_reset_noise_says() -> None:
    states = make_environment("halfcheetah").initial_states(np.random.default_rng(0), 4000)
    # Uniform on [-0.1, 0.1] has standard deviation 0.2 / sqrt(12) = 0.0577; the velocities' is 0.1 itself.
    assert states[:, 1:10].std() == pytest.approx(0.0577, abs=0.001)
    assert states[:, 10:].std() == pytest.approx(0.1, abs=0.002)
    assert abs(states[:, 1:10]).max() <= 0.1


def test_model_is_a_fresh_copy() -> None:
    environment = make_environment("halfcheetah")
    environment.model().body_mass[:] = 0
    assert environment.model().body_mass.sum() == pytest.approx(14.0)


def test_unknown_environment_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no environment 'cheetah'.*halfcheetah, .*hopper, .*walker2d"):
        make_environment("cheetah")
