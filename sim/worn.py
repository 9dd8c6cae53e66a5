"""Draws the suite of worn robots: `python -m sim.worn > configs/perturbations/worn.yaml`."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

SEED, WORLDS = 0, 24
HEAD = f"# Robots with something of everything, drawn at random (seed {SEED}) by `python -m sim.worn`.\n"


def draw(generator: np.random.Generator, name: str) -> dict[str, Any]:
    """Draw one worn robot.

    Multipliers are uniform, but for damping and friction, whose logarithms are; the ground slopes by up to 5 degrees.
    """

    def uniform(low: float, high: float) -> float:
        return round(float(generator.uniform(low, high)), 3)

    def ratio(low: float, high: float) -> float:
        return round(math.exp(generator.uniform(math.log(low), math.log(high))), 3)

    slope = math.radians(generator.uniform(-5, 5))
    return {
        "name": name,
        "body_mass": {"*": uniform(0.8, 1.3)},
        "limb_length": {"*": uniform(0.95, 1.05)},
        "dof_damping": {"*": ratio(0.5, 2.0)},
        "dof_armature": {"*": uniform(0.8, 1.5)},
        "joint_stiffness": {"*": uniform(0.6, 1.1)},
        "actuator_gain": {"*": uniform(0.6, 1.0)},
        "actuator_delay": int(generator.integers(0, 2, endpoint=True)),
        "geom_friction": {"*": ratio(0.4, 1.25)},
        "gravity": [round(-9.81 * math.sin(slope), 3), 0.0, round(-9.81 * math.cos(slope), 3)],
        "external_force": {"torso": [uniform(-1.0, 1.0), 0.0, 0.0]},
        "observation_noise": {"*": uniform(0.0, 0.02), "*_velocity": uniform(0.0, 0.2)},
        "observation_delay": int(generator.integers(0, 1, endpoint=True)),
    }


def suite() -> str:
    """Return the suite as YAML."""
    generator = np.random.default_rng(SEED)
    worlds = [draw(generator, f"worn-{number}") for number in range(1, WORLDS + 1)]
    return HEAD + yaml.safe_dump(worlds, sort_keys=False, default_flow_style=None)


if __name__ == "__main__":
    sys.stdout.write(suite())
