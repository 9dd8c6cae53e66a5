"""Motors that get less than a policy asks for, now and then: how a sound robot's log comes to know crippled gaits.

The command that is sent and recorded is g a, where a is the policy's and g changes every few seconds. The dynamics stay
those of the original robot, so the log is one of the original robot; but it holds what the robot does when a motor
does nothing, and the states that this leads to.
"""

from __future__ import annotations

import numpy as np

# Control steps for which g stays as it is.
SHORTEST, LONGEST = 100, 400
# Of the weakened stretches: one motor weak, all motors alike, the rest each its own; of single weak motors: dead.
SINGLE, ALIKE, DEAD = 0.6, 0.2, 0.7
# Smallest share that all motors alike are left with.
WEAKEST = 0.4


def draw_weakening(generator: np.random.Generator, steps: int, act_dim: int, share: float) -> np.ndarray:
    """Draw g for some control steps.

    Args:
        generator: the source of randomness.
        steps: how many.
        act_dim: size of a command.
        share: of the stretches in which motors are weakened, 0 to 1.

    Returns:
        `(steps, act_dim)`, 0 to 1.
    """
    gains = np.ones((steps, act_dim))
    begin = 0
    while begin < steps:
        end = begin + int(generator.integers(SHORTEST, LONGEST))
        if generator.random() < share:
            gains[begin:end] = _draw(generator, act_dim)
        begin = end
    return gains


def _draw(generator: np.random.Generator, act_dim: int) -> np.ndarray:
    kind, gains = generator.random(), np.ones(act_dim)
    if kind < SINGLE:
        gains[generator.integers(act_dim)] = 0.0 if generator.random() < DEAD else generator.random()
    elif kind < SINGLE + ALIKE:
        gains[:] = generator.uniform(WEAKEST, 1.0)
    else:
        gains = generator.uniform(0.0, 1.0, act_dim)
    return gains
