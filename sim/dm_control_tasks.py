"""dm_control's tasks as batched numpy functions.

Starts, observations and rewards are computed by dm_control's own code. In place of one robot's physics it is given the
readings of n robots: it indexes the first axis, so the robots are along the last one.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
from dm_control import suite
from dm_control.suite import cheetah, common, quadruped, walker

from adapters.errors import UserError
from sim.environments import (
    FULL_PHYSICS,
    Environment,
    EnvironmentConfig,
    actuator_names,
    compile_spec,
    position_names,
    velocity_names,
)


class DmControlConfig(EnvironmentConfig):
    """What `configs/env/NAME.yaml` holds for a task of dm_control."""

    domain: str
    task: str


class Readings(ABC):
    """What a domain's tasks ask of their physics; every array is `(size, n)`, or `(n,)` for one number.

    Args:
        model: the domain's model.
        states: `(n, nstate)`.
        sensors: `(n, nsensordata)`.
    """

    def __init__(self, model: mujoco.MjModel, states: np.ndarray, sensors: np.ndarray) -> None:
        self._model, self._sensors = model, sensors.T
        _, qpos, qvel, act = np.split(states.T, np.cumsum([1, model.nq, model.nv]))
        self.data = SimpleNamespace(qpos=qpos, qvel=qvel, act=act)

    @staticmethod
    @abstractmethod
    def names(model: mujoco.MjModel) -> list[str]:
        """Return the names of the observation's numbers, in order."""

    def sensor(self, name: str) -> np.ndarray:
        """Return a sensor's readings `(size, n)`."""
        sensor = self._model.sensor(name)
        return self._sensors[sensor.adr[0] : sensor.adr[0] + sensor.dim[0]]

    def velocity(self) -> np.ndarray:
        """Return all velocities."""
        return self.data.qvel


class CheetahReadings(Readings):
    """The planar cheetah's."""

    @staticmethod
    def names(model: mujoco.MjModel) -> list[str]:
        """Positions but that along the track, then velocities."""
        return [*position_names(model)[1:], *velocity_names(model)]

    def speed(self) -> np.ndarray:
        """Return the centre of mass's forward speed in m/s."""
        return self.sensor("torso_subtreelinvel")[0]


class WalkerReadings(Readings):
    """The planar walker's."""

    @staticmethod
    def names(model: mujoco.MjModel) -> list[str]:
        """Every body's orientation, the torso's height, then velocities."""
        orientations = [f"{body}_{entry}" for body in _bodies(model) for entry in ("xx", "xz")]
        return [*orientations, "torso_height", *velocity_names(model)]

    def orientations(self) -> np.ndarray:
        """Return the forward components of every body's x and z axes."""
        axes = [self.sensor(f"{body}_{axis}")[0] for body in _bodies(self._model) for axis in ("x_axis", "z_axis")]
        return np.stack(axes)

    def torso_upright(self) -> np.ndarray:
        """Return the upward component of the torso's z axis."""
        return self.sensor("torso_z_axis")[2]

    def torso_height(self) -> np.ndarray:
        """Return the torso's height in m."""
        return self.sensor("torso_place")[2]

    def horizontal_velocity(self) -> np.ndarray:
        """Return the centre of mass's forward speed in m/s."""
        return self.sensor("torso_subtreelinvel")[0]


IMU = ("imu_accel", "imu_gyro")
TOES = ("front_left", "front_right", "back_right", "back_left")
FORCE_TORQUE = tuple(f"{kind}_toe_{toe}" for kind in ("force", "torque") for toe in TOES)


class QuadrupedReadings(Readings):
    """The quadruped's."""

    @staticmethod
    def names(model: mujoco.MjModel) -> list[str]:
        """Joints, actuators, the torso's velocity, how upright it is, its IMU, forces and torques at the toes."""
        joints = [*position_names(model)[7:], *velocity_names(model)[6:]]
        activations = [f"{actuator}_activation" for actuator in actuator_names(model)]
        torso = [*(f"torso_velocity_{axis}" for axis in "xyz"), "torso_upright"]
        return [*joints, *activations, *torso, *(f"{sensor}_{axis}" for sensor in IMU + FORCE_TORQUE for axis in "xyz")]

    def egocentric_state(self) -> np.ndarray:
        """Return positions and velocities of the joints but the root, and the actuators' activations."""
        return np.concatenate([self.data.qpos[7:], self.data.qvel[6:], self.data.act])

    def torso_velocity(self) -> np.ndarray:
        """Return the torso's velocity in m/s in its own frame."""
        return self.sensor("velocimeter")

    def torso_upright(self) -> np.ndarray:
        """Return the upward component of the torso's z axis."""
        return self.sensor("torso_z_axis")[2]

    def imu(self) -> np.ndarray:
        """Return acceleration in m/s^2 and angular velocity in rad/s."""
        return np.concatenate([self.sensor(name) for name in IMU])

    def force_torque(self) -> np.ndarray:
        """Return the inverse hyperbolic sines of forces in N and torques in N m at the toes."""
        return np.arcsinh(np.concatenate([self.sensor(name) for name in FORCE_TORQUE]))


def _bodies(model: mujoco.MjModel) -> list[str]:
    return [model.body(index).name for index in range(1, model.nbody)]


@dataclass(frozen=True)
class Domain:
    """A domain of dm_control.

    Attributes:
        readings: what its tasks ask of their physics.
        source: returns its model as XML, and the files that this includes.
        framed: bodies that get sensors of their frame, whose axes dm_control reads from the physics itself.
    """

    readings: type[Readings]
    source: Callable[[], tuple[bytes, dict[str, bytes]]]
    framed: tuple[str, ...] = ()

    def spec(self) -> mujoco.MjSpec:
        """Return the model with its sensors."""
        xml, included = self.source()
        spec = mujoco.MjSpec.from_string(xml.decode(), include=included)
        kinds = {
            "x_axis": mujoco.mjtSensor.mjSENS_FRAMEXAXIS,
            "z_axis": mujoco.mjtSensor.mjSENS_FRAMEZAXIS,
            "place": mujoco.mjtSensor.mjSENS_FRAMEPOS,
        }
        for body in self.framed:
            for name, kind in kinds.items():
                spec.add_sensor(name=f"{body}_{name}", type=kind, objtype=mujoco.mjtObj.mjOBJ_XBODY, objname=body)
        return spec


LEGS = tuple(f"{side}_{part}" for side in ("right", "left") for part in ("thigh", "leg", "foot"))
DOMAINS = {
    "cheetah": Domain(CheetahReadings, cheetah.get_model_and_assets),
    "walker": Domain(WalkerReadings, walker.get_model_and_assets, framed=("torso", *LEGS)),
    # The floor's size is that of the walk task.
    "quadruped": Domain(
        QuadrupedReadings, lambda: (quadruped.make_model(floor_size=10.0), common.ASSETS), framed=("torso",)
    ),
}


@dataclass(frozen=True)
class DmControlTask(Environment):
    """A task of dm_control; no observation ends its episode."""

    config: DmControlConfig
    _original: Any
    _random: np.random.RandomState

    @property
    def task_id(self) -> str:
        """The task's name in dm_control, for example dm_control/walker-walk."""
        return f"dm_control/{self.config.domain}-{self.config.task}"

    @property
    def reads_sensors(self) -> bool:
        """Every task's reward or observation does."""
        return True

    def initial_states(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Draw start states `(n, nstate)`: dm_control's own, for seeds that the generator draws."""
        states = []
        for seed in generator.integers(2**32, size=n):
            self._random.seed(seed)
            self._original.reset()
            states.append(self._original.physics.get_state(sig=FULL_PHYSICS))
        return np.stack(states)

    def observe(self, states: np.ndarray, sensors: np.ndarray | None = None) -> np.ndarray:
        """Return the observations `(n, obs_dim)` of the states `(n, nstate)` under the sensors `(n, nsensordata)`."""
        terms = self._original.task.get_observation(self._readings(states, sensors))
        return np.concatenate([np.atleast_2d(term) for term in terms.values()]).T.copy()

    def reward(
        self,
        states: np.ndarray,
        actions: np.ndarray,
        next_states: np.ndarray,
        next_sensors: np.ndarray | None = None,
        starts: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return dm_control's rewards `(n,)`, each from 0 to 1."""
        return self._original.task.get_reward(self._readings(next_states, next_sensors))

    def _readings(self, states: np.ndarray, sensors: np.ndarray | None) -> Readings:
        assert sensors is not None, "this task reads its sensors"
        return DOMAINS[self.config.domain].readings(self._model, states, sensors)


def dm_control_task(config: DmControlConfig) -> DmControlTask:
    """Build a task from dm_control's.

    Raises:
        UserError: there is no such task, or its domain is not among `DOMAINS`.
    """
    if config.domain not in DOMAINS or (config.domain, config.task) not in suite.ALL_TASKS:
        raise UserError(
            f"dm_control's task {config.domain}-{config.task} is not known here; see sim/dm_control_tasks.py."
        )
    # It would report on every old attribute of its models.
    logging.getLogger("absl").setLevel(logging.ERROR)
    random = np.random.RandomState()
    original = suite.load(config.domain, config.task, task_kwargs={"random": random})
    spec = DOMAINS[config.domain].spec()
    model = compile_spec(spec)
    low, high = model.actuator_ctrlrange.T.copy()
    return DmControlTask(
        config=config,
        frame_skip=round(original.control_timestep() / model.opt.timestep),
        control_dt=original.control_timestep(),
        observation_names=tuple(DOMAINS[config.domain].readings.names(model)),
        action_names=tuple(actuator_names(model)),
        action_low=low,
        action_high=high,
        _spec=spec,
        _model=model,
        _original=original,
        _random=random,
    )
