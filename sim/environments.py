"""Simulated tasks as batched numpy functions: start states, observations, rewards, ends, for many robots at once.

The physics is elsewhere (sim/plant.py); here is what gymnasium adds to it. dm_control's tasks are in
sim/dm_control_tasks.py. A test holds every task equal to its original step by step.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium.envs.mujoco
import mujoco
import numpy as np
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict

import configs
from adapters.errors import UserError
from sim.terminations import TERMINATIONS

ENVIRONMENT_FOLDER = Path(configs.__path__[0]) / "env"
FULL_PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS


class Behaviour(BaseModel):
    """Which of a task's shipped behaviour policies is what in D4RL's recipes, by the control steps of its training.

    Attributes:
        medium: the policy that `mixed` data goes up to.
        expert: a better one, the other half of `medium-expert` data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    medium: int
    expert: int


class ReferenceReturns(BaseModel):
    """D4RL's reference returns of a task, between which its scores go from 0 to 100 (arXiv 2004.07219, appendix B).

    Attributes:
        random: mean return of random actions.
        expert: mean return of D4RL's expert.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    random: float
    expert: float

    def score(self, mean_return: float) -> float:
        """Return D4RL's normalised score, 100 (return - random) / (expert - random)."""
        return 100.0 * (mean_return - self.random) / (self.expert - self.random)


class EnvironmentConfig(BaseModel):
    """What every `configs/env/NAME.yaml` holds; the meaning of each key stands in halfcheetah.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    robot: str | None = None
    termination: Literal["never", "hopper", "walker2d", "ant"]
    healthy_reward: float = 0.0
    yardstick_return: float | None
    behaviour: Behaviour | None
    d4rl: ReferenceReturns | None = None


class GymnasiumConfig(EnvironmentConfig):
    """What it holds besides for a task of gymnasium."""

    gym_id: str
    gym_options: dict[str, Any] = {}
    xml: str
    frame_skip: int
    unobserved_positions: int
    control_cost: float
    heading: float = 0.0
    speed_cap: float | None = None
    height_reward: float = 0.0
    observes_height: bool = False
    velocity_clip: float | None
    reset_noise: float
    reset_velocity_noise: Literal["normal", "uniform"]


@dataclass(frozen=True)
class Environment(ABC):
    """One task; n is the number of robots handled at once.

    A state is MuJoCo's full physics state, `(n, 1 + nq + nv + na)` float64: time in s, positions, velocities (m, rad
    and their rates), activations of the actuators. Beside it stand the readings of the model's sensors,
    `(n, nsensordata)`, for the tasks that look at them.

    Attributes:
        config: the task's constants.
        frame_skip: physics steps in one control step.
        control_dt: control period in s.
        observation_names: one name for each number, in observation order.
        action_names: actuator names in action order.
        action_low: `(act_dim,)`, the lowest command that the actuators follow.
        action_high: `(act_dim,)`, the highest.
    """

    config: EnvironmentConfig
    frame_skip: int
    control_dt: float
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: np.ndarray
    action_high: np.ndarray
    _spec: mujoco.MjSpec
    _model: mujoco.MjModel

    @property
    def name(self) -> str:
        """The name of the task in configs/env."""
        return self.config.name

    @property
    def robot(self) -> str:
        """The name of its robot in configs/robot; several tasks may have the same."""
        return self.config.robot or self.config.name

    @property
    @abstractmethod
    def task_id(self) -> str:
        """What the task is called where it comes from."""

    @property
    @abstractmethod
    def reads_sensors(self) -> bool:
        """Whether `observe` and `reward` look at the readings of the model's sensors."""

    @property
    def d4rl_note(self) -> str:
        """What a score of D4RL's stands for here."""
        return (
            "100 (return - random) / (expert - random), with D4RL's reference returns; these are of an older version "
            f"of the task than {self.task_id}, so that scores compare roughly"
        )

    @property
    def obs_dim(self) -> int:
        """Size of an observation."""
        return len(self.observation_names)

    @property
    def act_dim(self) -> int:
        """Size of an action."""
        return len(self.action_names)

    def spec(self) -> mujoco.MjSpec:
        """Return a fresh copy of the task's original model in the form that it is compiled from."""
        return self._spec.copy()

    def model(self) -> mujoco.MjModel:
        """Return a fresh copy of the task's original MuJoCo model."""
        return copy.copy(self._model)

    def commands(self, actions: np.ndarray) -> np.ndarray:
        """Return the commands `(..., act_dim)` float64 of actions in [-1, 1], the ends of the commands' range."""
        return 0.5 * (self.action_low + self.action_high) + 0.5 * (self.action_high - self.action_low) * actions

    @abstractmethod
    def initial_states(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Draw start states `(n, nstate)` as the original does."""

    @abstractmethod
    def observe(self, states: np.ndarray, sensors: np.ndarray | None = None) -> np.ndarray:
        """Return the observations `(n, obs_dim)` of the states `(n, nstate)`.

        Args:
            states: the states.
            sensors: `(n, nsensordata)` there; may be left out where the task reads none.
        """

    def states_of(self, observations: np.ndarray) -> np.ndarray:
        """Return states `(n, nstate)` that observations `(n, obs_dim)` are of, at the origin of what is not seen.

        Raises:
            UserError: an observation of this task does not tell the state.
        """
        raise UserError(
            f"an observation of the environment '{self.name}' does not tell the simulator's state; choose one of "
            "gymnasium's."
        )

    @abstractmethod
    def reward(
        self,
        states: np.ndarray,
        actions: np.ndarray,
        next_states: np.ndarray,
        next_sensors: np.ndarray | None = None,
        starts: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the original's rewards `(n,)`.

        Args:
            states: `(n, nstate)` before the step.
            actions: `(n, act_dim)` as sent.
            next_states: `(n, nstate)` after the step.
            next_sensors: `(n, nsensordata)` after the step; may be left out where the task reads none.
            starts: `(n, nstate)` in which the episodes began; may be left out where the task does not look back.
        """

    def terminated(self, observations: np.ndarray) -> np.ndarray:
        """Return `(n,)` bool, whether the episode is over at the observations `(n, obs_dim)`."""
        return TERMINATIONS[self.config.termination](observations)


@dataclass(frozen=True)
class GymnasiumTask(Environment):
    """A task of gymnasium, or another task of its robot; the observation leaves out time and place in the plane.

    Speed and height in the reward are those of the position itself. Gymnasium's Ant, and the authors' code of
    halfcheetah-jump and ant-angle, take the torso's frame, which lags behind by part of a physics step; over an episode
    the two sum up to the same.
    """

    config: GymnasiumConfig

    @property
    def is_gymnasiums(self) -> bool:
        """Whether gymnasium itself observes and pays like this, and not only the robot is gymnasium's."""
        own = ("heading", "speed_cap", "height_reward", "observes_height")
        return all(getattr(self.config, name) == GymnasiumConfig.model_fields[name].default for name in own)

    @property
    def task_id(self) -> str:
        """The task's id in gymnasium, or its own name and the id of what its robot is from."""
        return self.config.gym_id if self.is_gymnasiums else f"{self.name} on {self.config.gym_id}"

    @property
    def reads_sensors(self) -> bool:
        """The state says all."""
        return False

    @property
    def direction(self) -> np.ndarray:
        """The direction that is paid for, as a unit vector along the unobserved positions."""
        heading = np.deg2rad(self.config.heading)
        return np.array([np.cos(heading), np.sin(heading)])[: self.config.unobserved_positions]

    def initial_states(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Draw start states with gymnasium's reset noise; for n = 1 they are those that gymnasium itself draws.

        Args:
            generator: the source of the noise.
            n: how many.

        Returns:
            `(n, nstate)`.
        """
        nq, nv, noise = self._model.nq, self._model.nv, self.config.reset_noise
        states = np.zeros((n, mujoco.mj_stateSize(self._model, FULL_PHYSICS)))
        states[:, 1 : 1 + nq] = self._model.qpos0 + generator.uniform(-noise, noise, (n, nq))
        if self.config.reset_velocity_noise == "normal":
            states[:, 1 + nq : 1 + nq + nv] = noise * generator.standard_normal((n, nv))
        else:
            states[:, 1 + nq : 1 + nq + nv] = generator.uniform(-noise, noise, (n, nv))
        return states

    def observe(self, states: np.ndarray, sensors: np.ndarray | None = None) -> np.ndarray:
        """Return the observations `(n, obs_dim)` of the states `(n, nstate)`."""
        skipped, positions = self.config.unobserved_positions, self._model.nq - self.config.unobserved_positions
        observations = states[:, 1 + skipped : 1 + self._model.nq + self._model.nv].copy()
        clip = self.config.velocity_clip
        if clip is not None:
            velocities = observations[:, positions:]
            np.clip(velocities, -clip, clip, out=velocities)
        if self.config.observes_height:
            height = self.torso_height(observations)[:, None]
            return np.concatenate([observations[:, :positions], height, observations[:, positions:]], 1)
        return observations

    def torso_height(self, observations: np.ndarray) -> np.ndarray:
        """Return how high above the ground the torso's frame is, `(n,)` in m; the first observed position tells it."""
        at_zero = self._model.body("torso").pos[2] - self._model.qpos0[self.config.unobserved_positions]
        return at_zero + observations[:, 0]

    def velocities(self, observations: np.ndarray) -> np.ndarray:
        """Return the observed velocities along the unobserved positions, `(n, unobserved_positions)` in m/s."""
        first = self.obs_dim - self._model.nv
        return observations[:, first : first + self.config.unobserved_positions]

    def states_of(self, observations: np.ndarray) -> np.ndarray:
        """Return the states `(n, nstate)` that the observations `(n, obs_dim)` are of, at the origin of the plane.

        A velocity that was clipped stays as it was seen.
        """
        if self.config.observes_height:
            observations = np.delete(observations, self._model.nq - self.config.unobserved_positions, axis=1)
        states = np.zeros((len(observations), mujoco.mj_stateSize(self._model, FULL_PHYSICS)))
        first = 1 + self.config.unobserved_positions
        states[:, first : first + observations.shape[1]] = observations
        return states

    def reward(
        self,
        states: np.ndarray,
        actions: np.ndarray,
        next_states: np.ndarray,
        next_sensors: np.ndarray | None = None,
        starts: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the task's reward (see `pay`), with the speed of the position over the whole step."""
        height = 1 + self.config.unobserved_positions
        velocities = (next_states[:, 1:height] - states[:, 1:height]) / self.control_dt
        rise = np.zeros(len(states))
        if self.config.height_reward:
            assert starts is not None, "this task pays for height above where the episode began"
            rise = next_states[:, height] - starts[:, height]
        return self.pay(velocities @ self.direction, actions, lambda: ~self.terminated(self.observe(next_states)), rise)

    def pay(
        self, speed: np.ndarray, actions: np.ndarray, healthy: Callable[[], np.ndarray], rise: np.ndarray
    ) -> np.ndarray:
        """Return the rewards `(n,)`: gymnasium's, with the further terms that the task may have.

        min(speed, speed_cap) - control_cost |action|^2 + healthy_reward [healthy] + height_reward rise

        A command beyond the range costs what was sent, as in gymnasium.

        Args:
            speed: `(n,)`, along the task's heading, in m/s.
            actions: `(n, act_dim)` as sent.
            healthy: returns `(n,)` bool, whether the step did not end the episode; asked where that is paid.
            rise: `(n,)`, how far above where the episode began the torso is after the step, in m.
        """
        config = self.config
        rewards = speed.copy() if config.speed_cap is None else np.minimum(speed, config.speed_cap)
        rewards -= config.control_cost * np.square(actions).sum(-1)
        if config.healthy_reward:
            rewards += config.healthy_reward * healthy()
        if config.height_reward:
            rewards += config.height_reward * rise
        return rewards


@functools.cache
def make_environment(name: str) -> Environment:
    """Return the task of that name in configs/env.

    Raises:
        UserError: there is no such task.
    """
    path = ENVIRONMENT_FOLDER / f"{name}.yaml"
    known = sorted(file.stem for file in ENVIRONMENT_FOLDER.glob("*.yaml"))
    if name not in known:
        raise UserError(f"there is no environment '{name}'; choose one of {', '.join(known)}.")
    settings = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(settings, dict)
    if "gym_id" in settings:
        return _gymnasium_task(GymnasiumConfig.model_validate(settings))
    with warnings.catch_warnings():
        # dm_control takes a second to import, and warns where there is no display.
        warnings.simplefilter("ignore")
        from sim.dm_control_tasks import DmControlConfig, dm_control_task

        return dm_control_task(DmControlConfig.model_validate(settings))


def _gymnasium_task(config: GymnasiumConfig) -> GymnasiumTask:
    """Build a task from gymnasium's model."""
    spec = mujoco.MjSpec.from_file(str(Path(gymnasium.envs.mujoco.__path__[0]) / "assets" / config.xml))
    model = compile_spec(spec)
    low, high = model.actuator_ctrlrange.T.copy()
    positions = position_names(model)[config.unobserved_positions :] + ["torso_height"] * config.observes_height
    return GymnasiumTask(
        config=config,
        frame_skip=config.frame_skip,
        control_dt=model.opt.timestep * config.frame_skip,
        observation_names=(*positions, *velocity_names(model)),
        action_names=tuple(actuator_names(model)),
        action_low=low,
        action_high=high,
        _spec=spec,
        _model=model,
    )


def compile_spec(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """Compile a model without the complaints about gymnasium's and dm_control's old attributes."""
    with quiet_mujoco(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return spec.compile()


def position_names(model: mujoco.MjModel) -> list[str]:
    """Return a name for each number of qpos: `JOINT_position`, of a free joint its place and its orientation."""
    names = []
    for index in range(model.njnt):
        joint = model.joint(index).name
        if model.jnt_type[index] == mujoco.mjtJoint.mjJNT_FREE:
            names += [f"{joint}_{axis}_position" for axis in "xyz"] + [f"{joint}_{axis}_orientation" for axis in "wxyz"]
        else:
            names.append(f"{joint}_position")
    return names


def velocity_names(model: mujoco.MjModel) -> list[str]:
    """Return a name for each number of qvel: `JOINT_velocity`, of a free joint linear and angular velocity."""
    names = []
    for index in range(model.njnt):
        joint = model.joint(index).name
        if model.jnt_type[index] == mujoco.mjtJoint.mjJNT_FREE:
            names += [f"{joint}_{axis}_{kind}" for kind in ("velocity", "angular_velocity") for axis in "xyz"]
        else:
            names.append(f"{joint}_velocity")
    return names


def actuator_names(model: mujoco.MjModel) -> list[str]:
    """Return the name of every actuator; one without a name goes by the joint that it drives."""
    return [model.actuator(index).name or model.joint(model.actuator_trnid[index, 0]).name for index in range(model.nu)]


@contextlib.contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Keep MuJoCo's warnings off the terminal and out of MUJOCO_LOG.TXT, which it would leave in the working folder."""
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)
