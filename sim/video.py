"""A video of recorded physics states, several robots side by side, rendered by MuJoCo without a screen."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import imageio
import mujoco
import numpy as np
from PIL import Image, ImageDraw

from adapters.errors import UserError
from adapters.files import atomic_path
from sim.environments import FULL_PHYSICS, Environment, make_environment

WIDTH, HEIGHT = 320, 240
BACKENDS = ("egl", "osmesa")


class NoGraphicsError(UserError):
    """MuJoCo finds no OpenGL to render with."""


def write_video(path: Path, env: str, runs: Mapping[str, np.ndarray], captions: Mapping[str, Sequence[str]]) -> None:
    """Write an mp4 in real time.

    Args:
        path: the file.
        env: task of configs/env.
        runs: physics states `(frames, nstate)` by title, as many frames each, from left to right.
        captions: a line for each frame of each run.

    Raises:
        NoGraphicsError: MuJoCo cannot render here.
        UserError: the place cannot be written.
    """
    # MuJoCo reads the variable once, when it is imported, so it takes another process.
    with variable("MUJOCO_GL", find_backend()), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_render, path, env, dict(runs), dict(captions)).result()


def find_backend() -> str:
    """Return the way to OpenGL that works here, of those that MuJoCo knows.

    Raises:
        NoGraphicsError: none does.
    """
    given = os.environ.get("MUJOCO_GL")
    backends = (given,) if given else BACKENDS
    for backend in backends:
        probe = [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).free()"]
        if not subprocess.run(probe, env={**os.environ, "MUJOCO_GL": backend}, capture_output=True).returncode:
            return backend
    raise NoGraphicsError(
        f"MuJoCo cannot render with MUJOCO_GL={' or '.join(backends)}, so there is no video; install OpenGL for EGL "
        "(Debian: libegl1 libegl-mesa0) or OSMesa (libosmesa6)."
    )


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the processes that are started in the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _render(path: Path, env: str, runs: dict[str, np.ndarray], captions: dict[str, Sequence[str]]) -> None:
    """Render all frames and encode them."""
    environment = make_environment(env)
    camera, rate = Camera(environment), round(1 / environment.control_dt)
    with atomic_path(path) as draft, closing(imageio.get_writer(draft, format="FFMPEG", fps=rate)) as writer:
        for frame in range(len(next(iter(runs.values())))):
            images = [
                _with_text(camera.image(states[frame]), title, captions[title][frame]) for title, states in runs.items()
            ]
            writer.append_data(np.concatenate(images, axis=1))
    camera.close()


class Camera:
    """Follows the robot; plain light and no antialiasing, which is several times faster in software.

    Args:
        environment: the task.
    """

    def __init__(self, environment: Environment) -> None:
        self._model = environment.model()
        self._model.vis.quality.offsamples = 0
        # Gymnasium's floor ends after 40 m; one of no size is drawn without end, here with a tile for each metre.
        self._model.geom_size[self._model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE, :2] = 0.0
        self._model.mat_texuniform[:], self._model.mat_texrepeat[:] = True, 1.0
        self._data = mujoco.MjData(self._model)
        follows = self._model.cam_mode == mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
        self._camera = int(np.flatnonzero(follows)[0])
        self._renderer = mujoco.Renderer(self._model, HEIGHT, WIDTH)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = False

    def image(self, state: np.ndarray) -> np.ndarray:
        """Return the picture `(HEIGHT, WIDTH, 3)` of a physics state `(nstate,)`."""
        mujoco.mj_setState(self._model, self._data, state, FULL_PHYSICS)
        mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, camera=self._camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the graphics memory while the driver is still there."""
        self._renderer.close()


def _with_text(image: np.ndarray, title: str, caption: str) -> np.ndarray:
    """Write a title and a line at the top of a picture."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, WIDTH, 36), fill=(20, 24, 32))
    pen.text((8, 4), title, fill=(255, 255, 255))
    pen.text((8, 19), caption, fill=(255, 255, 255))
    return np.asarray(picture)
