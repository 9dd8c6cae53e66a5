"""Changed worlds in a person's words, from the description that a validation report keeps of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

TIMES = "\N{MULTIPLICATION SIGN}"
# What is multiplied, by the key of a perturbation (sim/perturb.py).
QUANTITIES = {
    "body_mass": "mass",
    "limb_length": "limb length",
    "dof_damping": "joint damping",
    "dof_armature": "motor inertia",
    "joint_stiffness": "joint stiffness",
    "geom_friction": "friction",
    "actuator_gain": "motor strength",
}
# Changes that break a part, of which one wants to know since when.
BREAKS = ("dead", "locked")


def world_words(perturbation: Mapping[str, Any], most: int | None = None) -> str:
    """Say what a world changes and when, for example "motor ffoot dead from step 500 to 1,000, and back again".

    Args:
        perturbation: as a cell of the validation report holds it, without what is at its default.
        most: how many changes to name at once; what is beyond is counted. None names all.
    """
    phases = [
        (change.get("at_step", 0), change_words(change, most))
        for change in (perturbation, *perturbation.get("schedule", ()))
    ]
    if phases[0] == (0, "original"):
        phases = phases[1:]
    if not phases:
        return "original"
    (start, first), *later = phases
    if not later:
        if start:
            return f"{first} from step {start:,} on"
        return f"{first} from the start" if first.endswith(BREAKS) else first
    if [words for _, words in later] == ["original"]:
        return f"{first} from {_moment(start)} to {later[0][0]:,}, and back again"
    return ", then ".join(f"{words} from {_moment(step)}" for step, words in phases)


def _moment(step: int) -> str:
    return f"step {step:,}" if step else "the start"


def change_words(change: Mapping[str, Any], most: int | None = None) -> str:
    """Say what differs from the original world, whenever that may be."""
    parts = list(_parts(change))
    if all(part.endswith(f" {TIMES} 1") for part in parts):
        # The original point of a grid is still a point of it.
        return "original" if not parts else f"{', '.join(parts)} (original)"
    if most is not None and len(parts) > most:
        return f"{', '.join(parts[:most])} and {len(parts) - most} more changes"
    return ", ".join(parts)


def is_original(perturbation: Mapping[str, Any]) -> bool:
    """Whether a world is the original one under another name, from the start to the end."""
    return not perturbation.get("schedule") and change_words(perturbation).endswith(("original", "(original)"))


def quantity(key: str, pattern: str) -> str:
    """Name what a multiplier is of: "joint damping", or "joint damping of bfoot"."""
    return QUANTITIES[key] if pattern == "*" else f"{QUANTITIES[key]} of {pattern}"


def _parts(change: Mapping[str, Any]) -> Iterator[str]:
    """Yield each change of a world by itself."""
    for key, value in change.items():
        if key in QUANTITIES:
            for pattern, factor in value.items():
                dead = key == "actuator_gain" and factor == 0
                yield _dead(pattern) if dead else f"{quantity(key, pattern)} {TIMES} {factor:g}"
        elif key in OTHERS:
            yield from OTHERS[key](value)


def _dead(pattern: str) -> str:
    return "all motors dead" if pattern == "*" else f"motor {pattern} dead"


def _locked(joints: Mapping[str, bool]) -> Iterator[str]:
    return ("all joints locked" if joint == "*" else f"joint {joint} locked" for joint in joints)


def _gravity(value: Any) -> Iterator[str]:
    if isinstance(value, (int, float)):
        yield f"gravity {TIMES} {value:g}"
        return
    x, y, z = value
    if y == 0 and x != 0 and math.isclose(math.hypot(x, z), 9.81, rel_tol=2e-3):
        # Gravity that pulls ahead is a slope that falls ahead.
        yield f"{math.degrees(math.atan2(abs(x), -z)):.2g} degrees {'downhill' if x > 0 else 'uphill'}"
    else:
        yield f"gravity ({x:g}, {y:g}, {z:g}) m/s²"


def _force(value: Mapping[str, Any]) -> Iterator[str]:
    return (f"force ({x:g}, {y:g}, {z:g}) N on {body}" for body, (x, y, z) in value.items())


def _noise(value: Mapping[str, float]) -> Iterator[str]:
    return (f"noise {size:g} on {'all sensors' if term == '*' else term}" for term, size in value.items())


def _late(what: str) -> Callable[[int], Iterator[str]]:
    return lambda steps: iter([f"{what} {steps} step{'' if steps == 1 else 's'} late"])


OTHERS: dict[str, Callable[[Any], Iterator[str]]] = {
    "joint_lock": _locked,
    "gravity": _gravity,
    "external_force": _force,
    "observation_noise": _noise,
    "actuator_delay": _late("commands"),
    "observation_delay": _late("sensors"),
}
