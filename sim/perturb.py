"""Changed worlds: the words in which one is described, and how a suite of them is read; sim/worlds.py makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import mujoco
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from yaml import YAMLError  # type: ignore[import-untyped]

import configs
from adapters.errors import UserError
from sim.environments import Environment, actuator_names

SUITE_FOLDER = Path(configs.__path__[0]) / "perturbations"

Multiplier = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
PositiveMultiplier = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Vector = tuple[Number, Number, Number]
Steps = Annotated[int, Field(strict=True, ge=0)]


class Change(BaseModel):
    """How a world differs from the original one, from one step on.

    The dictionaries go from a shell-style pattern over names to a value. Where several patterns match one name,
    multipliers are multiplied, forces are added, and noises add up as independent ones do.

    Attributes:
        at_step: control step at which the world changes; 0 is the start of the episode.
        body_mass: multiplier by body; the inertia goes with the mass.
        limb_length: multiplier by body, as sim/limbs.py says; the mass goes with the volume.
        dof_damping: multiplier by joint.
        dof_armature: multiplier by joint; the inertia that the motor adds to it.
        joint_stiffness: multiplier by joint; the spring that pulls it to its rest pose.
        joint_lock: by joint, true: it stays at the pose that it has at that moment.
        actuator_gain: multiplier by actuator, or by its joint where it has no name; the force goes with it, 0 is a dead
            actuator.
        actuator_delay: control steps from a command to its effect. The command before the first one is 0.
        geom_friction: multiplier by geom; sliding, torsional and rolling friction alike.
        gravity: a multiplier, or a vector in m/s^2.
        external_force: by body, a constant vector in N along the world's axes, at the body's centre of mass.
        observation_noise: by observation term, the standard deviation of Gaussian noise in the term's own unit.
        observation_delay: control steps by which what the controller sees is late. It sees the first observation until
            the next one is due.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_step: Steps = 0
    body_mass: dict[str, PositiveMultiplier] = {}
    limb_length: dict[str, PositiveMultiplier] = {}
    dof_damping: dict[str, Multiplier] = {}
    dof_armature: dict[str, Multiplier] = {}
    joint_stiffness: dict[str, Multiplier] = {}
    joint_lock: dict[str, Literal[True]] = {}
    actuator_gain: dict[str, Multiplier] = {}
    actuator_delay: Steps = 0
    geom_friction: dict[str, Multiplier] = {}
    gravity: Multiplier | Vector = 1.0
    external_force: dict[str, Vector] = {}
    observation_noise: dict[str, Multiplier] = {}
    observation_delay: Steps = 0


class Perturbation(Change):
    """One changed world.

    Attributes:
        name: unique within its suite.
        schedule: further changes in a row. Each one takes the place of the one before, and is relative to the original
            world too: one that says nothing but its step goes back to that.
    """

    name: str = Field(min_length=1)
    schedule: tuple[Change, ...] = ()

    _file: str = PrivateAttr(default="")

    @field_validator("schedule")
    @classmethod
    def _in_order(cls, schedule: tuple[Change, ...], info: ValidationInfo) -> tuple[Change, ...]:
        steps = [info.data.get("at_step", 0), *(change.at_step for change in schedule)]
        if steps != sorted(set(steps)):
            raise PydanticCustomError("order", "the steps must rise, at_step of the world itself first")
        return schedule

    @property
    def where(self) -> str:
        """The file and the entry, for a message to a person."""
        return f"{self._file}, entry '{self.name}'" if self._file else f"perturbation '{self.name}'"

    @property
    def change_steps(self) -> list[int]:
        """The control steps, after the start of the episode, at which the world changes."""
        return [change.at_step for change in (self, *self.schedule) if change.at_step]

    def starting_at(self, step: int) -> Perturbation:
        """Return the same changes at other times: the first at `step`, each later one as long after it as before."""
        move = step - self.at_step
        schedule = tuple(change.model_copy(update={"at_step": change.at_step + move}) for change in self.schedule)
        return self.model_copy(update={"at_step": step, "schedule": schedule})


NOMINAL = Perturbation(name="nominal")


def require_in_time(perturbation: Perturbation, steps: int) -> None:
    """Refuse a world that changes after the end of an episode of so many steps.

    Raises:
        UserError: it does.
    """
    last = max(perturbation.change_steps, default=0)
    if last >= steps:
        raise UserError(
            f"{perturbation.where}: at_step {last} is past the episode's {steps} steps; run at least {last + 1} steps."
        )


def load_suite(name_or_file: str | Path, environment: Environment | None = None) -> list[Perturbation]:
    """Read a suite: the name of one in configs/perturbations, or the path of a YAML file.

    An entry with `{joint}`, `{actuator}` or `{body}` in it stands for one world for each joint that an actuator drives,
    each actuator or each body of the environment.

    Args:
        name_or_file: the suite.
        environment: the robot whose parts such entries mean; may be left out where the suite has none.

    Raises:
        UserError: there is no such suite, the file is not a list of perturbations with names of their own, or there is
            no environment to take a part's name from.
    """
    path = _suite_path(name_or_file)
    try:
        # OmegaConf refuses a key given twice, of which plain YAML would keep the last one in silence.
        entries = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path.name} holds no perturbations; a suite is a YAML list with one entry for each world.")
    suite = [
        _read_entry(world, f"{path.name}, entry {number}", path.name)
        for number, entry in enumerate(entries, start=1)
        for world in _expand(entry, environment, path.name)
    ]
    if not suite:
        raise UserError(f"{path.name} has no world for this robot, which has none of the parts that the entries name.")
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


def _expand(entry: Any, environment: Environment | None, file: str) -> Iterator[Any]:
    """Yield an entry, or one for each part of the robot where it names a kind of parts."""
    for kind in ("joint", "actuator", "body"):
        mark = f"{{{kind}}}"
        if _replace(entry, mark, "") != entry:
            if environment is None:
                raise UserError(f"{file} has a world for each {kind} of a robot; name the environment too.")
            for name in part_names(environment, kind):
                yield from _expand(_replace(entry, mark, name), environment, file)
            return
    yield entry


def part_names(environment: Environment, kind: str) -> list[str]:
    """Return the names of a robot's parts: of a joint that an actuator drives, an actuator, or a body."""
    model = environment.model()
    if kind == "actuator":
        return actuator_names(model)
    if kind == "body":
        return [name for index in range(1, model.nbody) if (name := model.body(index).name)]
    driven = model.actuator_trnid[model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT, 0]
    return [model.joint(index).name for index in sorted(set(driven.tolist()))]


def _replace(value: Any, old: str, new: str) -> Any:
    """Replace a text wherever it occurs in what was read from YAML."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, Mapping):
        return {_replace(key, old, new): _replace(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, old, new) for item in value]
    return value


def _read_entry(entry: Any, where: str, file: str) -> Perturbation:
    """Check one entry of a suite."""
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is not a mapping of keys such as name and body_mass.")
    if "name" in entry:
        where += f" ('{entry['name']}')"
    try:
        perturbation = Perturbation.model_validate(entry)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(entry, error.errors()[0])}.") from error
    perturbation._file = file
    return perturbation


def _explain(entry: Mapping[Any, Any], problem: Any) -> str:
    """Say in one sentence which key of an entry is wrong, and how."""
    kind: type[Change] = Perturbation
    prefix, (key, *rest) = "", problem["loc"]
    if key == "schedule" and len(rest) > 1:
        number, key, *rest = rest
        kind, entry, prefix = Change, entry["schedule"][number], f"schedule, change {number + 1}: "
    if problem["type"] == "extra_forbidden":
        return f"{prefix}unknown key '{key}'; the keys are {', '.join(kind.model_fields)}"
    if problem["type"] == "order":
        return f"{key}: {problem['msg']}"
    if rest and isinstance(entry[key], Mapping):
        key = f"{key} '{rest[0]}'"
    return f"{prefix}{key}: {problem['msg'].lower()}, not {problem['input']!r}"
