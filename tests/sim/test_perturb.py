"""Every kind of perturbation through one battery, and every way in which a suite can be wrong."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import UserError
from sim import worn
from sim.environments import Environment, make_environment
from sim.perturb import NOMINAL, SUITE_FOLDER, Perturbation, load_suite
from sim.perturbed_plant import PerturbedPlant
from sim.plant import BatchedPlant
from sim.worlds import World, make_world, timeline

DERIVED = {
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "dof_M0",
    "actuator_acc0",
    "cam_poscom0",
    "light_poscom0",
}
SHAPE = {
    *("body_pos", "body_ipos", "body_mass", "body_inertia", "geom_pos", "geom_size", "geom_rbound", "geom_aabb"),
    *("bvh_aabb", "dof_length", "cam_pos0", "light_pos0", "start_offset"),
}
# key: (a change, the same with nothing changed, what it may change in the model and beside it)
BATTERY: dict[str, tuple[Any, Any, set[str]]] = {
    "body_mass": ({"*": 1.5}, {"*": 1.0}, {"body_mass", "body_inertia"} | DERIVED),
    "limb_length": ({"bshin": 1.25}, {"*": 1.0}, SHAPE | DERIVED),
    "dof_damping": ({"b*": 0.5}, {"b*": 1.0}, {"dof_damping"}),
    "dof_armature": ({"b*": 3.0}, {"b*": 1.0}, {"dof_armature"} | DERIVED),
    "joint_stiffness": ({"b*": 0.5}, {"b*": 1.0}, {"jnt_stiffness"}),
    "joint_lock": (
        {"bshin": True},
        {},
        {"dof_frictionloss", "dof_solref", "dof_solimp", "dof_armature"} | DERIVED,
    ),
    "actuator_gain": ({"ffoot": 0.0}, {"ffoot": 1.0}, {"actuator_gainprm"}),
    "actuator_delay": (2, 0, {"actuator_delay"}),
    "geom_friction": ({"*": 0.2}, {"*": 1.0}, {"geom_friction"}),
    "gravity": (1.3, 1.0, {"gravity"}),
    "external_force": ({"torso": (30.0, 0.0, 0.0)}, {"*": (0.0, 0.0, 0.0)}, {"forces"}),
    "observation_noise": ({"*_velocity": 0.2}, {"*": 0.0}, {"observation_noise"}),
    "observation_delay": (3, 0, {"observation_delay"}),
}
UNPATTERNED = {"gravity", "actuator_delay", "observation_delay"}


@pytest.fixture(scope="module")
def environment() -> Environment:
    return make_environment("halfcheetah")


def _change(key: str, at_step: int = 0) -> Perturbation:
    """The battery's change under one key."""
    return Perturbation(name="x", at_step=at_step, **{key: BATTERY[key][0]})


def _facts(world: World) -> dict[str, np.ndarray]:
    """A copy of all that a world consists of."""
    model = world.model
    names = [name for name in dir(model) if isinstance(getattr(model, name, None), np.ndarray)]
    facts = {name: getattr(model, name).copy() for name in names} | {"gravity": model.opt.gravity.copy()}
    return facts | {name: np.array(value) for name, value in vars(world).items() if name != "model"}


def _differing(first: World, second: World) -> set[str]:
    """What is not equal to the bit."""
    one, other = _facts(first), _facts(second)
    return {name for name in one if not np.array_equal(one[name], other[name], equal_nan=True)}


@pytest.mark.parametrize("key", BATTERY)
class TestEveryKind:
    """What holds for every key."""

    def test_changes_only_what_it_should(self, environment: Environment, key: str) -> None:
        differing = _differing(make_world(environment, NOMINAL), make_world(environment, _change(key)))
        assert differing
        assert differing <= BATTERY[key][2]

    def test_leaves_the_original_alone(self, environment: Environment, key: str) -> None:
        before = make_world(environment, NOMINAL)
        make_world(environment, _change(key))
        assert not _differing(before, make_world(environment, NOMINAL))

    def test_nominal_value_is_the_identity(self, environment: Environment, key: str) -> None:
        same = make_world(environment, Perturbation(name="x", **{key: BATTERY[key][1]}))
        assert not _differing(make_world(environment, NOMINAL), same)

    def test_shows_in_a_rollout(self, environment: Environment, key: str) -> None:
        seen, _ = _run(environment, [NOMINAL, _change(key)])
        assert abs(seen[:, 0] - seen[:, 1]).max() > 0.05

    def test_in_mid_run_is_the_same_as_from_the_start_in_that_state(self, environment: Environment, key: str) -> None:
        seen, states = _run(environment, [NOMINAL, _change(key, at_step=20)])
        np.testing.assert_array_equal(seen[:20, 0], seen[:20, 1])
        np.testing.assert_array_equal(states[:21, 0], states[:21, 1])
        if key != "actuator_delay":  # its first commands are still those from before the change
            start = states[20, 1] - make_world(environment, _change(key)).start_offset
            _, after = _run(environment, [_change(key)], start, first=20)
            np.testing.assert_allclose(after[:, 0], states[20:, 1], rtol=0, atol=1e-9)

    def test_goes_back_on_schedule(self, environment: Environment, key: str) -> None:
        there_and_back = Perturbation.model_validate(
            {"name": "x", "at_step": 10, key: BATTERY[key][0], "schedule": [{"at_step": 30}]}
        )
        worlds = timeline(environment, there_and_back)
        assert list(worlds) == [0, 10, 30]
        assert not _differing(worlds[0], worlds[30])
        assert not _differing(worlds[10], make_world(environment, _change(key)))
        seen, states = _run(environment, [there_and_back])
        _, after = _run(environment, [NOMINAL], states[30, 0], first=30)
        np.testing.assert_array_equal(after[:, 0], states[30:, 0])
        # With nothing between robot and controller any more, what is seen is the state.
        np.testing.assert_array_equal(seen[30:, 0], environment.observe(states[30:, 0]))


def _run(
    environment: Environment, worlds: list[Perturbation], start: np.ndarray | None = None, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Run worlds under the same fifty actions, of which the first ones may be left out.

    Returns:
        What is seen `(steps + 1, worlds, obs_dim)` and the true states `(steps + 1, worlds, nstate)`.
    """
    if start is None:
        start = environment.initial_states(np.random.default_rng(0), 1)[0]
    actions = np.random.default_rng(1).uniform(-1, 1, (50, 1, environment.act_dim))[first:]
    noise = [np.random.default_rng(2) for _ in worlds]
    with PerturbedPlant(environment, [timeline(environment, world) for world in worlds]) as robots:
        seen = [robots.reset(np.tile(start, (len(worlds), 1)), noise)]
        states = [robots.plant.states]
        for action in actions:
            seen.append(robots.step(np.repeat(action, len(worlds), 0))[0])
            states.append(robots.plant.states)
    return np.array(seen), np.array(states)


@pytest.mark.parametrize("key", [key for key in BATTERY if key not in UNPATTERNED])
def test_refuses_a_pattern_that_matches_nothing(environment: Environment, key: str) -> None:
    (value,) = BATTERY[key][0].values()
    with pytest.raises(UserError, match=rf"perturbation 'x': {key} 'tail' matches nothing; there are .*ffoot"):
        timeline(environment, Perturbation(name="x", **{key: {"tail": value}}))
    schedule = [{"at_step": 7, key: {"tail": value}}]
    with pytest.raises(UserError, match=rf"perturbation 'x', at_step 7: {key} 'tail' matches nothing"):
        timeline(environment, Perturbation.model_validate({"name": "x", "schedule": schedule}))


def test_nominal_is_the_original(environment: Environment) -> None:
    nominal = make_world(environment, NOMINAL)
    original = World(environment.model(), *list(vars(nominal).values())[1:])
    assert not _differing(original, nominal)


@settings(max_examples=20)
@given(st.floats(0.1, 10.0))
def test_inertia_goes_with_mass(factor: float) -> None:
    environment = make_environment("halfcheetah")
    original, changed = environment.model(), _model(environment, body_mass={"f*": factor})
    # Bodies: world, torso, three of the back leg, three of the front leg, whose names alone begin with f.
    expected = np.array([1, 1, 1, 1, 1, factor, factor, factor])
    np.testing.assert_allclose(changed.body_mass, original.body_mass * expected)
    np.testing.assert_allclose(changed.body_inertia, original.body_inertia * expected[:, None])


def _model(environment: Environment, **keys: Any) -> mujoco.MjModel:
    """The model of a changed world."""
    return make_world(environment, Perturbation(name="x", **keys)).model


def test_overlapping_patterns_multiply(environment: Environment) -> None:
    changed = _model(environment, dof_damping={"*": 0.5, "bthigh": 3.0})
    # Damping of rootx, rootz, rooty, bthigh, bshin, bfoot, ...: 0 0 0 6 4.5 3 4.5 3 1.5 in the task's XML.
    np.testing.assert_allclose(changed.dof_damping, [0, 0, 0, 9.0, 2.25, 1.5, 2.25, 1.5, 0.75])


def test_armature_and_stiffness_are_those_of_the_joint(environment: Environment) -> None:
    changed = _model(environment, dof_armature={"*": 2.0, "ffoot": 0.5}, joint_stiffness={"b*": 0.5})
    # In the task's XML every joint of a leg has armature 0.1; stiffness is 0 0 0 240 180 120 180 120 60.
    np.testing.assert_allclose(changed.dof_armature, [0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.1])
    np.testing.assert_allclose(changed.jnt_stiffness, [0, 0, 0, 120, 90, 60, 180, 120, 60])


def test_every_coefficient_of_a_force_goes_with_its_key(environment: Environment) -> None:
    model = environment.model()
    # A servo's force is gain x command + bias on position and speed; springs and dampers may be of higher order.
    model.actuator_gainprm[0, :3], model.actuator_biasprm[0, :3] = (40.0, 0.0, 0.0), (1.0, -40.0, -4.0)
    model.dof_dampingpoly[3], model.jnt_stiffnesspoly[3] = 8.0, 6.0
    servo = dataclasses.replace(environment, _model=model)
    changed = _model(
        servo, actuator_gain={"bthigh": 0.5}, dof_damping={"bthigh": 0.25}, joint_stiffness={"bthigh": 0.5}
    )
    np.testing.assert_allclose(changed.actuator_gainprm[0, :3], [20.0, 0.0, 0.0])
    np.testing.assert_allclose(changed.actuator_biasprm[0, :3], [0.5, -20.0, -2.0])
    np.testing.assert_allclose(changed.dof_dampingpoly[3], 2.0)
    np.testing.assert_allclose(changed.jnt_stiffnesspoly[3], 3.0)


def test_forces_add_and_noises_add_up_as_independent_ones(environment: Environment) -> None:
    world = make_world(
        environment,
        Perturbation(
            name="x",
            external_force={"*": (1.0, 0.0, -2.0), "torso": (4.0, 0.5, 0.0)},
            observation_noise={"*": 0.3, "ffoot_*": 0.4},
        ),
    )
    # The world's own body comes first, and no force acts on it.
    np.testing.assert_allclose(world.forces[:, :3], [[0, 0, 0], [5, 0.5, -2], *[[1, 0, -2]] * 6])
    assert not world.forces[:, 3:].any()
    # The front foot's angle and speed are the last of 8 and of 17: (0.3^2 + 0.4^2)^0.5 = 0.5.
    np.testing.assert_allclose(world.observation_noise, [*[0.3] * 7, 0.5, *[0.3] * 8, 0.5])


def test_gravity_as_a_vector(environment: Environment) -> None:
    np.testing.assert_array_equal(_model(environment, gravity=(1.0, 0.0, -3.7)).opt.gravity, [1.0, 0.0, -3.7])


def test_keys_of_one_world_act_together(environment: Environment) -> None:
    together = _model(environment, limb_length={"bthigh": 1.25}, body_mass={"bthigh": 2.0}, dof_damping={"*": 0.5})
    longer = _model(environment, limb_length={"bthigh": 1.25})
    np.testing.assert_allclose(together.body_mass, longer.body_mass * [1, 1, 2, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(together.body_pos, longer.body_pos)
    np.testing.assert_allclose(together.dof_damping, longer.dof_damping * 0.5)


@pytest.mark.parametrize("name", ["halfcheetah", "hopper", "walker2d"])
def test_locked_joint_stays_at_its_pose(name: str) -> None:
    environment = make_environment(name)
    joint = 4
    locked = _model(environment, joint_lock={environment.model().joint(joint).name: True})
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


def test_starting_at_moves_the_schedule_along() -> None:
    world = Perturbation.model_validate({"name": "x", "at_step": 500, "schedule": [{"at_step": 550}, {"at_step": 900}]})
    assert world.change_steps == [500, 550, 900]
    assert world.starting_at(30).change_steps == [30, 80, 430]
    assert world.starting_at(0).change_steps == [50, 400]
    assert Perturbation(name="x", gravity=2.0).change_steps == []


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


# Worlds of each suite for each robot. HalfCheetah has 6 motors and 7 bodies, Hopper 3 and 4, Walker2d 6 and 7, Ant 8
# and 9 with a name. Crippled: a world for each joint and each motor; limbs: two for each body; mid-episode: two for
# each motor and two more.
SIZES = {
    "mass-damping": (25, 25, 25, 25),
    "mass-damping-49": (49, 49, 49, 49),
    "crippled": (12, 6, 12, 16),
    "limbs": (14, 8, 14, 18),
    "surface": (12, 12, 12, 12),
    "wind": (10, 10, 10, 10),
    "payload": (11, 11, 11, 11),
    "worn": (24, 24, 24, 24),
    "late": (7, 7, 7, 7),
    "mid-episode": (14, 8, 14, 18),
}


@pytest.mark.parametrize("suite", SIZES)
@pytest.mark.parametrize(("index", "name"), enumerate(["halfcheetah", "hopper", "walker2d", "ant"]))
def test_shipped_suites_fit_every_robot(suite: str, index: int, name: str) -> None:
    environment = make_environment(name)
    worlds = load_suite(suite, environment)
    assert len(worlds) == SIZES[suite][index]
    nominal = make_world(environment, NOMINAL)
    for world in worlds[:: 5 if suite.startswith("mass") else 1]:
        changed = list(timeline(environment, world).values())
        assert world.name == "mass-1-damping-1" or any(_differing(nominal, each) for each in changed)


def test_every_shipped_suite_is_tested() -> None:
    shipped = {path.stem for path in SUITE_FOLDER.glob("*.yaml")}
    assert shipped == {*SIZES, "joint-failure"}


def test_the_larger_grid() -> None:
    factors = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    grid = load_suite("mass-damping-49")
    assert [(p.body_mass["*"], p.dof_damping["*"]) for p in grid] == [(m, d) for m in factors for d in factors]
    assert [p.name for p in grid[:2]] == ["mass-0.25-damping-0.25", "mass-0.25-damping-0.5"]


def test_slopes_are_gravity_tilted_by_their_angle() -> None:
    slopes = [p for p in load_suite("surface") if p.name.startswith("slope")]
    assert [p.name for p in slopes[2:4]] == ["slope-down-5", "slope-up-5"]
    for world in slopes:
        assert isinstance(world.gravity, tuple)
        x, y, z = world.gravity
        assert (x**2 + y**2 + z**2) ** 0.5 == pytest.approx(9.81, abs=1e-3)
        assert abs(math.degrees(math.atan(x / z))) == pytest.approx(float(world.name.rpartition("-")[2]), abs=0.01)
        # Uphill, gravity pulls back from the direction of running, which is x.
        assert (x < 0) == ("up" in world.name)


def test_the_worn_robots_are_those_of_their_command() -> None:
    assert (SUITE_FOLDER / "worn.yaml").read_text() == worn.suite()


def test_suite_over_the_parts_of_a_robot(environment: Environment, tmp_path: Path) -> None:
    file = tmp_path / "worlds.yaml"
    file.write_text(
        '- {name: "{body} pushed", external_force: {"{body}": [1, 0, 0]}}\n'
        "- {name: plain}\n"
        '- {name: "{joint} and {actuator}", joint_lock: {"{joint}": true}, schedule: [{at_step: 9, actuator_gain:'
        ' {"{actuator}": 0.5}}]}\n'
    )
    worlds = load_suite(file, make_environment("hopper"))
    # Hopper's motors have no names, so they go by their joints: 4 bodies, and 3 joints times 3 motors.
    assert [world.name for world in worlds[:5]] == [
        *(f"{b} pushed" for b in ("torso", "thigh", "leg", "foot")),
        "plain",
    ]
    assert len(worlds) == 4 + 1 + 9
    assert worlds[6].name == "thigh_joint and leg_joint"
    assert worlds[6].joint_lock == {"thigh_joint": True}
    assert worlds[6].schedule[0].actuator_gain == {"leg_joint": 0.5}
    with pytest.raises(UserError, match=r"worlds.yaml has a world for each body of a robot; name the environment too"):
        load_suite(file)


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
        ("- {name: a, limb_length: {thigh: 0}}", r"limb_length 'thigh': .*greater than 0, not 0"),
        ("- {name: a, dof_armature: {thigh: -1}}", r"dof_armature 'thigh'"),
        ("- {name: a, joint_stiffness: {thigh: -1}}", r"joint_stiffness 'thigh'"),
        ("- {name: a, external_force: {torso: 5.0}}", r"external_force 'torso': .*tuple, not 5.0"),
        ("- {name: a, external_force: {torso: [1.0, 2.0]}}", r"external_force 'torso'"),
        ("- {name: a, actuator_delay: 0.5}", "actuator_delay: .*integer, not 0.5"),
        ("- {name: a, observation_delay: -1}", "observation_delay: .*greater than or equal to 0, not -1"),
        ("- {name: a, observation_noise: {torso: -0.1}}", "observation_noise 'torso'"),
        ("- {name: a, schedule: 5}", "schedule: .*tuple, not 5"),
        ("- {name: a, schedule: [5]}", "schedule: "),
        (
            "- {name: a, schedule: [{at_step: 5}, {at_step: 7, gravty: 2.0}]}",
            r"\('a'\): schedule, change 2: unknown key 'gravty'; the keys are .*gravity",
        ),
        (
            "- {name: a, schedule: [{at_step: 5, body_mass: {leg: 0}}]}",
            r"schedule, change 1: body_mass 'leg': .*greater than 0, not 0",
        ),
        ("- {name: a, schedule: [{at_step: 0}]}", "schedule: the steps must rise"),
        ("- {name: a, at_step: 5, schedule: [{at_step: 5}]}", "schedule: the steps must rise"),
        ("- {name: a, schedule: [{at_step: 7}, {at_step: 6}]}", "schedule: the steps must rise"),
        ("- {name: a, schedule: [{at_step: 5, name: b}]}", "change 1: unknown key 'name'"),
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
    with pytest.raises(UserError, match=r"no suite 'mass'.*crippled, joint-failure, .*mass-damping"):
        load_suite("mass")


def test_pattern_error_names_the_file_of_the_suite(tmp_path: Path) -> None:
    file = tmp_path / "worlds.yaml"
    file.write_text("- {name: tailless, body_mass: {tail: 0.5}}")
    with pytest.raises(UserError, match=r"worlds.yaml, entry 'tailless': body_mass 'tail' matches nothing"):
        timeline(make_environment("halfcheetah"), load_suite(file)[0])
