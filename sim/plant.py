"""Many robots with different dynamics, stepped at once on a pool of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import mujoco.rollout
import numpy as np

from sim.environments import FULL_PHYSICS, Environment, quiet_mujoco


class BatchedPlant:
    """n copies of one task, each with its own MuJoCo model.

    Every control step starts the constraint solver from a zero warm start, so that a step is a function of state and
    action alone: it equals `mj_step` with `qacc_warmstart` zeroed before each control step.

    Args:
        environment: the task.
        models: n models of it; they may differ in parameters, not in sizes.
        threads: how many threads step them; 1 stays on the calling thread.
    """

    def __init__(self, environment: Environment, models: Sequence[mujoco.MjModel], threads: int = 1) -> None:
        self.environment = environment
        self.models = list(models)
        n, steps, model = len(self.models), environment.frame_skip, self.models[0]
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._states = np.zeros((n, mujoco.mj_stateSize(model, FULL_PHYSICS)))
        # With skip_checks nothing is tiled or converted: every array has its full shape, C order and float64.
        self._controls = np.zeros((n, steps, model.nu))
        self._trajectory = np.zeros((n, steps, self._states.shape[1]))
        self._sensors = np.zeros((n, steps, model.nsensordata))

    def __len__(self) -> int:
        return len(self.models)

    def __enter__(self) -> BatchedPlant:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def states(self) -> np.ndarray:
        """A copy of the full physics states, `(n, nstate)`."""
        return self._states.copy()

    @states.setter
    def states(self, states: np.ndarray) -> None:
        self._states[:] = states

    def observe(self) -> np.ndarray:
        """Return the observations `(n, obs_dim)` of the present states."""
        return self.environment.observe(self._states)

    def reset(self, generator: np.random.Generator | None = None, states: np.ndarray | None = None) -> np.ndarray:
        """Start every robot anew.

        Args:
            generator: draws start states with the task's reset noise; left out where `states` are given.
            states: `(n, nstate)`.

        Returns:
            Observations `(n, obs_dim)`.

        Raises:
            ValueError: both or neither are given.
        """
        if (generator is None) == (states is None):
            raise ValueError("give either a generator or states")
        if generator is not None:
            states = self.environment.initial_states(generator, len(self))
        self._states[:] = states
        return self.observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hold the actions for one control period.

        Args:
            actions: `(n, act_dim)` in command units; MuJoCo clips what it does to the actuators' range.

        Returns:
            Observations `(n, obs_dim)`, rewards `(n,)` and terminated `(n,)` bool. A robot whose physics diverged,
            which MuJoCo answers by resetting it, gets zero reward and terminated.
        """
        self._controls[:] = np.asarray(actions)[:, None]
        with quiet_mujoco():
            self._pool.rollout(
                self.models,
                self._data,
                self._states,
                self._controls,
                nstep=self.environment.frame_skip,
                skip_checks=True,
                state=self._trajectory,
                sensordata=self._sensors,
            )
        before, self._states = self._states, self._trajectory[:, -1].copy()
        elapsed = self._states[:, 0] - before[:, 0]
        diverged = ~(elapsed > 0.5 * self.environment.control_dt)
        observations = self.observe()
        rewards = self.environment.reward(before, actions, self._states)
        rewards[diverged] = 0.0
        return observations, rewards, self.environment.terminated(observations) | diverged

    def peek(self, actions: np.ndarray) -> np.ndarray:
        """Return the observations `(n, obs_dim)` that the actions would lead to, and leave every robot where it is."""
        present = self._states
        observations, _, _ = self.step(actions)
        self._states = present
        return observations

    def replace_models(self, models: Mapping[int, mujoco.MjModel]) -> None:
        """Change the dynamics of some robots, by index, and leave their states as they are."""
        for index, model in models.items():
            self.models[index] = model

    def close(self) -> None:
        """Stop the threads; the plant cannot step after that."""
        self._pool.close()
