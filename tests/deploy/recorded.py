"""A recorded run of the leg: what its sensors said, good and bad, and what it was commanded, for replays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from leg import DT, MOTION, OBS, PUSH

from deploy.bundle import Bundle
from deploy.controller import Command, Controller

STEPS = 150
# Stamps begin where those of a robot's own clock might.
START, PERIOD = 1_000_000_000_000, round(DT * 1e9)


class Moment(NamedTuple):
    """An observation `(OBS,)`, its stamp in ns, and the command that answered it."""

    stamp: int
    values: np.ndarray
    command: Command


def record(bundle: Bundle) -> list[Moment]:
    """Run a controller on a leg that is set anew every 15 steps, with a period missing there.

    The leg's dynamics are not quite the model's, and its clock jitters. A sensor fails for a moment, another for
    longer.
    """
    generator, controller = np.random.default_rng(7), Controller(bundle)
    moments: list[Moment] = []
    for step in range(STEPS):
        if step % 15 == 0:
            values = generator.normal(0, 0.3, OBS)
        jitter = int(generator.integers(-PERIOD // 50, PERIOD // 50))
        stamp = START + (step + step // 15) * PERIOD + jitter
        seen = values.copy()
        seen[2] = np.nan if step == 40 else seen[2]
        seen[1] = np.inf if 100 <= step < 104 else seen[1]
        command = controller.step(stamp * 1e-9, seen)
        moments.append(Moment(stamp, seen, command))
        change = values @ MOTION + command.action @ PUSH
        values = values + 1.3 * change + generator.normal(0, 0.003, OBS)
    return moments
