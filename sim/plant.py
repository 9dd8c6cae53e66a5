"""Many robots with different dynamics, stepped at once on a pool of threads."""

from __future__ import annotations

import copy
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

    Attributes:
        starts: `(n, nstate)`, the states in which the episodes began.
    """

    def __init__(self, environment: Environment, models: Sequence[mujoco.MjModel], threads: int = 1) -> None:
        self.environment = environment
        self.models = list(models)
        n, model = len(self.models), self.models[0]
        # MuJoCo's sensors are those of the state before a physics step, so one step more tells those of the last state.
        steps = environment.frame_skip + environment.reads_sensors
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._states = np.zeros((n, mujoco.mj_stateSize(model, FULL_PHYSICS)))
        self.starts = self._states.copy()
        # With skip_checks nothing is tiled or converted: every array has its full shape, C order and float64.
        self._controls = np.zeros((n, steps, model.nu))
        self._control_spec = int(mujoco.mjtState.mjSTATE_CTRL)
        self._forces = np.zeros((n, 6 * model.nbody))
        self._trajectory = np.zeros((n, steps, self._states.shape[1]))
        self._sensors = np.zeros((n, steps, model.nsensordata))
        self._readings = np.zeros((n, model.nsensordata))
        stages = np.repeat(model.sensor_needstage, model.sensor_dim)
        self._acceleration = stages == mujoco.mjtStage.mjSTAGE_ACC

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
        self.restart(np.arange(len(self)), states)

    def observe(self) -> np.ndarray:
        """Return the observations `(n, obs_dim)` of the present states."""
        return self.environment.observe(self._states, self._readings)

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
        return self.restart(np.arange(len(self)), np.asarray(states))

    def restart(self, lanes: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Begin the next episode of some robots and leave the others as they are.

        Args:
            lanes: `(m,)`, which.
            states: `(m, nstate)`.

        Returns:
            Their observations `(m, obs_dim)`.
        """
        self._states[lanes] = self.starts[lanes] = states
        if self.environment.reads_sensors:
            self._readings[lanes] = self._sensors_at_rest(lanes)
        return self.environment.observe(self._states[lanes], self._readings[lanes])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hold the actions for one control period.

        Args:
            actions: `(n, act_dim)` in command units; MuJoCo clips what it does to the actuators' range.

        Returns:
            Observations `(n, obs_dim)`, rewards `(n,)` and terminated `(n,)` bool. A robot whose physics diverged,
            which MuJoCo answers by resetting it, gets zero reward and terminated.
        """
        self._controls[..., : self.models[0].nu] = np.asarray(actions)[:, None]
        with quiet_mujoco():
            self._pool.rollout(
                self.models,
                self._data,
                self._states,
                self._controls,
                control_spec=self._control_spec,
                nstep=self._trajectory.shape[1],
                skip_checks=True,
                state=self._trajectory,
                sensordata=self._sensors,
            )
        last = self.environment.frame_skip - 1
        before, self._states = self._states, self._trajectory[:, last].copy()
        if self.environment.reads_sensors:
            # As in dm_control: accelerations and forces are those under which the last physics step was made.
            self._readings = np.where(self._acceleration, self._sensors[:, last], self._sensors[:, last + 1])
        elapsed = self._states[:, 0] - before[:, 0]
        diverged = ~(elapsed > 0.5 * self.environment.control_dt)
        observations = self.observe()
        rewards = self.environment.reward(before, actions, self._states, self._readings, self.starts)
        rewards[diverged] = 0.0
        return observations, rewards, self.environment.terminated(observations) | diverged

    def peek(self, actions: np.ndarray) -> np.ndarray:
        """Return the observations `(n, obs_dim)` that the actions would lead to, and leave every robot where it is."""
        present = self._states, self._readings
        observations, _, _ = self.step(actions)
        self._states, self._readings = present
        return observations

    def _sensors_at_rest(self, lanes: np.ndarray) -> np.ndarray:
        """Return what sensors read in states that no step has led to: as dm_control's at a reset, with motors off."""
        models = [copy.copy(self.models[lane]) for lane in lanes]
        for model in models:
            model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ACTUATION
        with quiet_mujoco():
            _, sensors = self._pool.rollout(
                models, self._data, self._states[lanes], self._controls[lanes, :1], control_spec=self._control_spec
            )
        return sensors[:, 0]

    def replace_models(self, models: Mapping[int, mujoco.MjModel]) -> None:
        """Change the dynamics of some robots, by index, and leave their states as they are."""
        for index, model in models.items():
            self.models[index] = model

    def push(self, forces: Mapping[int, np.ndarray]) -> None:
        """Let constant external forces act on some robots, by index, from now on.

        Args:
            forces: `(nbody, 6)` each: force in N and torque in N m on each body, along the world's axes, at its centre
                of mass. Zeros take earlier ones away.
        """
        for index, force in forces.items():
            self._forces[index] = force.ravel()
        controls = [self._controls[..., : self.models[0].nu]]
        self._control_spec = int(mujoco.mjtState.mjSTATE_CTRL)
        # MuJoCo is told of forces only where there are any: to hand zeros over costs time.
        if self._forces.any():
            self._control_spec |= int(mujoco.mjtState.mjSTATE_XFRC_APPLIED)
            shape = (*self._controls.shape[:2], self._forces.shape[1])
            controls.append(np.broadcast_to(self._forces[:, None], shape))
        self._controls = np.concatenate(controls, -1)

    def close(self) -> None:
        """Stop the threads; the plant cannot step after that."""
        self._pool.close()
