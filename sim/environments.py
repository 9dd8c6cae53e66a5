"""Gymnasium's MuJoCo tasks as batched numpy functions: start states, observations, rewards, ends.

The physics is elsewhere (sim/plant.py); here is what gymnasium adds to it, for many robots at once. A test holds
every task equal to gymnasium's own step by step.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


class EnvironmentConfig(BaseModel):
    """What `configs/env/NAME.yaml` holds; the meaning of each key stands in halfcheetah.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    gym_id: str
    xml: str
    frame_skip: int
    termination: Literal["never", "hopper", "walker2d", "ant"]
    control_cost: float
    healthy_reward: float
    velocity_clip: float | None
    reset_noise: float
    reset_velocity_noise: Literal["normal", "uniform"]
    yardstick_return: float | None


@dataclass(frozen=True)
class Environment:
    """One task; n is the number of robots handled at once.

    A state is MuJoCo's full physics state, `(n, 1 + nq + nv)` float64: time in s, positions, velocities (m, rad and
    their rates). The observation leaves out time and the forward position.

    Attributes:
        config: the task's constants.
        control_dt: control period in s.
        observation_names: `JOINT_position` and `JOINT_velocity`, in observation order.
        action_names: actuator names in action order.
        action_low: `(act_dim,)`, the lowest command that the actuators follow.
        action_high: `(act_dim,)`, the highest.
    """

    config: EnvironmentConfig
    control_dt: float
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: np.ndarray
    action_high: np.ndarray
    _model: mujoco.MjModel

    @property
    def name(self) -> str:
        """The name of the task in configs/env."""
        return self.config.name

    @property
    def gym_id(self) -> str:
        """The task's id in gymnasium."""
        return self.config.gym_id

    @property
    def frame_skip(self) -> int:
        """Physics steps in one control step."""
        return self.config.frame_skip

    @property
    def obs_dim(self) -> int:
        """Size of an observation."""
        return len(self.observation_names)

    @property
    def act_dim(self) -> int:
        """Size of an action."""
        return len(self.action_names)

    def model(self) -> mujoco.MjModel:
        """Return a fresh copy of the task's original MuJoCo model."""
        return copy.copy(self._model)

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

    def observe(self, states: np.ndarray) -> np.ndarray:
        """Return the observations `(n, obs_dim)` of the states `(n, nstate)`."""
        observations = states[:, 2 : 2 + self.obs_dim].copy()
        clip = self.config.velocity_clip
        if clip is not None:
            velocities = observations[:, self._model.nq - 1 :]
            np.clip(velocities, -clip, clip, out=velocities)
        return observations

    def reward(self, states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> np.ndarray:
        """Return gymnasium's reward: forward speed in m/s, less the cost of control, plus the bonus for being healthy.

        Args:
            states: `(n, nstate)` before the step.
            actions: `(n, act_dim)` as sent; a command beyond the range costs what was sent, as in gymnasium.
            next_states: `(n, nstate)` after the step.

        Returns:
            `(n,)`.
        """
        rewards = (next_states[:, 1] - states[:, 1]) / self.control_dt
        rewards -= self.config.control_cost * np.square(actions).sum(-1)
        if self.config.healthy_reward:
            rewards += self.config.healthy_reward * ~self.terminated(self.observe(next_states))
        return rewards

    def terminated(self, observations: np.ndarray) -> np.ndarray:
        """Return `(n,)` bool, whether the episode is over at the observations `(n, obs_dim)`."""
        return TERMINATIONS[self.config.termination](observations)


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
    config = EnvironmentConfig.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    model = _load_model(Path(gymnasium.envs.mujoco.__path__[0]) / "assets" / config.xml)
    joints = [model.joint(j).name for j in range(model.njnt)]
    names = [f"{joint}_position" for joint in joints[1:]] + [f"{joint}_velocity" for joint in joints]
    low, high = model.actuator_ctrlrange.T.copy()
    return Environment(
        config=config,
        control_dt=model.opt.timestep * config.frame_skip,
        observation_names=tuple(names),
        action_names=tuple(actuator_names(model)),
        action_low=low,
        action_high=high,
        _model=model,
    )


def actuator_names(model: mujoco.MjModel) -> list[str]:
    """Return the name of every actuator; one without a name goes by the joint that it drives."""
    return [model.actuator(index).name or model.joint(model.actuator_trnid[index, 0]).name for index in range(model.nu)]


def _load_model(path: Path) -> mujoco.MjModel:
    """Load a model without the complaints about gymnasium's old attributes."""
    with quiet_mujoco(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mujoco.MjModel.from_xml_path(str(path))


@contextlib.contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Keep MuJoCo's warnings off the terminal and out of MUJOCO_LOG.TXT, which it would leave in the working folder."""
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)
