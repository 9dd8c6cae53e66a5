"""Longer and shorter limbs against numbers worked out by hand."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from adapters.errors import UserError
from sim.environments import make_environment
from sim.limbs import lengthen
from sim.perturb import Change
from sim.worlds import World, make_world


def _world(name: str, **lengths: float) -> tuple[World, mujoco.MjModel]:
    """A world with other limbs, and the original model."""
    environment = make_environment(name)
    return make_world(environment, Change(limb_length=dict(lengths))), environment.model()


def test_hoppers_thigh() -> None:
    world, original = _world("hopper", thigh=1.25)
    model = world.model
    # A capsule of radius 0.05 m and half length 0.225 m, whose middle is 0.225 m below the hip, all times 1.25.
    np.testing.assert_allclose(model.geom("thigh_geom").size[:2], [0.05, 0.28125])
    np.testing.assert_allclose(model.geom("thigh_geom").pos, [0, 0, -0.28125])
    # The knee was 0.45 m below the hip, and is 0.1125 m lower now; the leg's frame, 0.25 m below the knee, goes along.
    np.testing.assert_allclose(model.body("leg").pos, [0, 0, -0.8125])
    np.testing.assert_array_equal(model.jnt_pos, original.jnt_pos)
    # Density 1000: pi r^2 (2 h) + 4/3 pi r^3 is 3.53429 + 0.52360 l before, and 4.41786 + 0.52360 l now.
    np.testing.assert_allclose(original.body("thigh").mass, 4.05789, rtol=1e-5)
    np.testing.assert_allclose(model.body("thigh").mass, 4.94146, rtol=1e-5)
    others = [original.body(name).id for name in ("torso", "leg", "foot")]
    np.testing.assert_array_equal(model.body_mass[others], original.body_mass[others])
    np.testing.assert_array_equal(model.body_inertia[others], original.body_inertia[others])


def test_hoppers_leg_shrinks_towards_the_knee_which_is_not_its_origin() -> None:
    model = _world("hopper", leg=0.75)[0].model
    # The knee is at 0.25 in the leg's frame, where the capsule of half length 0.25 has its middle at 0.
    np.testing.assert_allclose(model.geom("leg_geom").size[:2], [0.04, 0.1875])
    np.testing.assert_allclose(model.geom("leg_geom").pos, [0, 0, 0.0625])
    # The ankle, at (-0.13, 0, 0.1) in the foot's frame, was at -0.25 in the leg's; it is at 0.25 - 0.75 x 0.5 = -0.125.
    np.testing.assert_allclose(model.body("foot").pos, [0.13, 0, -0.225])


def test_cheetahs_thigh_leaves_the_mass_of_the_other_limbs_alone() -> None:
    world, original = _world("halfcheetah", bthigh=1.25)
    model = world.model
    # The compiler scales HalfCheetah to 14 kg in all; the other limbs keep the mass that they have in the original.
    np.testing.assert_allclose(original.body_mass.sum(), 14.0)
    others = [index for index in range(model.nbody) if index != model.body("bthigh").id]
    np.testing.assert_allclose(model.body_mass[others], original.body_mass[others], rtol=1e-12)
    # Radius 0.046, half length 0.145: pi r^2 (2 h) + 4/3 pi r^3 is 1.92780 + 0.40772 l before, 2.40975 + 0.40772 l now.
    np.testing.assert_allclose(model.body("bthigh").mass / original.body("bthigh").mass, 2.81747 / 2.33552, rtol=1e-5)
    np.testing.assert_allclose(model.body("bshin").pos, [1.25 * 0.16, 0, 1.25 * -0.25])
    np.testing.assert_allclose(model.geom("bthigh").pos, [1.25 * 0.1, 0, 1.25 * -0.13])
    np.testing.assert_array_equal(model.geom("bthigh").quat, original.geom("bthigh").quat)


def test_cheetahs_torso_is_given_by_its_ends_and_carries_the_legs() -> None:
    model = _world("halfcheetah", torso=0.75)[0].model
    # From -0.5 to 0.5 m; the head is a capsule of half length 0.15 at (0.6, 0, 0.1); the hips are at -0.5 and 0.5.
    np.testing.assert_allclose(model.geom("torso").size[:2], [0.046, 0.375])
    np.testing.assert_allclose(model.geom("head").size[:2], [0.046, 0.1125])
    np.testing.assert_allclose(model.geom("head").pos, [0.45, 0, 0.075])
    np.testing.assert_allclose(model.body("bthigh").pos, [-0.375, 0, 0])
    np.testing.assert_allclose(model.body("fthigh").pos, [0.375, 0, 0])


def test_ants_torso_is_a_sphere() -> None:
    world, _ = _world("ant", torso=1.25, aux_1=1.5)
    model = world.model
    assert model.geom("torso_geom").size[0] == 0.3125
    # Density 5: 5 x 4/3 pi 0.3125^3.
    np.testing.assert_allclose(model.body("torso").mass, 0.639159, rtol=1e-5)
    # The ankle was 0.2 m out along x and y; its body has no name.
    (ankle,) = np.flatnonzero(model.body_parentid == model.body("aux_1").id)
    np.testing.assert_allclose(model.body_pos[ankle], [0.3, 0.3, 0])


def test_overlapping_patterns_multiply() -> None:
    environment = make_environment("hopper")
    model = make_world(environment, Change(limb_length={"*": 0.5, "t*": 1.2, "thigh": 2.0})).model
    # Half lengths of torso, thigh, leg and foot: 0.2, 0.225, 0.25 and 0.195 m; times 0.6, 1.2, 0.5 and 0.5.
    np.testing.assert_allclose(model.geom_size[1:, 1], [0.12, 0.27, 0.125, 0.0975])


@pytest.mark.parametrize(
    ("name", "lengths", "coordinate", "lift"),
    [
        # The foot hangs 0.45 m below the hip, and a quarter more with a longer thigh.
        ("hopper", {"thigh": 1.25}, 2, 0.1125),
        ("hopper", {"thigh": 0.75, "leg": 1.25}, 2, -0.1125 + 0.125),
        # The back leg reaches lowest: its thigh 0.25 m down. The front leg may grow without reaching the ground first.
        ("halfcheetah", {"bthigh": 1.25}, 2, 0.0625),
        ("halfcheetah", {"torso": 1.25}, 2, 0.0),
        # The pose in which the Ant is written has its legs level: the torso, of radius 0.25 m, is lowest.
        ("ant", {"torso": 1.25}, 3, 0.0625),
    ],
)
def test_the_start_is_as_far_above_the_ground_as_the_originals(
    name: str, lengths: dict[str, float], coordinate: int, lift: float
) -> None:
    offset = _world(name, **lengths)[0].start_offset
    # State: time, then positions: x, z of the robots in the plane, x, y, z of the Ant.
    np.testing.assert_allclose(offset[coordinate], lift, atol=1e-12)
    assert not np.delete(offset, coordinate).any()


ARM = """
<mujoco>
  <asset><mesh name="pyramid" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset>
  <worldbody>
    <body name="arm">
      <joint type="hinge" axis="0 1 0" pos="0 0 0.5"/>
      {limb}
      <site name="elbow" pos="0 0 -0.5"/>
      <body name="hand" pos="1 0 0" quat="0.5 0.5 0.5 0.5">
        <joint type="hinge" axis="0 1 0" pos="0 0 1"/>
        <geom size="0.1"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


def test_a_child_that_is_turned_moves_with_its_joint_and_sites_with_the_limb() -> None:
    spec = mujoco.MjSpec.from_string(ARM.format(limb='<geom type="cylinder" size="0.1 0.5" mass="2"/>'))
    model = lengthen(spec, {1: 2.0}, "here")
    # The turn takes x to y, y to z and z to x: the wrist is at (1, 0, 0) + (1, 0, 0), 2 m ahead of the arm's joint and
    # 0.5 m below it. Twice as long, the arm takes it a further (2, 0, -0.5) away.
    np.testing.assert_allclose(model.body("hand").pos, [3, 0, -0.5], atol=1e-12)
    # 1 m below the joint, which is at 0.5.
    np.testing.assert_allclose(model.site("elbow").pos, [0, 0, -1.5])
    np.testing.assert_allclose(model.geom_size[0, :2], [0.1, 1.0])
    # This model states the arm's mass, which stays.
    np.testing.assert_allclose(model.body("arm").mass, 2.0)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ('type="capsule" size="0.4 0.1"', [0.4, 0.2, 0.0]),
        ('type="capsule" size="0.4" fromto="0 0 0.4 0 0 0.6"', [0.4, 0.2, 0.0]),
        ('type="cylinder" size="0.4 0.1"', [0.4, 0.2, 0.0]),
        ('type="sphere" size="0.1"', [0.2, 0.0, 0.0]),
        ('type="box" size="0.1 0.2 0.3"', [0.1, 0.2, 0.6]),
        ('type="ellipsoid" size="0.3 0.2 0.1"', [0.6, 0.2, 0.1]),
    ],
)
def test_every_shape_has_a_length(shape: str, size: list[float]) -> None:
    model = lengthen(mujoco.MjSpec.from_string(ARM.format(limb=f"<geom {shape}/>")), {1: 2.0}, "here")
    np.testing.assert_allclose(model.geom_size[0], size)


@pytest.mark.parametrize(
    "limb",
    [
        '<geom type="mesh" mesh="pyramid"/>',
        '<frame pos="0 0 1"><geom size="1"/></frame>',
        '<inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/><geom size="1"/>',
    ],
)
def test_a_limb_of_which_it_is_not_said_how_it_grows_is_refused(limb: str) -> None:
    spec = mujoco.MjSpec.from_string(ARM.format(limb=limb))
    with pytest.raises(UserError, match="here: limb_length of 'arm': it has a mesh, a frame or an inertia"):
        lengthen(spec, {1: 2.0}, "here")
