"""One simulated robot by itself, to be put behind a middleware; its world can change while it moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

import configs
from adapters.errors import UserError
from adapters.files import atomic_path
from deploy.spec import RobotDescription
from sim.environments import Environment
from sim.perturb import NOMINAL, Perturbation, load_suite, require_in_time
from sim.perturbed_plant import PerturbedPlant
from sim.sensing import noise_generator
from sim.worlds import timeline

ROBOT_FOLDER = Path(configs.__path__[0]) / "robot"


def load_robot(name: str) -> RobotDescription:
    """Read configs/robot/NAME.yaml."""
    return RobotDescription.model_validate(OmegaConf.to_container(OmegaConf.load(ROBOT_FOLDER / f"{name}.yaml")))


def find_world(place: str, at_step: int | None = None, environment: Environment | None = None) -> Perturbation:
    """Return one world of a suite.

    Args:
        place: SUITE:NAME, where a suite is the name of a shipped one or a YAML file; none: the original dynamics.
        at_step: control step at which the world is to change, None for the entry's own; a schedule moves with it.
        environment: the robot, where the suite has worlds for each of its parts.

    Raises:
        UserError: there is no such world.
    """
    suite, _, name = place.rpartition(":")
    if place == "none":
        world = NOMINAL
    elif not suite:
        raise UserError(f"the perturbation '{place}' is not SUITE:NAME; give for example joint-failure:dead-ffoot.")
    else:
        worlds = {world.name: world for world in load_suite(suite, environment)}
        if name not in worlds:
            raise UserError(f"the suite {suite} has no world '{name}'; choose one of {', '.join(worlds)}.")
        world = worlds[name]
    return world if at_step is None else world.starting_at(at_step)


def name_world(suite: str | None, world: str | None, at_step: int | None, steps: int, environment: Environment) -> str:
    """Return where `find_world` finds one world of a suite, or none where neither is given.

    Raises:
        UserError: one is given without the other, there is no such world, or it changes after the last of the steps.
    """
    if (suite is None) != (world is None):
        raise UserError("perturbations=SUITE and world=NAME go together; give both or neither.")
    place = "none" if suite is None else f"{suite}:{world}"
    require_in_time(find_world(place, at_step, environment), steps)
    return place


class MujocoPlant:
    """One robot, episode after episode. Episode k starts as episode k of `sim.rollout.run_episodes` does.

    Args:
        environment: the task.
        world: what changes, and at which step of every episode.
        seed: of the starts and of noise.
        record: file that `close` writes the last episode to, None for none: npz with observations as the controller
            sees them, actions as they are sent, rewards, and the physics states before each step and after the last.

    Attributes:
        robot: observations and commands, in order.
        world: what changes.
        steps: control steps in this episode.
        episode_return: sum of the episode's rewards, undiscounted.
        ended: whether the environment has ended the episode.

    Raises:
        UserError: a pattern of the world matches nothing, or a limb cannot be scaled.
    """

    def __init__(
        self, environment: Environment, world: Perturbation = NOMINAL, seed: int = 0, record: Path | None = None
    ) -> None:
        self.environment, self.robot = environment, load_robot(environment.robot)
        self._plant, self.world = PerturbedPlant(environment, [timeline(environment, world)]), world
        self._seed, self._record, self._episode = seed, record, -1
        self.reset()

    def reset(self) -> None:
        """Start the next episode."""
        self._episode += 1
        start = self.environment.initial_states(np.random.default_rng([self._seed, self._episode]), 1)
        noise = noise_generator(self._seed, self.world.name, self._episode)
        self._observation = self._plant.reset(start, [noise])[0]
        self.steps, self.episode_return, self.ended = 0, 0.0, False
        self._steps: list[tuple[np.ndarray, np.ndarray, float]] = []
        self._states = [self._plant.plant.states[0]]

    def observe(self) -> np.ndarray:
        """Return the latest observation `(obs_dim,)`, as the controller sees it."""
        return self._observation

    def step(self, action: np.ndarray) -> None:
        """Hold `action` `(act_dim,)` for one control period."""
        before = self._observation
        observations, rewards, terminated = self._plant.step(action[None])
        reward = float(np.float32(rewards[0]))  # as a report holds it, so that the sums agree
        self._observation, self.ended = observations[0], bool(terminated[0])
        self.steps += 1
        self.episode_return += reward
        if self._record is not None:
            self._steps.append((before, action, reward))
            self._states.append(self._plant.plant.states[0])

    def perturb(self, place: str) -> None:
        """Change to the world SUITE:NAME at once, for this episode and the next; none goes back to the original one.

        Where the world has a schedule, that begins now. In the next episode it begins with the episode.

        Raises:
            UserError: there is no such world, or a pattern of it matches nothing; the world stays as it is.
        """
        world = find_world(place, 0, self.environment)
        self._plant.change([timeline(self.environment, world)])
        self.world = world

    def status(self) -> dict[str, object]:
        """Return steps, return and world."""
        return {"steps": self.steps, "return": round(self.episode_return, 1), "world": self.world.name}

    def close(self) -> None:
        """Let go of the simulator and write the record.

        Raises:
            UserError: the record cannot be written.
        """
        self._plant.close()
        if self._record is not None:
            observations, actions, rewards = zip(*self._steps, strict=True) if self._steps else ((), (), ())
            with atomic_path(self._record) as draft, draft.open("wb") as file:
                np.savez(file, observations=observations, actions=actions, rewards=rewards, states=self._states)
