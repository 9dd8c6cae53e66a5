"""A MuJoCo robot behind LCM, as a process of its own; `python -m sim.lcm_plant --help`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import UserError
from deploy.lcm.channels import NS, PERIODS, URL, connect
from deploy.lcm.robot import RobotSide
from deploy.loop import FixedRateLoop
from deploy.watchdog import VERDICTS
from sim.environments import make_environment
from sim.mujoco_plant import MujocoPlant, find_world
from sim.supervisor import interruptible

# s to wait for the first answer, and for any later one in lock step; s after which an observation is sent again.
FIRST_ANSWER, ANSWER, ASK_AGAIN = 60.0, 5.0, 0.1
READY = "plant: ready"
REPORT_EVERY = 100


@dataclass(frozen=True)
class Episode:
    """What happened.

    Attributes:
        steps: control periods.
        episode_return: sum of rewards, undiscounted.
        fell: whether the environment ended the episode.
        safe_steps: control periods in which the robot had the safe command.
        reason: why, the last time.
    """

    steps: int
    episode_return: float
    fell: bool
    safe_steps: int
    reason: str


class LcmPlant:
    """A simulated robot at the robot's end of the channels.

    In lock step the robot's clock is simulated time, which stands still until an observation is answered: the episode
    is a function of bundle, seed and world. In real time the robot has the host's clock, and a command acts over the
    period in which it comes.

    Args:
        plant: the robot.
        url: the network.
        realtime: whether to run in real time.

    Attributes:
        side: the robot's end of the channels.

    Raises:
        UserError: there is no such network here.
    """

    def __init__(self, plant: MujocoPlant, url: str, realtime: bool = False) -> None:
        self.plant, self.realtime = plant, realtime
        self._dt = plant.robot.control_dt
        clock = time.time_ns if realtime else self._simulated_time
        self.side = RobotSide(plant.robot, connect(url), PERIODS * self._dt, clock)
        self._pace = FixedRateLoop(self._dt, sleep=self.side.listen)
        self._patience = ANSWER

    def _simulated_time(self) -> int:
        return round(self.plant.steps * self._dt * NS)

    def run(self, steps: int, move: Callable[[int], Any] = lambda completed: None) -> Episode:
        """Run one episode.

        Args:
            steps: control periods at most.
            move: called with the number of those that have passed.

        Raises:
            UserError: nobody answers the first observation.
        """
        safe_steps, reason = 0, ""
        self._greet()
        self._pace.restart()
        while self.plant.steps < steps and not self.plant.ended:
            self._wait()
            output = self.side.output()
            if not output.passing:
                safe_steps, reason = safe_steps + 1, VERDICTS[output.reason]
            # These robots are driven by torque: without a command there is none.
            self.plant.step(np.zeros(self.plant.robot.act_dim) if output.command is None else output.command)
            self.side.send(self.plant.observe())
            move(self.plant.steps)
        return Episode(self.plant.steps, self.plant.episode_return, self.plant.ended, safe_steps, reason)

    def _greet(self) -> None:
        """Let the robot stand still until somebody answers it."""
        end = time.monotonic() + FIRST_ANSWER
        self.side.send(self.plant.observe())
        while not self.side.answered:
            if time.monotonic() > end:
                raise UserError(f"nobody answered the robot for {FIRST_ANSWER:g} s; start the runner, on the same URL.")
            if self.realtime:
                self.side.send(self.plant.observe())  # in real time an observation gets old
            else:
                self.side.send_again()
            self.side.listen(ASK_AGAIN, until_answered=True)

    def _wait(self) -> None:
        """Let one control period pass, in lock step until there is an answer."""
        if self.realtime:
            self._pace.wait()
            return
        end = time.monotonic() + self._patience
        while not self.side.answered and (rest := end - time.monotonic()) > 0:
            self.side.listen(min(rest, ASK_AGAIN), until_answered=True)
            if not self.side.answered:
                self.side.send_again()
        # A robot that missed an answer goes on in real time until it gets one again.
        self._patience = ANSWER if self.side.answered else self._dt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one episode and print it as one line of JSON; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sim.lcm_plant", description=__doc__)
    parser.add_argument("--env", default="halfcheetah", help="environment (%(default)s)")
    parser.add_argument("--url", default=URL, help="LCM network; the default reaches this host alone (%(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="control steps at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the start state (%(default)s)")
    parser.add_argument("--perturbation", default="none", help="changed world, SUITE:NAME (%(default)s)")
    parser.add_argument("--at-step", type=int, help="control step at which the world changes (default its own)")
    parser.add_argument("--record", type=Path, help="npz file for the episode (default none)")
    parser.add_argument("--realtime", action="store_true", help="run in real time, not in lock step")
    settings = parser.parse_args(arguments)
    try:
        environment = make_environment(settings.env)
        world = find_world(settings.perturbation, settings.at_step, environment)
        plant = MujocoPlant(environment, world, settings.seed, settings.record)
        robot = LcmPlant(plant, settings.url, settings.realtime)
        print(READY, file=sys.stderr, flush=True)
        with interruptible():
            episode = robot.run(settings.steps, _report)
        plant.close()
    except UserError as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(json.dumps(asdict(episode)), flush=True)
    return 0


def _report(steps: int) -> None:
    if steps % REPORT_EVERY == 0:
        print(f"plant: {steps} steps", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
