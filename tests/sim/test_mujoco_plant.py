"""The robot by itself against the batched loop that validation runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.controller import Controller
from sim.environments import Environment, make_environment
from sim.mujoco_plant import MujocoPlant, find_world
from sim.perturb import NOMINAL, Change, Perturbation
from sim.rollout import run_episodes

HEAVY = Perturbation(name="heavy", at_step=12, body_mass={"*": 1.5})
EVERYTHING = Perturbation(
    name="everything",
    body_mass={"*": 1.2},
    limb_length={"*": 0.9, "f*": 1.2},
    dof_damping={"*": 0.8},
    dof_armature={"b*": 1.5},
    joint_stiffness={"*": 0.7},
    joint_lock={"bfoot": True},
    actuator_gain={"ffoot": 0.5},
    actuator_delay=2,
    geom_friction={"*": 0.6},
    gravity=(0.5, 0.0, -9.0),
    external_force={"torso": (-3.0, 0.0, 2.0)},
    observation_noise={"*_velocity": 0.2},
    observation_delay=1,
)
AND_BACK = EVERYTHING.model_copy(
    update={"name": "and-back", "at_step": 9, "schedule": (Change(at_step=15, observation_delay=3), Change(at_step=22))}
)
PUSH = np.array([0.3, -0.2, 0.1, 0.4, -0.5, 0.6])


@pytest.fixture(scope="module")
def cheetah() -> Environment:
    return make_environment("halfcheetah")


def states(plant: MujocoPlant, steps: int) -> np.ndarray:
    """Where so many steps of the same command lead."""
    for _ in range(steps):
        plant.step(PUSH)
    return plant.observe()


@pytest.mark.parametrize("world", [NOMINAL, HEAVY, EVERYTHING, AND_BACK], ids=lambda world: world.name)
def test_episodes_are_those_of_validation_bit_for_bit(
    cheetah: Environment, make_bundle: Callable[..., Path], world: Perturbation
) -> None:
    bundle = Bundle.load(make_bundle())
    expected = run_episodes(
        cheetah, [world], lambda plant: Controller(bundle, batch=(len(plant),)), episodes=2, seed=3, steps=30
    )
    plant = MujocoPlant(cheetah, world, seed=3)
    for episode in range(2):
        controller, rewards = Controller(bundle), []
        for step in range(30):
            so_far = plant.episode_return
            plant.step(controller.step(step * cheetah.control_dt, plant.observe()).action)
            rewards.append(plant.episode_return - so_far)
        assert plant.steps == 30
        assert plant.episode_return == expected.returns[0, episode]
        np.testing.assert_allclose(rewards, expected.rewards[0, episode], atol=1e-6)
        plant.reset()


def test_world_changes_at_once_and_back(cheetah: Environment) -> None:
    nominal, changed, back = (MujocoPlant(cheetah, seed=1) for _ in range(3))
    assert (states(changed, 5) == states(nominal, 5)).all()
    states(back, 5)
    for plant in (changed, back):
        plant.perturb("joint-failure:dead-ffoot-at-500")
    back.perturb("none")
    one, other, same = (states(plant, 1) for plant in (nominal, changed, back))
    assert (one == same).all()
    # The front foot's joint velocity comes last, and its motor is dead.
    assert abs(one[-1] - other[-1]) > 0.1
    changed.reset()
    nominal.reset()
    assert (changed.observe() == nominal.observe()).all()
    assert abs((states(changed, 1) - states(nominal, 1))[-1]) > 0.1


def test_world_that_is_not_known_leaves_the_plant_as_it_is(cheetah: Environment, tmp_path: Path) -> None:
    suite = tmp_path / "worlds.yaml"
    suite.write_text("- {name: lame, actuator_gain: {wing: 0.5}}\n")
    plant, nominal = MujocoPlant(cheetah), MujocoPlant(cheetah)
    with pytest.raises(UserError, match="entry 'lame': actuator_gain 'wing' matches nothing"):
        plant.perturb(f"{suite}:lame")
    assert (states(plant, 3) == states(nominal, 3)).all()
    assert plant.status() == {"steps": 3, "return": round(nominal.episode_return, 1), "world": "nominal"}


def test_world_is_found_by_suite_and_name() -> None:
    assert find_world("none") == NOMINAL
    assert find_world("joint-failure:dead-ffoot-at-500").at_step == 500
    assert find_world("joint-failure:dead-ffoot-at-500", at_step=7).at_step == 7
    assert find_world("joint-failure:dead-ffoot-at-500", at_step=0).actuator_gain == {"ffoot": 0.0}


def test_world_of_a_part_is_found_with_the_robot(cheetah: Environment) -> None:
    assert find_world("crippled:dead-bfoot", environment=cheetah).actuator_gain == {"bfoot": 0.0}
    assert find_world("mid-episode:light-and-loose-and-back", 20, cheetah).change_steps == [20, 520]
    with pytest.raises(UserError, match=r"crippled.yaml has a world for each joint of a robot; name the environment"):
        find_world("crippled:dead-bfoot")
    plant = MujocoPlant(cheetah)
    plant.perturb("crippled:dead-bfoot")
    assert plant.world.name == "dead-bfoot"


def test_schedule_begins_when_its_world_does(cheetah: Environment, tmp_path: Path) -> None:
    suite = tmp_path / "worlds.yaml"
    suite.write_text("- {name: gust, at_step: 50, external_force: {torso: [30, 0, 0]}, schedule: [{at_step: 55}]}\n")
    live, expected = MujocoPlant(cheetah), MujocoPlant(cheetah, find_world(f"{suite}:gust", 10))
    states(live, 10)
    live.perturb(f"{suite}:gust")
    # Pushed from step 10 to step 15, as in the other robot's episode.
    assert (states(live, 20) == states(expected, 20 + 10)).all()
    live.reset()
    expected = MujocoPlant(cheetah, find_world(f"{suite}:gust", 0))
    expected.reset()
    assert (states(live, 20) == states(expected, 20)).all()


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("dead-ffoot", "'dead-ffoot' is not SUITE:NAME"),
        ("joint-failure:dead-tail", "joint-failure has no world 'dead-tail'; choose one of dead-bthigh"),
        ("nowhere:dead", "there is no suite 'nowhere'"),
    ],
)
def test_place_that_is_no_world_is_refused(place: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        find_world(place)


def test_episode_ends_with_its_environment() -> None:
    plant = MujocoPlant(make_environment("hopper"))
    while not plant.ended:
        plant.step(np.array([1.0, 1.0, 1.0]))
        assert plant.steps < 300
    # The rule of sim/terminations.py: too low or too tilted.
    assert plant.observe()[0] <= 0.7 or abs(plant.observe()[1]) >= 0.2


def test_record_holds_the_last_episode(cheetah: Environment, tmp_path: Path) -> None:
    path = tmp_path / "new" / "episode.npz"
    plant = MujocoPlant(cheetah, record=path)
    states(plant, 2)
    plant.reset()
    start = plant.observe()
    states(plant, 3)
    plant.close()
    with np.load(path) as record:
        assert {name: record[name].shape for name in record} == {
            "observations": (3, 17),
            "actions": (3, 6),
            "rewards": (3,),
            "states": (4, 19),
        }
        assert (record["observations"][0] == start).all()
        assert (cheetah.observe(record["states"])[:-1] == record["observations"]).all()
        assert (record["actions"] == PUSH).all()
        assert record["rewards"].sum() == plant.episode_return
