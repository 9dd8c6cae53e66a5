# ruff: noqa: RUF001  the words hold a multiplication sign
"""A world in words is what a person would say of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.environments import make_environment
from sim.perturb import SUITE_FOLDER, Perturbation, load_suite
from sim.wording import is_original, world_words

DEAD = {"actuator_gain": {"ffoot": 0.0}}
LIGHT = {"body_mass": {"*": 0.75}, "dof_damping": {"*": 0.5}}


@pytest.mark.parametrize(
    ("world", "words"),
    [
        ({}, "original"),
        (LIGHT, "mass × 0.75, joint damping × 0.5"),
        ({"body_mass": {"*": 1.0}, "dof_damping": {"*": 1.0}}, "mass × 1, joint damping × 1 (original)"),
        (DEAD, "motor ffoot dead from the start"),
        ({"at_step": 500} | DEAD, "motor ffoot dead from step 500 on"),
        (
            {"at_step": 500} | DEAD | {"schedule": [{"at_step": 1000}]},
            "motor ffoot dead from step 500 to 1,000, and back again",
        ),
        (DEAD | {"schedule": [{"at_step": 50}]}, "motor ffoot dead from the start to 50, and back again"),
        ({"schedule": [{"at_step": 20} | LIGHT]}, "mass × 0.75, joint damping × 0.5 from step 20 on"),
        (
            {"at_step": 5, "gravity": 0.5, "schedule": [{"at_step": 9} | DEAD, {"at_step": 12}]},
            "gravity × 0.5 from step 5, then motor ffoot dead from step 9, then original from step 12",
        ),
        ({"joint_lock": {"bfoot": True}}, "joint bfoot locked from the start"),
        ({"actuator_gain": {"*": 0.8, "ffoot": 0.5}}, "motor strength × 0.8, motor strength of ffoot × 0.5"),
        ({"geom_friction": {"floor": 0.1}}, "friction of floor × 0.1"),
        # sin(5 degrees) 9.81 = 0.855 ahead, cos(5 degrees) 9.81 = 9.773 down.
        ({"gravity": [0.855, 0.0, -9.7727]}, "5 degrees downhill"),
        ({"gravity": [-0.855, 0.0, -9.7727]}, "5 degrees uphill"),
        ({"gravity": [0.0, 0.0, -1.62]}, "gravity (0, 0, -1.62) m/s²"),
        ({"external_force": {"torso": [-5.0, 0.0, 0.0]}}, "force (-5, 0, 0) N on torso"),
        ({"actuator_delay": 1, "observation_delay": 2}, "commands 1 step late, sensors 2 steps late"),
        (
            {"observation_noise": {"*": 0.01, "*_velocity": 0.1}},
            "noise 0.01 on all sensors, noise 0.1 on *_velocity",
        ),
    ],
)
def test_words(world: dict[str, Any], words: str) -> None:
    Perturbation.model_validate(world | {"name": "x"})
    assert world_words({"name": "x"} | world) == words
    assert is_original({"name": "x"} | world) == ("original" in words and "then" not in words)


def test_many_changes_are_counted() -> None:
    world = LIGHT | {"actuator_delay": 1, "gravity": 0.5}
    assert world_words(world, most=2) == "mass × 0.75, joint damping × 0.5 and 2 more changes"
    assert world_words(world, most=4) == "mass × 0.75, joint damping × 0.5, commands 1 step late, gravity × 0.5"


@pytest.mark.parametrize("suite", sorted(path.stem for path in SUITE_FOLDER.glob("*.yaml")))
def test_no_two_worlds_of_a_shipped_suite_have_the_same_words(suite: str) -> None:
    worlds = load_suite(suite, make_environment("halfcheetah"))
    words = [world_words(world.model_dump(mode="json", exclude_defaults=True)) for world in worlds]
    assert len(set(words)) == len(worlds)
    assert all(words)


@given(st.sampled_from(["body_mass", "dof_armature", "limb_length"]), st.floats(0.1, 9), st.integers(0, 900))
def test_every_multiplier_and_moment_is_told(key: str, factor: float, step: int) -> None:
    world = Perturbation.model_validate({"name": "x", "at_step": step, key: {"torso": factor}})
    words = world_words(world.model_dump(mode="json", exclude_defaults=True))
    assert f"of torso × {factor:g}" in words
    assert (f"step {step}" in words) == (step > 0)
