"""From the description of a changed world to a MuJoCo model and what goes with it; sim/perturb.py has the words."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from adapters.errors import UserError
from sim.environments import FULL_PHYSICS, Environment, actuator_names
from sim.limbs import lengthen, standing_offset
from sim.perturb import NOMINAL, Change, Perturbation


@dataclass(frozen=True, eq=False)
class World:
    """One robot's world between two changes.

    Attributes:
        model: the changed dynamics.
        forces: `(nbody, 6)`, a constant force in N and torque in N m on each body, world axes, at its centre of mass.
        actuator_delay: control steps from a command to its effect.
        observation_delay: control steps from an observation to the controller.
        observation_noise: `(obs_dim,)`, standard deviations.
        start_offset: `(nstate,)`, what is added to the state in which an episode starts in this world.
    """

    model: mujoco.MjModel
    forces: np.ndarray
    actuator_delay: int
    observation_delay: int
    observation_noise: np.ndarray
    start_offset: np.ndarray


def timeline(environment: Environment, perturbation: Perturbation) -> dict[int, World]:
    """Return the worlds of an episode by the control step at which each begins; step 0 is always there.

    Raises:
        UserError: a pattern matches nothing, or a limb cannot be scaled.
    """
    worlds = {0: make_world(environment, NOMINAL)} if perturbation.at_step else {}
    worlds[perturbation.at_step] = make_world(environment, perturbation, perturbation.where)
    for change in perturbation.schedule:
        worlds[change.at_step] = make_world(environment, change, f"{perturbation.where}, at_step {change.at_step}")
    return worlds


def steady_world(environment: Environment, perturbation: Perturbation) -> World:
    """Return the world of an episode that stays as it is, for those who learn or log in one world.

    Raises:
        UserError: it changes during the episode, or it has noise or delays.
    """
    if perturbation.change_steps:
        raise UserError(
            f"{perturbation.where} changes at step {perturbation.change_steps[0]}, and this takes a world that stays "
            "as it is; choose one that is changed from the start."
        )
    world = timeline(environment, perturbation)[0]
    if world.actuator_delay or world.observation_delay or world.observation_noise.any():
        raise UserError(f"{perturbation.where} has noise or delays, which this does not take; choose another.")
    return world


def make_world(environment: Environment, change: Change, where: str = "the change") -> World:
    """Make one changed world.

    Args:
        environment: the original.
        change: how the world differs from it, whenever that may be.
        where: what an error calls the change.

    Raises:
        UserError: a pattern matches nothing, or a limb cannot be scaled.
    """
    original = environment.model()
    bodies = {index: original.body(index).name for index in range(1, original.nbody)}
    model, start_offset = original, np.zeros(mujoco.mj_stateSize(original, FULL_PHYSICS))

    lengths: dict[int, float] = {}
    for index, factor in _matches(change, "limb_length", bodies, where):
        lengths[index] = lengths.get(index, 1.0) * factor
    if lengths:
        model = lengthen(environment.spec(), lengths, where)
        start_offset = standing_offset(original, model)
    _change_model(model, change, bodies, where)

    forces = np.zeros((model.nbody, 6))
    for index, force in _matches(change, "external_force", bodies, where):
        forces[index, :3] += force
    noise = np.zeros(environment.obs_dim)
    terms = dict(enumerate(environment.observation_names))
    for index, deviation in _matches(change, "observation_noise", terms, where):
        noise[index] = math.hypot(noise[index], deviation)
    return World(model, forces, change.actuator_delay, change.observation_delay, noise, start_offset)


def _change_model(model: mujoco.MjModel, change: Change, bodies: Mapping[int, str], where: str) -> None:
    """Change the numbers of a compiled model."""
    joints = {index: model.joint(index).name for index in range(model.njnt)}
    geoms = {index: model.geom(index).name for index in range(model.ngeom)}
    actuators = dict(enumerate(actuator_names(model)))

    for index, factor in _matches(change, "body_mass", bodies, where):
        model.body_mass[index] *= factor
        model.body_inertia[index] *= factor
    for index, factor in _matches(change, "dof_damping", joints, where):
        model.dof_damping[model.dof_jntid == index] *= factor
        model.dof_dampingpoly[model.dof_jntid == index] *= factor
    for index, factor in _matches(change, "dof_armature", joints, where):
        model.dof_armature[model.dof_jntid == index] *= factor
    for index, factor in _matches(change, "joint_stiffness", joints, where):
        model.jnt_stiffness[index] *= factor
        model.jnt_stiffnesspoly[index] *= factor
    for index, factor in _matches(change, "actuator_gain", actuators, where):
        # A fixed or affine actuator's force is linear in the first three parameters of its gain and of its bias.
        model.actuator_gainprm[index, :3] *= factor
        model.actuator_biasprm[index, :3] *= factor
    for index, factor in _matches(change, "geom_friction", geoms, where):
        model.geom_friction[index] *= factor
    for index, _ in _matches(change, "joint_lock", joints, where):
        _lock(model, model.dof_jntid == index)
    if isinstance(change.gravity, tuple):
        model.opt.gravity[:] = change.gravity
    else:
        model.opt.gravity *= change.gravity

    mujoco.mj_setConst(model, mujoco.MjData(model))


def _matches(change: Change, key: str, names: Mapping[int, str], where: str) -> list[tuple[int, Any]]:
    """Return (index, value) for every name that a pattern under `key` matches."""
    found = []
    for pattern, value in getattr(change, key).items():
        hits = [index for index, name in names.items() if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            known = ", ".join(name for name in names.values() if name)
            raise UserError(f"{where}: {key} '{pattern}' matches nothing; there are {known}.")
        found += [(index, value) for index in hits]
    return found


def _lock(model: mujoco.MjModel, dofs: np.ndarray) -> None:
    """Hold degrees of freedom by dry friction that no force here overcomes, as stiff as the solver allows.

    Unlike a constraint to an angle it needs no pose, and unlike damping it stays stable under explicit integrators.
    The solver is never quite rigid; the armature makes what it lets through too slow to matter, and exerts no force
    on a joint at rest.
    """
    model.dof_frictionloss[dofs] = 1e6
    model.dof_solref[dofs] = (2 * model.opt.timestep, 1.0)
    model.dof_solimp[dofs] = (0.9999, 0.9999, 0.001, 0.5, 2.0)
    model.dof_armature[dofs] += 100.0
