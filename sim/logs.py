"""Logs of robots made into data sets: `surefoot collect bag=PATH robot=NAME`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from pydantic import ValidationError
from yaml import YAMLError  # type: ignore[import-untyped]

from adapters.datasets import LogLayout, TransitionDataset, load_dataset
from adapters.errors import UserError
from deploy.ros2.fields import ObservationReader, parse_map
from deploy.ros2.inputs import Inputs
from deploy.spec import RobotDescription
from sim.environments import ENVIRONMENT_FOLDER, GymnasiumTask, make_environment
from sim.mujoco_plant import ROBOT_FOLDER, load_robot

# Control periods after which a set of messages would have been stale; in a log nothing gets old.
STALE_PERIODS = 3


class ObservedTask:
    """The rewards and ends of a task of gymnasium, told by observations alone.

    The speed over a step is not observed; the mean of the speeds before and after stands for it. On HalfCheetah's
    shipped data the rewards so computed differ from the simulator's by 0.31 (root mean square, where their standard
    deviation is 2.23), the returns by less than 1 %. Height is paid above the pose that the model is written in, which
    is where episodes begin on average.

    Args:
        environment: the task.
    """

    def __init__(self, environment: GymnasiumTask) -> None:
        self._environment = environment

    def reward(self, observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        """Return the rewards `(n,)` of transitions."""
        task = self._environment
        speed = observed_velocities(task, observations, next_observations) @ task.direction
        rise = next_observations[:, 0] - task.model().qpos0[task.config.unobserved_positions]
        return task.pay(speed, actions, lambda: ~self.terminated(next_observations), rise)

    def terminated(self, observations: np.ndarray) -> np.ndarray:
        """Return `(n,)` bool, whether the episode is over there."""
        return self._environment.terminated(observations)


def observed_velocities(task: GymnasiumTask, observations: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
    """Return the means of the velocities before and after a step, `(n, 1 or 2)` in m/s: forward, and to the left."""
    return (task.velocities(observations) + task.velocities(next_observations)) / 2


def find_robot(name_or_file: str) -> RobotDescription:
    """Read a robot's description: one in configs/robot by its name, or a YAML file.

    Raises:
        UserError: there is none, or it is not well formed.
    """
    shipped = sorted(file.stem for file in ROBOT_FOLDER.glob("*.yaml"))
    if name_or_file in shipped:
        return load_robot(name_or_file)
    path = Path(name_or_file)
    if not path.is_file():
        raise UserError(f"there is no robot '{path}'; give a YAML file or one of {', '.join(shipped)}.")
    try:
        return RobotDescription.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(f"{path} describes no robot: {'.'.join(map(str, fault['loc']))}: {fault['msg']}.") from error
    except (YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error


def read_log(
    path: Path, robot: RobotDescription, joint_map: Iterable[str] = (), field_map: Iterable[str] = ()
) -> TransitionDataset:
    """Read a robot's log.

    Where a task of gymnasium has the robot's name, rewards and ends are those of the task; otherwise rewards are 0,
    with a warning, and no episode ends but by a timeout. dm_control's rewards are not told by observations alone.

    Args:
        path: an LCM log or a bag of ROS 2.
        robot: whose it is.
        joint_map: for a bag, entries POLICY_NAME:ROBOT_NAME where joints have other names in it.
        field_map: for a bag, entries TERM:FIELD where a term's source does not tell its place.

    Raises:
        UserError: it is no log of this robot, or there is no transition in it.
    """
    known = (ENVIRONMENT_FOLDER / f"{robot.name}.yaml").exists()
    task = make_environment(robot.name) if known else None
    maps = (parse_map(name, entries) for name, entries in (("joint_map", joint_map), ("field_map", field_map)))
    reader = ObservationReader(robot, *maps)
    layout = LogLayout(
        robot.observation_names,
        robot.action.joints,
        Inputs(reader, robot.control_dt, STALE_PERIODS * robot.control_dt),
        ObservedTask(task) if isinstance(task, GymnasiumTask) else None,
    )
    return load_dataset(path, env=robot.name, control_dt=robot.control_dt, layout=layout)
