"""A simulated robot behind LCM: plant and runner as real processes, in lock step and in real time."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim.lcm_plant
from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.controller import Controller
from sim.environments import make_environment
from sim.lcm_plant import LcmPlant
from sim.lcm_stack import LcmSettings, run_lcm, show_run
from sim.mujoco_plant import MujocoPlant, find_world

MakeBundle = Callable[..., Path]


@pytest.fixture
def url() -> str:
    """Return a network that no other test and no other process uses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        return f"udpm://239.255.76.67:{free.getsockname()[1]}?ttl=0"


@pytest.fixture
def start_runner(url: str, make_bundle: MakeBundle, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts a runner of the tiny bundle: `start_runner("--clock", "own")`."""
    children: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        log = tmp_path / f"runner{len(children)}.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "deploy.lcm.runner", str(make_bundle()), "--url", url, *arguments]
            children.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
        end = time.monotonic() + 60
        while "runner: ready" not in log.read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


def settings(**changes: Any) -> LcmSettings:
    return LcmSettings.model_validate({"steps": 40} | changes)


def test_lock_step_is_the_run_in_one_process_bit_for_bit(url: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    path, moves = make_bundle(), []
    world = {"suite": "joint-failure", "world": "dead-bfoot-at-500", "at_step": 20}
    chosen = settings(url=url, bundle=path, output=tmp_path, steps=150, seed=3, log=True, **world)
    episode = run_lcm(chosen, moves.append)
    plant = MujocoPlant(make_environment("halfcheetah"), find_world("joint-failure:dead-bfoot-at-500", 20), seed=3)
    controller, actions = Controller(Bundle.load(path)), []
    for step in range(150):
        actions.append(controller.step(step * 0.05, plant.observe()).action)
        plant.step(actions[-1])
    assert (episode.steps, episode.safe_steps, episode.fell) == (150, 0, False)
    assert episode.episode_return == plant.episode_return
    with np.load(tmp_path / "episode.npz") as record:
        np.testing.assert_array_equal(record["actions"], actions)
    assert max(moves) == 100
    assert (tmp_path / "robot.lcm").stat().st_size > 150 * 500


def test_killed_runner_leaves_the_robot_in_real_time_with_the_safe_command(
    url: str, start_runner: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    runner = start_runner("--timeout", "30")
    plant = MujocoPlant(make_environment("halfcheetah"), record=tmp_path / "episode.npz")
    robot = LcmPlant(plant, url, realtime=True)
    began = time.monotonic()
    episode = robot.run(24, lambda step: runner.send_signal(signal.SIGKILL) if step == 10 else None)
    assert time.monotonic() - began > 23 * 0.05
    plant.close()
    with np.load(tmp_path / "episode.npz") as record:
        driven = record["actions"].any(1)
    # The last command acts for as long as it is fresh, three control periods; then the robot is left alone.
    assert driven[5:10].any()
    assert driven[10:14].sum() <= 4
    assert not driven[14:].any()
    assert episode.safe_steps >= 10
    assert episode.reason == "the latest good message is too old"


def test_lock_step_goes_on_safely_without_the_runner_and_with_another(
    url: str, start_runner: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sim.lcm_plant, "ANSWER", 0.3)
    arguments = ("--clock", "own", "--timeout", "30")
    runner = start_runner(*arguments)
    robot = LcmPlant(MujocoPlant(make_environment("halfcheetah")), url)

    def move(step: int) -> None:
        if step == 10:
            runner.kill()
            runner.wait()
        if step == 16:
            start_runner(*arguments)

    episode = robot.run(40, move)
    # Commands act for three control periods of simulated time, then steps 14 to 16 are safe ones.
    assert 2 <= episode.safe_steps < 20
    assert robot.side.answered or robot.side.output().passing


def test_robot_that_nobody_answers_says_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.lcm_plant, "FIRST_ANSWER", 0.2)
    for realtime in (False, True):
        robot = LcmPlant(MujocoPlant(make_environment("halfcheetah")), url, realtime)
        with pytest.raises(UserError, match=r"nobody answered the robot for 0\.2 s"):
            robot.run(10)
        assert robot.plant.steps == 0


def test_run_is_shown(url: str, make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_run(settings(url=url, bundle=make_bundle(), output=tmp_path, steps=5))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("5 steps, return ")
    assert lines[-1] == f"record and logs are in {tmp_path}"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"suite": "joint-failure", "world": "dead-tail"}, "has no world 'dead-tail'"),
        ({"suite": "joint-failure"}, "perturbations=SUITE and world=NAME go together"),
        ({"bundle": Path("nowhere.bundle")}, "there is no bundle nowhere.bundle"),
        ({"url": "carrier-pigeon://"}, "there is no LCM network carrier-pigeon:"),
    ],
)
def test_mistake_is_one_sentence(
    url: str, make_bundle: MakeBundle, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        run_lcm(settings(**{"url": url, "bundle": make_bundle(), "output": tmp_path / "out"} | changes))
