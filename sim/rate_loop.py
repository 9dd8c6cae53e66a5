"""Something to keep a rate: `python -m sim.rate_loop PLACE BUNDLE SECONDS`, for `sim.endurance`, which watches it.

In PLACE controller it is a controller in the fixed-rate loop; in PLACE sender it is whoever sends observations to a
policy node in another process, which then reports how it kept the rate.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapters.robots.robot import Observation
from deploy.bundle import Bundle
from deploy.controller import Controller
from deploy.loop import FixedRateLoop, drive
from deploy.spec import RobotDescription

READY = "loop: ready"
# s in which a node reports for the last time.
LAST_REPORT = 1.5
ROWS, NOISE = 1_000, 0.1


class NoisyRobot:
    """A robot that goes nowhere, seen in noise.

    Args:
        robot: what is observed.
    """

    def __init__(self, robot: RobotDescription) -> None:
        self._dt, self._steps = robot.control_dt, 0
        self._rows = NOISE * np.random.default_rng(0).standard_normal((ROWS, robot.obs_dim))

    def observe(self) -> Observation:
        """Return the observation `(obs_dim,)` of the next control period."""
        self._steps += 1
        return Observation(self._steps * self._dt, self._rows[self._steps % ROWS], fresh=True)

    def command(self, action: np.ndarray) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def run_controller(bundle: Bundle, seconds: float) -> dict[str, Any]:
    """Run a controller with inferred context; return the loop's figures."""
    robot = bundle.manifest.robot
    controller = Controller(bundle)
    # The first run of a graph takes far longer than those that follow.
    bundle.act(np.zeros(robot.obs_dim), controller.context)
    steps = round(seconds / robot.control_dt)
    outcome = drive(
        NoisyRobot(robot), controller, steps, lambda done: _report(done, robot), realtime=True, settle=False
    )
    assert outcome.statistics is not None
    figures = outcome.statistics.as_dict()
    return {"missed": figures["skipped"], **{k: figures[k] for k in ("steps", "overruns", "step", "lateness")}}


def run_sender(bundle: Bundle, seconds: float) -> dict[str, Any]:
    """Send observations at the control rate; return the policy node's figures."""
    from deploy.ros2.tap import Ros2Tap

    robot = bundle.manifest.robot
    noise, steps = NoisyRobot(robot), round(seconds / robot.control_dt)
    tap = Ros2Tap(robot, int(os.environ["ROS_DOMAIN_ID"]), lambda sent, numbers: None, lambda message: None)
    while not tap.heard:
        tap.spin(robot.control_dt)
    pace = FixedRateLoop(robot.control_dt, sleep=lambda rest: _listen(tap, rest))
    for step in range(steps):
        for message in tap.observation(noise.observe().values):
            tap.send(message)
        _report(step + 1, robot)
        pace.wait()
    _listen(tap, LAST_REPORT)
    figures = _figures(tap.statuses["policy"])
    tap.close()
    return figures | {"missed": steps - figures["steps"]}


def _listen(tap: Any, seconds: float) -> None:
    """Take messages for so long."""
    end = time.monotonic() + seconds
    while (rest := end - time.monotonic()) > 0:
        tap.spin(rest)


def _figures(status: Mapping[str, str]) -> dict[str, Any]:
    """Read what the node says of itself."""
    times = {
        name: {share: 1e-3 * float(status[f"{name} {share} (ms)"]) for share in ("p50", "p99", "max")}
        for name in ("step", "lateness")
    }
    return {"steps": int(status["steps"]), "overruns": int(status["overruns"]), **times}


def _report(done: int, robot: RobotDescription) -> None:
    """Say once a second how far it is."""
    if done % round(1.0 / robot.control_dt) == 0:
        print(f"steps {done}", flush=True)


def main() -> None:
    """Run one place and print its figures as one line of JSON."""
    place, path, seconds = sys.argv[1:]
    bundle = Bundle.load(Path(path))
    print(READY, flush=True)
    print(json.dumps({"controller": run_controller, "sender": run_sender}[place](bundle, float(seconds))), flush=True)


if __name__ == "__main__":
    main()
