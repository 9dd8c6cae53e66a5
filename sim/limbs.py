"""Limbs of other lengths: the robot's MjSpec is edited and compiled again."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np

from adapters.errors import UserError
from sim.environments import FULL_PHYSICS, compile_spec

ROUND = (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER)
SHAPES = (*ROUND, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_ELLIPSOID)
ANCHORING = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_BALL)


def lengthen(spec: mujoco.MjSpec, factors: Mapping[int, float], where: str) -> mujoco.MjModel:
    """Compile a robot with limbs of other lengths; the spec is used up.

    A limb grows from its joint. Capsules and cylinders get longer and stay as thick, boxes and ellipsoids grow along
    their longest axis, spheres grow, and the joints and bodies that hang on the limb keep their size and move outwards
    with it. MuJoCo's own scale of a frame would make the limb thicker too, and all that hangs on it larger.

    Densities stay, so that the mass goes with the volume; a geom whose mass the model states keeps it. Masses that a
    model scales to a given total (`settotalmass`, HalfCheetah's) keep that scale, so that no other limb gets lighter.

    Args:
        spec: the original robot.
        factors: from a body's index to the multiplier of its length.
        where: what an error calls the change.

    Raises:
        UserError: a limb has a shape or a mass of which it is not said how it grows.
    """
    total = spec.compiler.settotalmass
    spec.compiler.settotalmass = -1
    original = compile_spec(spec)
    for body in spec.bodies:
        if body.id in factors:
            _check(body, where)
            _scale(body, original, factors[body.id])
    if total > 0:
        spec.compiler.settotalmass = total * (compile_spec(spec).body_mass.sum() / original.body_mass.sum())
    return compile_spec(spec)


def _check(body: mujoco.MjsBody, where: str) -> None:
    """Refuse a limb that is more than its joints and simple shapes."""
    parts = [*body.geoms, *body.joints, *body.sites, *body.bodies]
    framed = any(part.frame is not None for part in parts)
    if framed or body.explicitinertial or any(geom.type not in SHAPES for geom in body.geoms):
        raise UserError(
            f"{where}: limb_length of '{body.name}': it has a mesh, a frame or an inertia of its own, and only bodies "
            "of simple shapes are scaled; choose others."
        )


def _scale(body: mujoco.MjsBody, original: mujoco.MjModel, factor: float) -> None:
    """Scale one limb by a factor, from its joint on."""
    anchor = _anchor(body)
    for geom in body.geoms:
        if np.isnan(geom.fromto[0]):
            geom.pos = anchor + factor * (geom.pos - anchor)
            geom.size[1 if geom.type in ROUND else np.argmax(geom.size)] *= factor
        else:
            geom.fromto = (anchor + factor * (geom.fromto.reshape(2, 3) - anchor)).ravel()
    for site in body.sites:
        site.pos = anchor + factor * (site.pos - anchor)
    for child in body.bodies:
        # What moves outwards is the joint, wherever the frame of the child may be.
        joint = np.zeros(3)
        mujoco.mju_rotVecQuat(joint, _anchor(child), original.body_quat[child.id])
        child.pos = child.pos + (factor - 1) * (child.pos + joint - anchor)


def _anchor(body: mujoco.MjsBody) -> np.ndarray:
    """Return where a body turns, in its own frame: at its first hinge or ball, or at its origin where it has none."""
    anchors = [np.array(joint.pos) for joint in body.joints if joint.type in ANCHORING]
    return anchors[0] if anchors else np.zeros(3)


def standing_offset(original: mujoco.MjModel, changed: mujoco.MjModel) -> np.ndarray:
    """Return what to add to a start state, `(nstate,)`, so that the robot is as far above the ground as the original.

    Without it a robot with longer legs starts with its feet in the ground, and is thrown out of it.
    """
    offset = np.zeros(mujoco.mj_stateSize(original, FULL_PHYSICS))
    for joint in np.flatnonzero(original.body_parentid[original.jnt_bodyid] == 0):
        kind, address = original.jnt_type[joint], 1 + original.jnt_qposadr[joint]
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            offset[address + 2] = _clearance(original) - _clearance(changed)
        elif kind == mujoco.mjtJoint.mjJNT_SLIDE and original.jnt_axis[joint, 2] == 1:
            offset[address] = _clearance(original) - _clearance(changed)
    return offset


def _clearance(model: mujoco.MjModel) -> float:
    """Return the height in m of the robot's lowest point above the ground, in the pose that the model is written in."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    grounds = [geom for geom in range(model.ngeom) if model.geom_bodyid[geom] == 0]
    robot = [geom for geom in range(model.ngeom) if model.geom_bodyid[geom] != 0]
    far = 10.0
    gaps = [mujoco.mj_geomDistance(model, data, ground, geom, far, None) for ground in grounds for geom in robot]
    return min(gaps, default=0.0)
