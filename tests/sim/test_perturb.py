"""Every kind of perturbation through one battery, and every way in which a suite can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import UserError
from sim.environments import Environment, make_environment
from sim.perturb import NOMINAL, Perturbation, apply, load_suite
from sim.plant import BatchedPlant

# key: (a change, the same with nothing changed, the model's arrays that it may change)
DERIVED = {
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "dof_M0",
    "actuator_acc0",
    "cam_poscom0",
    "light_poscom0",
}
BATTERY: dict[str, tuple[Any, Any, set[str]]] = {
    "body_mass": ({"*": 1.5}, {"*": 1.0}, {"body_mass", "body_inertia"} | DERIVED),
    "dof_damping": ({"b*": 0.5}, {"b*": 1.0}, {"dof_damping"}),
    "actuator_gain": ({"ffoot": 0.0}, {"ffoot": 1.0}, {"actuator_gainprm"}),
    "geom_friction": ({"*": 0.2}, {"*": 1.0}, {"geom_friction"}),
    "gravity": (1.3, 1.0, set()),
    "joint_lock": (
        {"bshin": True},
        {},
        {"dof_frictionloss", "dof_solref", "dof_solimp", "dof_armature"} | DERIVED,
    ),
}


@pytest.fixture(scope="module")
def environment() -> Environment:
    return make_environment("halfcheetah")


def _arrays(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """A copy of every array of a model."""
    names = [name for name in dir(model) if isinstance(getattr(model, name, None), np.ndarray)]
    return {name: getattr(model, name).copy() for name in names} | {"gravity": model.opt.gravity.copy()}


def _differing(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> set[str]:
    """Names of the arrays that are not equal to the bit."""
    return {name for name in first if not np.array_equal(first[name], second[name], equal_nan=True)}


@pytest.mark.parametrize("key", BATTERY)
class TestEveryKind:
    """What holds for every key."""

    def test_changes_only_what_it_should(self, environment: Environment, key: str) -> None:
        change, _, allowed = BATTERY[key]
        original = environment.model()
        differing = _differing(_arrays(original), _arrays(apply(original, Perturbation(name="x", **{key: change}))))
        assert differing
        assert differing <= (allowed or {key})

    def test_leaves_the_original_alone(self, environment: Environment, key: str) -> None:
        original = environment.model()
        before = _arrays(original)
        apply(original, Perturbation(name="x", **{key: BATTERY[key][0]}))
        assert not _differing(before, _arrays(original))

    def test_nominal_value_is_the_identity(self, environment: Environment, key: str) -> None:
        original = environment.model()
        same = apply(original, Perturbation(name="x", **{key: BATTERY[key][1]}))
        assert not _differing(_arrays(apply(original, NOMINAL)), _arrays(same))

    def test_shows_in_a_rollout(self, environment: Environment, key: str) -> None:
        original = environment.model()
        changed = apply(original, Perturbation(name="x", **{key: BATTERY[key][0]}))
        start = environment.initial_states(np.random.default_rng(0), 1)
        actions = np.random.default_rng(1).uniform(-1, 1, (50, 1, 6))
        with BatchedPlant(environment, [original, changed]) as plant:
            plant.reset(states=np.repeat(start, 2, 0))
            for action in actions:
                observations, _, _ = plant.step(np.repeat(action, 2, 0))
        assert abs(observations[0] - observations[1]).max() > 0.05


@pytest.mark.parametrize("key", [key for key in BATTERY if key != "gravity"])
def test_refuses_a_pattern_that_matches_nothing(environment: Environment, key: str) -> None:
    value = True if key == "joint_lock" else 0.5
    with pytest.raises(UserError, match=rf"perturbation 'x': {key} 'tail' matches nothing; there are .*ffoot"):
        apply(environment.model(), Perturbation(name="x", **{key: {"tail": value}}))


def test_nominal_is_the_original(environment: Environment) -> None:
    original = environment.model()
    assert not _differing(_arrays(original), _arrays(apply(original, NOMINAL)))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 10.0))
def test_inertia_goes_with_mass(factor: float) -> None:
    original = make_environment("halfcheetah").model()
    changed = apply(original, Perturbation(name="x", body_mass={"f*": factor}))
    # Bodies: world, torso, three of the back leg, three of the front leg, whose names alone begin with f.
    expected = np.array([1, 1, 1, 1, 1, factor, factor, factor])
    np.testing.assert_allclose(changed.body_mass, original.body_mass * expected)
    np.testing.assert_allclose(changed.body_inertia, original.body_inertia * expected[:, None])


def test_overlapping_patterns_multiply(environment: Environment) -> None:
    changed = apply(environment.model(), Perturbation(name="x", dof_damping={"*": 0.5, "bthigh": 3.0}))
    # Damping of rootx, rootz, rooty, bthigh, bshin, bfoot, ...: 0 0 0 6 4.5 3 4.5 3 1.5 in the task's XML.
    np.testing.assert_allclose(changed.dof_damping, [0, 0, 0, 9.0, 2.25, 1.5, 2.25, 1.5, 0.75])


def test_gravity_as_a_vector(environment: Environment) -> None:
    changed = apply(environment.model(), Perturbation(name="x", gravity=(1.0, 0.0, -3.7)))
    np.testing.assert_array_equal(changed.opt.gravity, [1.0, 0.0, -3.7])


@pytest.mark.parametrize("name", ["halfcheetah", "hopper", "walker2d"])
def test_locked_joint_stays_at_its_pose(name: str) -> None:
    environment = make_environment(name)
    joint = 4
    locked = apply(
        environment.model(), Perturbation(name="x", joint_lock={environment.model().joint(joint).name: True})
    )
    generator = np.random.default_rng(0)
    with BatchedPlant(environment, [environment.model()]) as plant:
        plant.reset(generator)
        for _ in range(10):
            plant.step(generator.uniform(-1, 1, (1, environment.act_dim)))
        plant.replace_models({0: locked})
        plant.step(generator.uniform(-1, 1, (1, environment.act_dim)))
        pose = plant.states[0, 1 + joint]
        for _ in range(200):
            plant.step(np.ones((1, environment.act_dim)))
            assert abs(plant.states[0, 1 + joint] - pose) < 1e-3


def test_shipped_suites() -> None:
    grid = load_suite("mass-damping")
    factors = [0.5, 0.75, 1.0, 1.25, 1.5]
    assert [(p.body_mass["*"], p.dof_damping["*"]) for p in grid] == [(m, d) for m in factors for d in factors]
    assert grid[1].name == "mass-0.5-damping-0.75"
    failures = load_suite("joint-failure")
    joints = ["bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot"]
    assert [p.actuator_gain for p in failures] == [{joint: 0.0} for joint in joints] * 2
    assert [p.at_step for p in failures] == [0] * 6 + [500] * 6
    assert [p.name for p in failures[5:7]] == ["dead-ffoot", "dead-bthigh-at-500"]
    model = make_environment("halfcheetah").model()
    for perturbation in grid + failures:
        apply(model, perturbation)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no perturbations"),
        ("[]", "holds no perturbations"),
        ("name: a", "holds no perturbations"),
        ("- 3", r"entry 1 is not a mapping"),
        ("- [", "is not valid YAML"),
        ("- {name: a, name: b}", "duplicate key name"),
        ("- {body_mass: {'*': 2}}", "entry 1: name: field required"),
        (
            "- {name: a}\n- {name: b, body_mas: {'*': 2}}",
            r"entry 2 \('b'\): unknown key 'body_mas'; the keys are .*gravity",
        ),
        ("- {name: a, body_mass: {'*': -1}}", r"entry 1 \('a'\): body_mass '\*': .*greater than 0, not -1"),
        ("- {name: a, body_mass: {'*': 0}}", r"body_mass '\*'"),
        ("- {name: a, dof_damping: {'*': -0.5}}", r"dof_damping '\*'"),
        ("- {name: a, dof_damping: {'*': .nan}}", r"dof_damping '\*': .*finite"),
        ("- {name: a, actuator_gain: {ffoot: .inf}}", r"actuator_gain 'ffoot': .*finite"),
        ("- {name: a, geom_friction: {'*': slippery}}", r"geom_friction '\*'"),
        ("- {name: a, gravity: [0, -9.81]}", "gravity"),
        ("- {name: a, gravity: -1.0}", "gravity"),
        ("- {name: a, joint_lock: {ffoot: false}}", "joint_lock 'ffoot'"),
        ("- {name: a, at_step: -1}", "at_step"),
        ("- {name: a}\n- {name: a}", "2 entries named 'a'"),
    ],
)
def test_bad_suite_is_one_sentence_that_names_file_entry_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "worlds.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_suite(file)
    assert "worlds.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_suite_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no suite 'mass'.*joint-failure, mass-damping"):
        load_suite("mass")


def test_pattern_error_names_the_file_of_the_suite(tmp_path: Path) -> None:
    file = tmp_path / "worlds.yaml"
    file.write_text("- {name: tailless, body_mass: {tail: 0.5}}")
    with pytest.raises(UserError, match=r"worlds.yaml, entry 'tailless': body_mass 'tail' matches nothing"):
        apply(make_environment("halfcheetah").model(), load_suite(file)[0])
