"""A strip of pictures of one world: the same moments of the same episode, with and without adaptation."""

from __future__ import annotations

import base64
import io
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from deploy.bundle import Bundle
from deploy.controller import Controller
from sim.environments import make_environment
from sim.perturb import Perturbation
from sim.plant import BatchedPlant
from sim.rollout import LoopCommand, run_episodes
from sim.scores import Column, World

# The way to OpenGL, and the camera, are the video's.
from sim.video import HEIGHT, WIDTH, Camera, find_backend, variable

FRAMES = 7
TITLES = {"nominal": "without adaptation", "inferred": "adapted"}


@dataclass(frozen=True)
class Strip:
    """Pictures of one episode under two contexts.

    Attributes:
        world: which world.
        steps: the control steps that are shown.
        rows: for each context its title, a picture for each step as a data URI, and the return up to each step since
            the first one, NaN once the episode has ended.
    """

    world: World
    steps: list[int]
    rows: list[tuple[str, list[str], list[float]]]


class _Recorder:
    """A controller that also writes down the physics state before each step."""

    def __init__(self, controller: Controller, plant: BatchedPlant) -> None:
        self.controller, self.plant = controller, plant
        self.states: list[np.ndarray] = []

    def reset(self) -> None:
        self.controller.reset()

    def step(self, time: float, obs: np.ndarray) -> LoopCommand:
        self.states.append(self.plant.states[0])
        return self.controller.step(time, obs)


def telling_world(nominal: Column, inferred: Column) -> World:
    """Return the world in which adaptation made the greatest difference to the return, for better or worse.

    Where worlds change in mid-episode, it is one of those: there the same picture shows before and after.
    """
    cells = nominal.cells[0]
    worlds = [world for world, cell in cells.items() if "return_after_change" in cell] or list(cells)
    return max(worlds, key=lambda world: abs(inferred.score([world], 1.0) - nominal.score([world], 1.0)))


def make_strip(bundle: Bundle, suite: str, world: Perturbation, seed: int, steps: int) -> Strip:
    """Run the first episode of a world, with and without adaptation, and render it at moments evenly apart.

    Args:
        bundle: the policy; it must read a context.
        suite: the suite that the world is of.
        world: the world; where it changes in mid-episode, the pictures begin there, and end at the next change.
        seed: seed of the start and of noise, as in the validation.
        steps: control steps in an episode.

    Raises:
        NoGraphicsError: MuJoCo cannot render here.
    """
    backend = find_backend()
    first, last = ([*world.change_steps, steps] if world.change_steps else [0, steps])[:2]
    shown = np.linspace(first, last - 1, FRAMES).astype(int).tolist()
    episodes = [_episode(bundle, context, world, seed, steps, shown) for context in TITLES]
    states = np.concatenate([states for states, _ in episodes])
    with variable("MUJOCO_GL", backend), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pictures = pool.submit(_render, bundle.manifest.env, states).result()
    rows = [
        (title, pictures[index * FRAMES : (index + 1) * FRAMES], returns)
        for index, (title, (_, returns)) in enumerate(zip(TITLES.values(), episodes, strict=True))
    ]
    return Strip(World(suite, world.name), shown, rows)


def _episode(
    bundle: Bundle, context: Any, world: Perturbation, seed: int, steps: int, shown: Sequence[int]
) -> tuple[np.ndarray, list[float]]:
    """Run one episode; returns the states `(frames, nstate)` shown, and the return from the first of them to each.

    After its end an episode shows the state in which it ended.
    """
    recorders = []

    def factory(plant: BatchedPlant) -> _Recorder:
        recorders.append(_Recorder(Controller(bundle, context=context, batch=(1,)), plant))
        return recorders[0]

    result = run_episodes(make_environment(bundle.manifest.env), [world], factory, episodes=1, seed=seed, steps=steps)
    length = int(result.lengths[0, 0])
    states = np.array([recorders[0].states[min(step, length - 1)] for step in shown])
    returns = [float(result.rewards[0, 0, shown[0] : step].sum()) if step < length else float("nan") for step in shown]
    return states, returns


def _render(env: str, states: np.ndarray) -> list[str]:
    """Render states as data URIs; in a process of its own, since MuJoCo chooses its OpenGL when it is imported."""
    camera = Camera(make_environment(env))
    # The camera leaves the robot much room, more of it above than below, which a small picture has not.
    rows, columns = slice(HEIGHT // 4, HEIGHT * 11 // 12), slice(WIDTH // 6, WIDTH * 5 // 6)
    pictures = [_data_uri(camera.image(state)[rows, columns]) for state in states]
    camera.close()
    return pictures


def _data_uri(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
