"""`surefoot collect`: a data set of policies rolled out in MuJoCo, many at once, or of a robot's log."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol, TypeVar

import mujoco
import numpy as np
import onnxruntime
from omegaconf import DictConfig

from adapters.command import command
from adapters.datasets import Metadata, TransitionDataset, check_output, save_dataset
from adapters.errors import UserError
from adapters.progress import MoveBar, progress_bar
from deploy.bundle import Bundle
from sim.environments import Environment, make_environment
from sim.logs import find_robot, read_log
from sim.mujoco_plant import find_world, name_world
from sim.perturbed_plant import PerturbedPlant
from sim.weakening import draw_weakening
from sim.worlds import World, steady_world

# Hydra would take it for a config group, because a folder of that name lies in configs/.
ALIASES = {"robot=": "description="}

EPISODE_STEPS = 1000
SNAPSHOTS = resources.files("sim.behaviour")

Stage = TypeVar("Stage")

RECIPES = ("random", "medium", "mixed", "medium-expert")


# Share of the stretches in which a bundle's policy acts with noise; in the others it acts as on the robot.
NOISY = 0.5


class Policy(Protocol):
    """A behaviour policy whose randomness is drawn ahead, so that an episode's noise is its own."""

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Return the noise of one episode, `(EPISODE_STEPS, act_dim)`."""

    def act(self, observations: np.ndarray, noise: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """Return actions `(n, act_dim)` float32.

        Args:
            observations: `(n, obs_dim)`.
            noise: `(n, act_dim)`, of this step.
            gains: `(n, act_dim)`, what share of the action each motor will get.
        """


class UniformPolicy:
    """Actions drawn uniformly from the actuators' range."""

    def __init__(self, environment: Environment) -> None:
        self._low, self._high = environment.action_low, environment.action_high

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw the actions themselves."""
        return generator.uniform(self._low, self._high, (EPISODE_STEPS, len(self._low)))

    def act(self, observations: np.ndarray, noise: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """Return the drawn actions, whatever was observed."""
        return noise.astype(np.float32)


class SnapshotPolicy:
    """A SAC policy as it was after some steps of training: command = range of tanh(mean + exp(log_std) * noise).

    Args:
        environment: the task, of the robot that it was trained on.
        trained_steps: how long.
    """

    def __init__(self, environment: Environment, trained_steps: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = (SNAPSHOTS / f"{environment.robot}-sac-{trained_steps}.onnx").read_bytes()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._environment = environment

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw standard normal noise."""
        return generator.standard_normal((EPISODE_STEPS, self._environment.act_dim))

    def act(self, observations: np.ndarray, noise: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """Sample actions with the noise."""
        mean, log_std = self._session.run(["mean", "log_std"], {"obs": observations.astype(np.float32)})
        return self._environment.commands(np.tanh(mean + np.exp(log_std) * noise)).astype(np.float32)


class BundlePolicy:
    """A bundle's policy, half of the time with Gaussian noise on its commands.

    One that reads the motors' gains is told those that they will get, another that nothing has changed.

    Args:
        path: the bundle.
        environment: the task.
        noise: standard deviation, as a share of half the commands' range.

    Raises:
        UserError: the bundle is not whole, or its policy is of another robot.
    """

    def __init__(self, path: str, environment: Environment, noise: float) -> None:
        self._bundle, self._environment = Bundle.load(path), environment
        found = self._bundle.manifest.env
        if make_environment(found).robot != environment.robot:
            raise UserError(f"{path} is a bundle for env={found}, not for env={environment.name}; give env={found}.")
        half_range = 0.5 * (environment.action_high - environment.action_low)
        self._scale = noise * half_range

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """Draw what is added to the commands."""
        noise = generator.standard_normal((EPISODE_STEPS, self._environment.act_dim)) * self._scale
        return noise * (generator.random() < NOISY)

    def act(self, observations: np.ndarray, noise: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """Act as on the robot, with the noise."""
        action = self._bundle.act(observations, self._context(gains)) + noise
        return action.clip(self._environment.action_low, self._environment.action_high).astype(np.float32)

    def _context(self, gains: np.ndarray) -> np.ndarray | None:
        spec = self._bundle.manifest.context
        if spec is None:
            return None
        told = np.tile(spec.nominal, (len(gains), 1))
        if spec.kind == "actuator_gain":
            told[:, len(spec.pushed) :] = gains
        return told


def recipe_policies(recipe: str, environment: Environment) -> tuple[int, ...]:
    """Return the policies that one of D4RL's recipes (arXiv 2004.07219) takes in turn, an equal share each.

    A policy is named by how many control steps it was trained for; policy 0 acts at random.

    Raises:
        UserError: there is no such recipe, or the environment has no policies for it.
    """
    if recipe not in RECIPES:
        raise UserError(f"there is no recipe '{recipe}'; choose one of {', '.join(RECIPES)}.")
    if recipe == "random":
        return (0,)
    behaviour = environment.config.behaviour
    if behaviour is None:
        raise UserError(
            f"no behaviour policies are shipped for env={environment.name}; choose recipe=random, or env="
            f"{' or env='.join(shipped_environments())}."
        )
    if recipe == "medium":
        return (behaviour.medium,)
    if recipe == "mixed":
        return (0, *(steps for steps in shipped_policies(environment.robot) if steps <= behaviour.medium))
    return (behaviour.medium, behaviour.expert)


def shipped_policies(robot: str) -> list[int]:
    """Return the policies shipped for a robot, by the control steps of their training, in order."""
    files = [file.name.removesuffix(".onnx").rpartition("-sac-") for file in SNAPSHOTS.iterdir()]
    return sorted(int(steps) for name, _, steps in files if name == robot)


def shipped_environments() -> list[str]:
    """Return the environments that behaviour policies are shipped for."""
    return sorted({file.name.rpartition("-sac-")[0] for file in SNAPSHOTS.iterdir() if file.name.endswith(".onnx")})


def collect(
    recipe: str,
    steps: int,
    seed: int,
    env: str = "halfcheetah",
    episodes_in_parallel: int = 50,
    threads: int = 1,
    weakened: float = 0.0,
    bundles: Sequence[str] = (),
    noise: float = 0.0,
    place: str = "none",
) -> TransitionDataset:
    """Roll policies out in stretches of `EPISODE_STEPS` steps, each of which ends in a timeout.

    Where an episode ends before, the next begins within the same stretch. Start states and noise of a stretch depend on
    the seed and its place in the data alone; how many are simulated side by side can only change how the policy's
    arithmetic rounds.

    Args:
        recipe: one of `RECIPES`.
        steps: transitions in all, a whole number of stretches, at least one for each policy of the recipe.
        seed: seeds start states and noise.
        env: environment.
        episodes_in_parallel: how many stretches are simulated side by side.
        threads: how many threads step the simulator; the result does not depend on it.
        weakened: share of the time in which motors get less than the policy asks for (`sim/weakening.py`).
        bundles: bundles whose policies act in turn, an equal share each; where there are none, the recipe's do.
        noise: of the bundles' policies (`BundlePolicy`).
        place: changed world to roll out in, SUITE:NAME; none for the original one.

    Raises:
        UserError: a setting is not possible.
    """
    if not 0 <= weakened <= 1:
        raise UserError(f"weakened={weakened} is no share of the time; give a number from 0 to 1.")
    if not 0 <= noise <= 1:
        raise UserError(f"noise={noise} is no share of the commands' range; give a number from 0 to 1.")
    if noise and not bundles:
        raise UserError("the policies of a recipe have their own noise; leave noise out, or give bundle=BUNDLE.")
    environment = make_environment(env)
    world = steady_world(environment, find_world(place, environment=environment))
    policies: list[Policy] = (
        [BundlePolicy(path, environment, noise) for path in bundles]
        if bundles
        else [_recipe_policy(environment, trained) for trained in recipe_policies(recipe, environment)]
    )
    schedule = policy_schedule(policies, steps)
    generators = np.random.default_rng(seed).spawn(len(schedule))
    batches = []
    kind = f"bundle=[{','.join(bundles)}] noise={noise}" if bundles else f"recipe={recipe}"
    with progress_bar("collecting" if bundles else f"collecting {recipe}", steps) as move:
        for start in range(0, len(schedule), episodes_in_parallel):
            rows = slice(start, start + episodes_in_parallel)
            acting, drawn, done = schedule[rows], generators[rows], start * EPISODE_STEPS
            batches.append(_roll_out(environment, world, acting, drawn, weakened, threads, move, done))
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    source = (
        f"surefoot collect env={env} {kind} steps={steps} seed={seed} "
        f"episodes_in_parallel={episodes_in_parallel}{f' weakened={weakened}' * bool(weakened)}"
        f"{f' world={place}' * (place != 'none')}, "
        f"{environment.task_id}, mujoco {mujoco.__version__}"
    )
    metadata = Metadata(env, environment.control_dt, environment.observation_names, environment.action_names, source)
    return TransitionDataset.from_arrays(arrays, metadata, file="the collected data")


def _recipe_policy(environment: Environment, trained_steps: int) -> Policy:
    """Return the policy after so many control steps of training; 0 is the one that acts at random."""
    return SnapshotPolicy(environment, trained_steps) if trained_steps else UniformPolicy(environment)


def policy_schedule(stages: Sequence[Stage], steps: int) -> list[Stage]:
    """Return the policy of every stretch of `EPISODE_STEPS` steps: equal consecutive shares.

    Raises:
        UserError: the steps are not whole stretches, one for each policy at least.
    """
    stretches, rest = divmod(steps, EPISODE_STEPS)
    if rest or stretches < len(stages):
        raise UserError(
            f"steps={steps} does not do for these policies; give a multiple of {EPISODE_STEPS} that is at least "
            f"{EPISODE_STEPS * len(stages)}."
        )
    return [stages[stretch * len(stages) // stretches] for stretch in range(stretches)]


def _roll_out(
    environment: Environment,
    world: World,
    policies: Sequence[Policy],
    generators: Sequence[np.random.Generator],
    weakened: float,
    threads: int,
    move: MoveBar,
    done: int,
) -> dict[str, np.ndarray]:
    """Run one stretch for every policy in the list, side by side, and return the rows as arrays.

    The progress bar moves on from `done`, the transitions made before.
    """
    lanes, obs_dim = len(policies), environment.obs_dim
    arrays = {
        "observations": np.empty((lanes, EPISODE_STEPS, obs_dim), np.float32),
        "actions": np.empty((lanes, EPISODE_STEPS, environment.act_dim), np.float32),
        "rewards": np.empty((lanes, EPISODE_STEPS), np.float32),
        "next_observations": np.empty((lanes, EPISODE_STEPS, obs_dim), np.float32),
        "terminals": np.empty((lanes, EPISODE_STEPS), bool),
        "timeouts": np.zeros((lanes, EPISODE_STEPS), bool),
    }
    starts = [environment.initial_states(generator, 1) for generator in generators]
    noise = np.stack([policy.draw(generator) for policy, generator in zip(policies, generators, strict=True)])
    shape = (EPISODE_STEPS, environment.act_dim, weakened)
    gains = (
        np.stack([draw_weakening(generator, *shape) for generator in generators])
        if weakened
        else np.ones((lanes, EPISODE_STEPS, environment.act_dim))
    )
    groups = [(policy, [i for i, p in enumerate(policies) if p is policy]) for policy in dict.fromkeys(policies)]
    with PerturbedPlant(environment, [{0: world}] * lanes, threads) as robots:
        observations = robots.reset(np.concatenate(starts), generators=[])
        for step in range(EPISODE_STEPS):
            actions = arrays["actions"][:, step]
            for policy, rows in groups:
                actions[rows] = policy.act(observations[rows], noise[rows, step], gains[rows, step])
            actions *= gains[:, step]
            arrays["observations"][:, step] = observations
            observations, arrays["rewards"][:, step], arrays["terminals"][:, step] = robots.step(actions)
            arrays["next_observations"][:, step] = observations
            over = np.flatnonzero(arrays["terminals"][:, step])
            if len(over):
                again = [environment.initial_states(generators[lane], 1) for lane in over.tolist()]
                observations[over] = robots.plant.restart(over, np.concatenate(again) + world.start_offset)
            move(done + (step + 1) * lanes)
    arrays["timeouts"][:, -1] = ~arrays["terminals"][:, -1]
    return {name: array.reshape(lanes * EPISODE_STEPS, *array.shape[2:]) for name, array in arrays.items()}


@command("collect")
def _collect(config: DictConfig) -> None:
    """Collect a data set, write it and say what it holds."""
    output = Path(str(config.output))
    check_output(output)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        dataset = _rolled_out(config) if config.bag is None else _logged(config)
    save_dataset(dataset, output)
    print(describe(dataset, output))
    for note in notes:
        print(f"note         {note.message}")


def describe(dataset: TransitionDataset, output: Path) -> str:
    """Tell a person what a data set holds, and where it is."""
    returns = dataset.episode_returns()
    lines = {
        "rows": len(dataset),
        "episodes": len(returns),
        "mean return": f"{returns.mean():.1f} (from {returns.min():.1f} to {returns.max():.1f})",
        "file": output,
        "SHA-256": dataset.metadata.sha256,
    }
    return "\n".join(f"{name:<13}{value}" for name, value in lines.items())


def _rolled_out(config: DictConfig) -> TransitionDataset:
    """Collect in MuJoCo."""
    for name, least in (("steps", 1), ("seed", 0), ("episodes_in_parallel", 1), ("threads", 1)):
        if type(config[name]) is not int or config[name] < least:
            raise UserError(f"{name}={config[name]} is not possible; give a whole number of at least {least}.")
    environment = make_environment(config.env.name)
    return collect(
        recipe=str(config.recipe),
        steps=config.steps,
        seed=config.seed,
        env=config.env.name,
        episodes_in_parallel=config.episodes_in_parallel,
        threads=config.threads,
        weakened=config.weakened,
        bundles=[config.bundle] if isinstance(config.bundle, str) else list(config.bundle or []),
        noise=config.noise,
        place=name_world(config.suite, config.world, None, EPISODE_STEPS, environment),
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
