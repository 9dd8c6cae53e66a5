"""Changed worlds: what a perturbation is, how it changes a MuJoCo model, and how a suite of them is read."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import mujoco
import numpy as np
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from yaml import YAMLError  # type: ignore[import-untyped]

import configs
from adapters.errors import UserError
from sim.environments import actuator_names

SUITE_FOLDER = Path(configs.__path__[0]) / "perturbations"

Multiplier = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
PositiveMultiplier = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Acceleration = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Perturbation(BaseModel):
    """One changed world.

    The dictionaries go from a shell-style pattern over names to a multiplier. Where several patterns match one name,
    their multipliers are multiplied.

    Attributes:
        name: unique within its suite.
        at_step: control step at which the world changes; 0 is the start of the episode.
        body_mass: by body; the inertia goes with the mass.
        dof_damping: by joint.
        actuator_gain: by actuator, or by its joint where it has no name; the force goes with it, 0 is a dead actuator.
        geom_friction: by geom; sliding, torsional and rolling friction alike.
        gravity: a multiplier, or a vector in m/s^2.
        joint_lock: by joint, true: it stays at the pose that it has at that moment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    at_step: Annotated[int, Field(strict=True, ge=0)] = 0
    body_mass: dict[str, PositiveMultiplier] = {}
    dof_damping: dict[str, Multiplier] = {}
    actuator_gain: dict[str, Multiplier] = {}
    geom_friction: dict[str, Multiplier] = {}
    gravity: Multiplier | tuple[Acceleration, Acceleration, Acceleration] = 1.0
    joint_lock: dict[str, Literal[True]] = {}

    _file: str = PrivateAttr(default="")

    @property
    def where(self) -> str:
        """The file and the entry, for a message to a person."""
        return f"{self._file}, entry '{self.name}'" if self._file else f"perturbation '{self.name}'"


NOMINAL = Perturbation(name="nominal")


def apply(model: mujoco.MjModel, perturbation: Perturbation) -> mujoco.MjModel:
    """Return a changed copy of the model; the model itself is left as it is.

    Raises:
        UserError: a pattern matches nothing in the model.
    """
    changed = copy.copy(model)
    bodies = [model.body(index).name for index in range(1, model.nbody)]
    joints = [model.joint(index).name for index in range(model.njnt)]
    geoms = [model.geom(index).name for index in range(model.ngeom)]

    for index, factor in _matches(perturbation, "body_mass", bodies):
        changed.body_mass[index + 1] *= factor
        changed.body_inertia[index + 1] *= factor
    for index, factor in _matches(perturbation, "dof_damping", joints):
        changed.dof_damping[model.dof_jntid == index] *= factor
    for index, factor in _matches(perturbation, "actuator_gain", actuator_names(model)):
        # A fixed or affine actuator's force is linear in the first three parameters of its gain and of its bias.
        changed.actuator_gainprm[index, :3] *= factor
        changed.actuator_biasprm[index, :3] *= factor
    for index, factor in _matches(perturbation, "geom_friction", geoms):
        changed.geom_friction[index] *= factor
    for index, _ in _matches(perturbation, "joint_lock", joints):
        _lock(changed, model.dof_jntid == index)
    if isinstance(perturbation.gravity, tuple):
        changed.opt.gravity[:] = perturbation.gravity
    else:
        changed.opt.gravity *= perturbation.gravity

    mujoco.mj_setConst(changed, mujoco.MjData(changed))
    return changed


def _matches(perturbation: Perturbation, key: str, names: list[str]) -> list[tuple[int, float]]:
    """Return (index, multiplier) for every name that a pattern under `key` matches."""
    found = []
    for pattern, factor in getattr(perturbation, key).items():
        hits = [index for index, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise UserError(f"{perturbation.where}: {key} '{pattern}' matches nothing; there are {', '.join(names)}.")
        found += [(index, factor) for index in hits]
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


def load_suite(name_or_file: str | Path) -> list[Perturbation]:
    """Read a suite: the name of one in configs/perturbations, or the path of a YAML file.

    Raises:
        UserError: there is no such suite, or the file is not a list of perturbations with names of their own.
    """
    path = _suite_path(name_or_file)
    try:
        # OmegaConf refuses a key given twice, of which plain YAML would keep the last one in silence.
        entries = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path.name} holds no perturbations; a suite is a YAML list with one entry for each world.")
    suite = [_read_entry(entry, number, path.name) for number, entry in enumerate(entries, start=1)]
    names = [perturbation.name for perturbation in suite]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path.name} has {names.count(name)} entries named '{name}'; give each its own name.")
    return suite


def _suite_path(name_or_file: str | Path) -> Path:
    """Find a suite's file."""
    shipped = sorted(file.stem for file in SUITE_FOLDER.glob("*.yaml"))
    if str(name_or_file) in shipped:
        return SUITE_FOLDER / f"{name_or_file}.yaml"
    path = Path(name_or_file)
    if path.is_file():
        return path
    raise UserError(f"there is no suite '{name_or_file}'; give a YAML file or one of {', '.join(shipped)}.")


def _read_entry(entry: Any, number: int, file: str) -> Perturbation:
    """Check one entry of a suite."""
    where = f"{file}, entry {number}"
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is not a mapping of keys such as name and body_mass.")
    if "name" in entry:
        where += f" ('{entry['name']}')"
    try:
        perturbation = Perturbation.model_validate(entry)
    except ValidationError as error:
        problem = error.errors()[0]
        key, *pattern = (str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = ", ".join(Perturbation.model_fields)
            raise UserError(f"{where}: unknown key '{key}'; the keys are {known}.") from error
        if pattern and isinstance(entry[key], Mapping):
            key += f" '{pattern[0]}'"
        raise UserError(f"{where}: {key}: {problem['msg'].lower()}, not {problem['input']!r}.") from error
    perturbation._file = file
    return perturbation
