"""A task of dm_control as a robot."""

from __future__ import annotations

import logging
import warnings

import numpy as np

from adapters.errors import UserError
from adapters.robots.simulated_robot import PERIOD_PRECISION, SimulatedRobot


class DmControlRobot(SimulatedRobot):
    """One episode of a dm_control task; the observation's terms are laid end to end.

    Args:
        name: domain and task, for example walker-walk.
        control_dt: control period in s, which must be the task's.
        seed: seed of the start state.

    Raises:
        UserError: there is no such task, or its period is another.
    """

    def __init__(self, name: str, control_dt: float, seed: int) -> None:
        with warnings.catch_warnings():
            # It warns where there is no display, which nothing here needs.
            warnings.simplefilter("ignore")
            from dm_control import suite

        domain, _, task = name.partition("-")
        if (domain, task) not in suite.ALL_TASKS:
            raise UserError(f"dm_control has no task '{name}'; give DOMAIN-TASK, for example walker-walk.")
        # It would report on every old attribute of its models.
        logging.getLogger("absl").setLevel(logging.ERROR)
        flat = {"flat_observation": True}
        self._env = suite.load(domain, task, task_kwargs={"random": seed}, environment_kwargs=flat)
        own = self._env.control_timestep()
        if abs(own - control_dt) > PERIOD_PRECISION:
            raise UserError(
                f"{name} has a control period of {own} s, and the policy acts every {control_dt} s; choose another one."
            )
        start = self._env.reset().observation["observations"]
        super().__init__(start, self._env.action_spec().shape[0], control_dt)

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        step = self._env.step(action)
        return step.observation["observations"], float(step.reward), step.last()

    def close(self) -> None:
        """Free the environment."""
        self._env.close()
