"""`surefoot collect`: a data set of behaviour policies rolled out in MuJoCo, many at once, or of a robot's log."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol

import mujoco
import numpy as np
import onnxruntime
from omegaconf import DictConfig

from adapters.command import command
from adapters.datasets import Metadata, TransitionDataset, save_npz
from adapters.errors import UserError
from adapters.progress import MoveBar, progress_bar
from sim.environments import Environment, make_environment
from sim.logs import find_robot, read_log
from sim.plant import BatchedPlant

# Hydra would take it for a config group, because a folder of that name lies in configs/.
ALIASES = {"robot=": "description="}

EPISODE_STEPS = 1000
SNAPSHOTS = resources.files("sim.behaviour")

# D4RL's recipes (arXiv 2004.07219): the policies that a recipe takes in turn, an equal share of the episodes each,
# named by how many steps they were trained for. Policy 0 acts at random.
RECIPES = {
    "random": (0,),
    "medium": (125_000,),
    "mixed": (0, 25_000, 50_000, 75_000, 100_000, 125_000),
    "medium-expert": (125_000, 300_000),
}


class Policy(Protocol):
    """A behaviour policy whose randomness is drawn ahead, so that an episode's noise is its own."""

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Return the noise of one episode, `(EPISODE_STEPS, act_dim)`."""

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return actions `(n, act_dim)` float32 for observations `(n, obs_dim)` and noise `(n, act_dim)`."""


class UniformPolicy:
    """Actions drawn uniformly from the actuators' range."""

    def __init__(self, environment: Environment) -> None:
        self._low, self._high = environment.action_low, environment.action_high

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw the actions themselves."""
        return generator.uniform(self._low, self._high, (EPISODE_STEPS, len(self._low)))

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the drawn actions, whatever was observed."""
        return noise.astype(np.float32)


class SnapshotPolicy:
    """A SAC policy as it was after some steps of training: action = tanh(mean + exp(log_std) * noise).

    Args:
        environment: the task that it was trained in.
        trained_steps: how long.
    """

    def __init__(self, environment: Environment, trained_steps: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = (SNAPSHOTS / f"{environment.name}-sac-{trained_steps}.onnx").read_bytes()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._act_dim = environment.act_dim

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw standard normal noise."""
        return generator.standard_normal((EPISODE_STEPS, self._act_dim))

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Sample actions with the noise."""
        mean, log_std = self._session.run(["mean", "log_std"], {"obs": observations.astype(np.float32)})
        return np.tanh(mean + np.exp(log_std) * noise).astype(np.float32)


def collect(
    recipe: str,
    steps: int,
    seed: int,
    env: str = "halfcheetah",
    episodes_in_parallel: int = 50,
    threads: int = 1,
) -> TransitionDataset:
    """Roll a recipe's policies out in episodes of `EPISODE_STEPS` steps, each of which ends in a timeout.

    Start state and noise of an episode depend on the seed and its place in the data alone; how many episodes run side
    by side can only change how the policy's arithmetic rounds.

    Args:
        recipe: a key of `RECIPES`.
        steps: transitions in all, a whole number of episodes, at least one for each policy of the recipe.
        seed: seeds start states and noise.
        env: environment, one that policies are shipped for.
        episodes_in_parallel: how many episodes are simulated side by side.
        threads: how many threads step the simulator; the result does not depend on it.

    Raises:
        UserError: a setting is not possible.
    """
    schedule = policy_schedule(recipe, steps)
    _check_env(env)
    environment = make_environment(env)
    policies: dict[int, Policy] = {
        trained: SnapshotPolicy(environment, trained) if trained else UniformPolicy(environment)
        for trained in RECIPES[recipe]
    }
    generators = np.random.default_rng(seed).spawn(len(schedule))
    batches = []
    with progress_bar(f"collecting {recipe}", steps) as move:
        for start in range(0, len(schedule), episodes_in_parallel):
            rows = slice(start, start + episodes_in_parallel)
            acting = [policies[trained] for trained in schedule[rows]]
            batches.append(_roll_out(environment, acting, generators[rows], threads, move, start * EPISODE_STEPS))
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    source = (
        f"surefoot collect env={env} recipe={recipe} steps={steps} seed={seed} "
        f"episodes_in_parallel={episodes_in_parallel}, {environment.gym_id}, mujoco {mujoco.__version__}"
    )
    metadata = Metadata(env, environment.control_dt, environment.observation_names, environment.action_names, source)
    return TransitionDataset.from_arrays(arrays, metadata, file="the collected data")


def policy_schedule(recipe: str, steps: int) -> list[int]:
    """Return the policy of every episode, as in `RECIPES`: equal consecutive shares.

    Raises:
        UserError: there is no such recipe, or the steps are not whole episodes, one for each policy at least.
    """
    if recipe not in RECIPES:
        raise UserError(f"there is no recipe '{recipe}'; choose one of {', '.join(RECIPES)}.")
    stages = RECIPES[recipe]
    episodes, rest = divmod(steps, EPISODE_STEPS)
    if rest or episodes < len(stages):
        raise UserError(
            f"steps={steps} does not do for recipe={recipe}; give a multiple of {EPISODE_STEPS} that is at least "
            f"{EPISODE_STEPS * len(stages)}."
        )
    return [stages[episode * len(stages) // episodes] for episode in range(episodes)]


def _check_env(env: str) -> None:
    """Refuse an environment that no behaviour policies are shipped for."""
    shipped = sorted({file.name.partition("-sac-")[0] for file in SNAPSHOTS.iterdir() if "-sac-" in file.name})
    if env not in shipped:
        raise UserError(f"no behaviour policies are shipped for env={env}; choose env={' or env='.join(shipped)}.")


def _roll_out(
    environment: Environment,
    policies: Sequence[Policy],
    generators: Sequence[np.random.Generator],
    threads: int,
    move: MoveBar,
    done: int,
) -> dict[str, np.ndarray]:
    """Run one episode for every policy in the list, side by side, and return the rows as arrays.

    The progress bar moves on from `done`, the transitions made before.
    """
    episodes, obs_dim = len(policies), environment.obs_dim
    arrays = {
        "observations": np.empty((episodes, EPISODE_STEPS, obs_dim), np.float32),
        "actions": np.empty((episodes, EPISODE_STEPS, environment.act_dim), np.float32),
        "rewards": np.empty((episodes, EPISODE_STEPS), np.float32),
        "next_observations": np.empty((episodes, EPISODE_STEPS, obs_dim), np.float32),
        "terminals": np.empty((episodes, EPISODE_STEPS), bool),
        "timeouts": np.zeros((episodes, EPISODE_STEPS), bool),
    }
    states = np.concatenate([environment.initial_states(generator, 1) for generator in generators])
    noise = np.stack([policy.draw(generator) for policy, generator in zip(policies, generators, strict=True)])
    groups = [(policy, [i for i, p in enumerate(policies) if p is policy]) for policy in dict.fromkeys(policies)]
    with BatchedPlant(environment, [environment.model()] * episodes, threads) as plant:
        observations = plant.reset(states=states)
        for step in range(EPISODE_STEPS):
            actions = arrays["actions"][:, step]
            for policy, rows in groups:
                actions[rows] = policy.act(observations[rows], noise[rows, step])
            arrays["observations"][:, step] = observations
            observations, arrays["rewards"][:, step], arrays["terminals"][:, step] = plant.step(actions)
            arrays["next_observations"][:, step] = observations
            move(done + (step + 1) * episodes)
    arrays["timeouts"][:, -1] = ~arrays["terminals"][:, -1]
    return {name: array.reshape(episodes * EPISODE_STEPS, *array.shape[2:]) for name, array in arrays.items()}


@command("collect")
def _collect(config: DictConfig) -> None:
    """Collect a data set, write it and say what it holds."""
    output = Path(str(config.output))
    if output.suffix != ".npz" or output.is_dir():
        raise UserError(f"output={output} is not the name of an .npz file; choose one, for example output=data.npz.")
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        dataset = _rolled_out(config) if config.bag is None else _logged(config)
    save_npz(dataset, output)
    returns = dataset.episode_returns()
    print(f"rows         {len(dataset)}")
    print(f"episodes     {len(returns)}")
    print(f"mean return  {returns.mean():.1f} (from {returns.min():.1f} to {returns.max():.1f})")
    print(f"file         {output}")
    print(f"SHA-256      {dataset.metadata.sha256}")
    for note in notes:
        print(f"note         {note.message}")


def _rolled_out(config: DictConfig) -> TransitionDataset:
    """Collect in MuJoCo."""
    for name, least in (("steps", 1), ("seed", 0), ("episodes_in_parallel", 1), ("threads", 1)):
        if type(config[name]) is not int or config[name] < least:
            raise UserError(f"{name}={config[name]} is not possible; give a whole number of at least {least}.")
    return collect(
        recipe=str(config.recipe),
        steps=config.steps,
        seed=config.seed,
        env=config.env.name,
        episodes_in_parallel=config.episodes_in_parallel,
        threads=config.threads,
    )


def _logged(config: DictConfig) -> TransitionDataset:
    """Read a robot's log."""
    robot = find_robot(str(config.description))
    return read_log(Path(str(config.bag)), robot, config.joint_map, config.field_map)


def main() -> None:
    """Run the command."""
    for name, alias in ALIASES.items():
        sys.argv[1:] = [alias + a.removeprefix(name) if a.startswith(name) else a for a in sys.argv[1:]]
    _collect()


if __name__ == "__main__":
    main()
