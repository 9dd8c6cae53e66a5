"""Any environment of gymnasium as a task to learn online in, one process and one robot after another.

The Adroit hand (gymnasium-robotics) has names of its own, `adroit-door`, `adroit-pen`, `adroit-hammer` and
`adroit-relocate`, with the sparse rewards of N-PPAC's authors: 1 in every step in which the goal is met, or with
`-binary` after the name 0 in these steps and -1 in the others. The goals are those of gymnasium-robotics, which are
theirs: hinge open by 1.35 rad; pen within 0.075 m and 0.95 in the cosine; nail within 0.01 m; ball within 0.1 m.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np

from adapters.errors import UserError
from deploy.spec import ActionSpec, ObservationTerm, RobotDescription
from sim.environments import ENVIRONMENT_FOLDER, Environment, actuator_names, make_environment, quiet_mujoco
from sim.mujoco_plant import load_robot
from sim.online_robots import Moved, OnlineRobots, PlantRobots
from sim.perturb import NOMINAL, Perturbation

BINARY = "-binary"
# Steps in which the goal is met by which an episode counts as a success, as the authors of the hand's tasks count
# (Rajeswaran et al. 2018, mj_envs).
ADROIT: dict[str, tuple[str, int]] = {
    "adroit-door": ("AdroitHandDoor-v1", 25),
    "adroit-pen": ("AdroitHandPen-v1", 20),
    "adroit-hammer": ("AdroitHandHammer-v1", 25),
    "adroit-relocate": ("AdroitHandRelocate-v1", 25),
}


@dataclass(frozen=True)
class OpenTask:
    """One task of gymnasium.

    Attributes:
        name: by which it is asked for.
        gym_id: its id in gymnasium.
        rewards: the environment's own, or sparse ones by whether the goal is met.
        success_steps: an episode is a success where the goal is met in more steps than that.
        control_dt: control period in s.
        action_low: `(act_dim,)`.
        action_high: `(act_dim,)`.
        obs_dim: size of an observation.
        action_names: in action order.
    """

    name: str
    gym_id: str
    rewards: Literal["own", "zero-one", "binary"]
    success_steps: int
    control_dt: float
    action_low: np.ndarray
    action_high: np.ndarray
    obs_dim: int
    action_names: tuple[str, ...]

    @property
    def act_dim(self) -> int:
        """Size of an action."""
        return len(self.action_names)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """A name for each number of an observation; gymnasium has none."""
        return tuple(f"observation_{i}" for i in range(self.obs_dim))

    def make(self) -> gymnasium.Env:
        """A fresh environment without a time limit; who steps it ends the episode."""
        return _make(self.gym_id)

    def reward(self, own: float, success: bool) -> float:
        """The reward of a step."""
        return {"own": own, "zero-one": float(success), "binary": float(success) - 1.0}[self.rewards]

    def commands(self, actions: np.ndarray) -> np.ndarray:
        """Actions in [-1, 1] in the range of the environment's, float32."""
        middle, half = 0.5 * (self.action_low + self.action_high), 0.5 * (self.action_high - self.action_low)
        return (middle + half * actions).astype(np.float32)

    def robot(self) -> RobotDescription:
        """What a bundle of this task says of its robot, which has no limits that are known."""
        terms = tuple(ObservationTerm(name=name, source="other", unit="1") for name in self.observation_names)
        low, high = (tuple(map(float, bound)) for bound in (self.action_low, self.action_high))
        action = ActionSpec(law="effort", joints=self.action_names, low=low, high=high, unit="1")
        return RobotDescription(name=self.name, observations=terms, action=action, control_dt=self.control_dt)


def _make(gym_id: str) -> gymnasium.Env:
    """Make an environment without a time limit.

    Raises:
        UserError: gymnasium has none of that id.
    """
    # Importing it prints a note on the rewards of tasks that Surefoot pays itself.
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    try:
        with quiet_mujoco():
            return gymnasium.make(gym_id, max_episode_steps=-1, disable_env_checker=True)
    except gymnasium.error.Error as error:
        known = ", ".join(sorted([*(file.stem for file in ENVIRONMENT_FOLDER.glob("*.yaml")), *ADROIT]))
        raise UserError(
            f"there is no environment '{gym_id}'; choose one of {known}, or an id of gymnasium ({error})."
        ) from error


@functools.cache
def find_task(name: str) -> Environment | OpenTask:
    """Return the task of that name in configs/env, of the Adroit hand, or of gymnasium.

    Raises:
        UserError: there is none, or it takes no vector of commands or shows no vector of observations.
    """
    if (ENVIRONMENT_FOLDER / f"{name}.yaml").is_file():
        return make_environment(name)
    known = ADROIT.get(name.removesuffix(BINARY))
    gym_id, steps = known or (name, 0)
    env = _make(gym_id)
    observed, acted = env.observation_space, env.action_space
    box = gymnasium.spaces.Box
    if not (isinstance(observed, box) and isinstance(acted, box) and len(observed.shape) == len(acted.shape) == 1):
        raise UserError(f"{gym_id} has no vectors for observations and actions; choose an environment that does.")
    if not (np.isfinite(acted.low).all() and np.isfinite(acted.high).all()):
        raise UserError(f"the actions of {gym_id} have no bounds; choose an environment whose actions do.")
    model = getattr(env.unwrapped, "model", None)
    names = tuple(actuator_names(model)) if model is not None else ()
    if len({*names}) != acted.shape[0]:
        names = tuple(f"action_{index}" for index in range(acted.shape[0]))
    period = getattr(env.unwrapped, "dt", None) or 1.0 / (env.metadata.get("render_fps") or 1.0)
    env.close()
    return OpenTask(
        name=name,
        gym_id=gym_id,
        rewards="own" if known is None else "binary" if name.endswith(BINARY) else "zero-one",
        success_steps=steps,
        control_dt=float(period),
        action_low=np.asarray(acted.low, dtype=np.float64),
        action_high=np.asarray(acted.high, dtype=np.float64),
        obs_dim=observed.shape[0],
        action_names=names,
    )


def robot_of(task: Environment | OpenTask) -> RobotDescription:
    """The task's own robot."""
    return task.robot() if isinstance(task, OpenTask) else load_robot(task.robot)


def robots_of(task: Environment | OpenTask, count: int, seed: int, world: Perturbation = NOMINAL) -> OnlineRobots:
    """Robots to learn on; a changed world is for tasks of configs/env alone."""
    return OpenRobots(task, count, seed) if isinstance(task, OpenTask) else PlantRobots(task, count, seed, world)


class OpenRobots:
    """Robots of one task of gymnasium, each an environment of its own.

    Every episode has a seed, so that where a robot stands is told by that seed and the actions since: so it is saved,
    whatever the environment holds inside.

    Args:
        task: the task.
        count: how many.
        seed: of the episodes' seeds.
    """

    def __init__(self, task: OpenTask, count: int, seed: int) -> None:
        self.task, self.obs_dim, self.act_dim = task, task.obs_dim, task.act_dim
        self.envs = [task.make() for _ in range(count)]
        self.starts = np.random.default_rng(seed)
        self.seeds = [0] * count
        self.actions: list[list[np.ndarray]] = [[] for _ in range(count)]

    def start(self) -> np.ndarray:
        """Put all of them at starts; returns their observations `(n, obs_dim)`."""
        return self.restart(np.arange(len(self.envs)))

    def step(self, actions: np.ndarray) -> Moved:
        """Let one control period pass under actions `(n, act_dim)` in [-1, 1]."""
        moves = [self._move(lane, action) for lane, action in enumerate(np.asarray(actions, dtype=np.float32))]
        obs, reward, terminated, success = (np.array(values) for values in zip(*moves, strict=True))
        return Moved(obs, reward, terminated, success)

    def _move(self, lane: int, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        obs, own, terminated, _, info = self.envs[lane].step(self.task.commands(action))
        self.actions[lane].append(action)
        success = bool(info.get("success", False))
        return np.asarray(obs, dtype=np.float64), self.task.reward(float(own), success), bool(terminated), success

    def restart(self, lanes: np.ndarray) -> np.ndarray:
        """Put the robots `(m,)` at new starts; returns their observations `(m, obs_dim)`."""
        return np.array([self._begin(int(lane), int(self.starts.integers(2**31))) for lane in lanes])

    def _begin(self, lane: int, seed: int) -> np.ndarray:
        self.seeds[lane], self.actions[lane] = seed, []
        return np.asarray(self.envs[lane].reset(seed=seed)[0], dtype=np.float64)

    def state_dict(self) -> dict[str, Any]:
        """Seeds and actions of the present episodes."""
        lengths = [len(actions) for actions in self.actions]
        flat = [action for actions in self.actions for action in actions]
        rows = np.array(flat, dtype=np.float32).reshape(-1, self.act_dim)
        return {"seeds": self.seeds, "lengths": lengths, "rows": rows, "starts": self.starts.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Live the present episodes again."""
        self.starts.bit_generator.state = state["starts"]
        parts = np.split(np.asarray(state["rows"]), np.cumsum(state["lengths"])[:-1])
        for lane, (seed, actions) in enumerate(zip(state["seeds"], parts, strict=True)):
            self._begin(lane, seed)
            for action in actions:
                self._move(lane, action)

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()


def judge(
    act: Callable[[np.ndarray], np.ndarray], task: OpenTask, episodes: int, seed: int, steps: int
) -> dict[str, float]:
    """Run a deterministic policy for whole episodes.

    Args:
        act: `(batch, obs_dim) -> (batch, act_dim)` in [-1, 1].
        task: the task.
        episodes: how many, run side by side.
        seed: of the starts.
        steps: length of an episode that does not end before.

    Returns:
        `return`, the mean return; and `success`, the share of the episodes in which the goal is met in more than
        `success_steps` steps, where the task has goals.
    """
    robots = OpenRobots(task, episodes, seed)
    obs, alive = robots.start(), np.ones(episodes, dtype=bool)
    returns, met = np.zeros(episodes), np.zeros(episodes)
    for _ in range(steps):
        moved = robots.step(np.clip(act(obs), -1.0, 1.0))
        obs, returns, met = moved.obs, returns + alive * moved.reward, met + alive * moved.success
        alive &= ~moved.terminated
        if not alive.any():
            break
    robots.close()
    figures = {"return": float(returns.mean())}
    return figures if task.rewards == "own" else figures | {"success": float((met > task.success_steps).mean())}
