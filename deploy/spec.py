"""What a robot is and what a bundle says of itself: the models behind `configs/robot/` and `bundle.json`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator, model_validator

SPEC, SIGNATURE = "bundle.json", "signature"

# Control periods; a world model's prediction over more is of little use to a policy.
LONGEST_DELAY = 10

Positive = Annotated[float, Field(gt=0)]


class _Model(BaseModel):
    """Frozen, and nothing is taken that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ObservationTerm(_Model):
    """One number of the observation vector.

    Attributes:
        name: its name, unique in the robot.
        source: what it measures; limits hold for the sources joint_position, joint_velocity, joint_effort and tilt.
        joints: the joint that it belongs to, none for a quantity of the whole robot.
        unit: SI unit of the value, after scaling.
        scale: factor from the sensor's reading to the value; the robot's driver applies it, before clipping.
        clip: bounds that the driver clips the value to, null for none.
    """

    name: str
    source: Literal[
        "joint_position", "joint_velocity", "joint_effort", "tilt", "base_position", "base_velocity", "other"
    ]
    joints: tuple[str, ...] = Field(default=(), max_length=1)
    unit: str
    scale: float = 1.0
    clip: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _senses(self) -> ObservationTerm:
        if self.scale == 0:
            raise ValueError(f"'{self.name}' has scale 0, with which nothing of it would be seen")
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"'{self.name}' is clipped to {self.clip[0]} to {self.clip[1]}; the first must be below")
        return self


class ActionSpec(_Model):
    """What the policy commands.

    Attributes:
        law: what a command is to the joint.
        joints: joints in command order.
        low: lowest command of each joint, in `unit`.
        high: highest.
        unit: unit of a command.
    """

    law: Literal["effort", "position", "velocity"]
    joints: tuple[str, ...] = Field(min_length=1)
    low: tuple[float, ...]
    high: tuple[float, ...]
    unit: str

    @model_validator(mode="after")
    def _fits(self) -> ActionSpec:
        _require_length("low", self.low, len(self.joints), "joints")
        _require_length("high", self.high, len(self.joints), "joints")
        for joint, low, high in zip(self.joints, self.low, self.high, strict=True):
            if not low < high:
                raise ValueError(f"the command of '{joint}' has low {low} and high {high}; low must be below high")
        return self


class Limits(_Model):
    """What is not to be left, each null where there is no limit.

    Attributes:
        position: lowest and highest observed position by joint, in the unit of its observation.
        velocity: highest observed speed by joint.
        effort: highest observed effort by joint.
        tilt: highest observed tilt, in rad.
        rate: fastest change of any command, in command units per second.
    """

    position: dict[str, tuple[float, float]] | None = None
    velocity: dict[str, Positive] | None = None
    effort: dict[str, Positive] | None = None
    tilt: Positive | None = None
    rate: Positive | None = None


class RobotDescription(_Model):
    """What a robot observes and takes, in order: `configs/robot/NAME.yaml`.

    Attributes:
        name: the robot.
        observations: the observation vector, term by term.
        action: the command vector.
        control_dt: control period in s.
        limits: limits of observation and command.
    """

    name: str
    observations: tuple[ObservationTerm, ...] = Field(min_length=1)
    action: ActionSpec
    control_dt: Positive
    limits: Limits = Limits()

    @property
    def obs_dim(self) -> int:
        """Size of an observation."""
        return len(self.observations)

    @property
    def act_dim(self) -> int:
        """Size of a command."""
        return len(self.action.joints)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names of the observation's dimensions."""
        return tuple(term.name for term in self.observations)

    def index(self, source: str, joint: str) -> int | None:
        """Return where in the observation a quantity of a joint stands, None where it is not observed."""
        for position, term in enumerate(self.observations):
            if term.source == source and term.joints == (joint,):
                return position
        return None

    @model_validator(mode="after")
    def _whole(self) -> RobotDescription:
        """Refuse names that occur twice and limits of joints that nothing observes."""
        for kind, names in (("observation term", self.observation_names), ("action joint", self.action.joints)):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"the {kind} '{twice[0]}' occurs twice")
        for joint, (low, high) in (self.limits.position or {}).items():
            if not low < high:
                raise ValueError(f"limits.position of '{joint}' is {low} to {high}; the first must be below the second")
        for quantity in ("position", "velocity", "effort"):
            for joint in getattr(self.limits, quantity) or {}:
                if self.index(f"joint_{quantity}", joint) is None:
                    raise ValueError(f"limits.{quantity} names '{joint}', whose {quantity} is not observed")
        if self.limits.tilt is not None and all(term.source != "tilt" for term in self.observations):
            raise ValueError("limits.tilt is set, but no observation term has the source tilt")
        if self.action.law == "position":
            for joint in self.action.joints:
                if self.index("joint_position", joint) is None:
                    raise ValueError(f"'{joint}' is commanded by position, so its position has to be observed")
        return self


class ContextSpec(_Model):
    """The context that the policy reads, and how it is inferred.

    Attributes:
        kind: what its numbers mean; `delta_scale` is one factor on the change of each observation dimension,
            `actuator_gain` one on the effect of each command, after what is `pushed`.
        dim: how many numbers.
        nominal: the context of the original environment, `(dim,)`.
        low: smallest context that the policy was trained on, `(dim,)`.
        high: largest.
        estimator: name of the estimator in deploy/context/.
        settings: its settings; what is left out is the estimator's default.
        pushed: terms of the observation, counted from 0, that something pushes: the context begins with what is added
            to the change of each in a control period, in the observation's units.
    """

    kind: Literal["delta_scale", "actuator_gain"]
    dim: int = Field(gt=0)
    nominal: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    estimator: str
    settings: dict[str, Any] = {}
    pushed: tuple[Annotated[int, Field(ge=0)], ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> ContextSpec:
        for name in ("nominal", "low", "high"):
            _require_length(name, getattr(self, name), self.dim, "dim")
        if not all(low <= z <= high for low, z, high in zip(self.low, self.nominal, self.high, strict=True)):
            raise ValueError("nominal has to lie between low and high")
        if self.pushed and self.kind != "actuator_gain":
            raise ValueError(f"pushed goes with actuator_gain, and the kind is {self.kind}")
        return self


class DelaySpec(_Model):
    """How the delay of the loop is found and made up for; see deploy/delay.py.

    Attributes:
        most: longest delay that is looked for, in control periods.
        forgetting: weight of the evidence a control period later; 0.85 remembers about 7.
        margin: another delay is taken where its score is below this share of the present one's.
    """

    most: int = Field(default=3, ge=1, le=LONGEST_DELAY)
    forgetting: float = Field(default=0.85, gt=0, lt=1)
    margin: float = Field(default=0.8, gt=0, le=1)


class CautionSpec(_Model):
    """How much smaller commands get for a light body whose motion the model does not know; see deploy/caution.py.

    Attributes:
        terms: which terms of the observation tell how the body answers, counted from 0.
        usual: the model's standard deviation along the policy's own motion in the original world, root mean square of
            each term, `(obs_dim,)` in observation units.
        limit: below which 98 of 100 of that motion's steps are, as a multiple of `usual`.
        forgetting: weight of the evidence on the body's answer a control period later; 0.98 remembers about 50.
        prior_std: how far from 1 the scaling of that answer is expected to lie before anything is seen.
        slack: scaling beyond 1 that changes nothing.
        strength: by what share a command gets smaller for each 1 of scaling beyond that.
        least: smallest share of a command.
        attack: control periods over which the mean excess over the limit rises.
        release: control periods over which it falls.
    """

    terms: tuple[NonNegativeInt, ...] = Field(min_length=1)
    usual: tuple[Positive, ...]
    limit: Positive
    forgetting: float = Field(default=0.98, gt=0, lt=1)
    prior_std: Positive = 0.1
    slack: float = Field(default=0.03, ge=0)
    strength: Positive = 2.5
    least: float = Field(default=0.5, ge=0, le=1)
    attack: float = Field(default=30.0, ge=1)
    release: float = Field(default=1000.0, ge=1)


class PlanSpec(_Model):
    """How far ahead every command is planned, inside policy.onnx; see offline_train/planner.py.

    Attributes:
        horizon: steps in the world model.
        spread: root mean square, over the actuators, of how far the commands that are tried are from the policy's, in
            [-1, 1].
        sharpness: how much a command weighs that promises more.
    """

    horizon: int = Field(default=3, ge=1, le=20)
    spread: float = Field(default=0.1, gt=0, le=1)
    sharpness: float = Field(default=2.0, gt=0)


class PriorSpec(_Model):
    """How the prior's standard deviation tells how far the robot is from the demonstrations; see deploy/confidence.py.

    Attributes:
        near: mean over the commands of the prior's standard deviation next to the demonstrations, in command units.
        far: the same far away from them.
    """

    near: float = Field(ge=0)
    far: float

    @model_validator(mode="after")
    def _grows(self) -> PriorSpec:
        if not self.near < self.far:
            raise ValueError(f"the prior's deviation is {self.near:g} next to its data and {self.far:g} far from it")
        return self


class Provenance(_Model):
    """Where the bundle comes from.

    Attributes:
        algorithm: what trained it.
        config: the training run's settings.
        dataset_sha256: hash of the log, empty where the policy was trained in a simulator.
        seed: of the training run.
        commit: the code's commit, null where it is not known.
        versions: of the packages that it was made with.
    """

    algorithm: str
    config: dict[str, Any]
    dataset_sha256: str
    seed: int
    commit: str | None = None
    versions: dict[str, str] = {}


class BundleSpec(_Model):
    """What `bundle.json` says.

    Attributes:
        schema_version: `schema` in the file.
        env: environment or robot that the policy was trained for.
        robot: observations, action, control period and limits.
        context: null where the policy reads none.
        delay: null where commands are taken to act at once.
        caution: null where commands stay as large as the policy gives them.
        plan: null where the policy acts by itself.
        prior: null where nothing tells how far the robot is from demonstrations.
        provenance: where it comes from.
        files: SHA-256 of every other file of the folder but the signature, by name; `write_bundle` fills it.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    env: str
    robot: RobotDescription
    context: ContextSpec | None = None
    delay: DelaySpec | None = None
    caution: CautionSpec | None = None
    plan: PlanSpec | None = None
    prior: PriorSpec | None = None
    provenance: Provenance
    files: dict[str, str] = {}

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            if not name or name in (".", "..", SPEC, SIGNATURE) or "/" in name or "\\" in name:
                raise ValueError(f"'{name}' is no name of a file in a bundle")
        return files

    @model_validator(mode="after")
    def _fits(self) -> BundleSpec:
        if self.context is not None and max(self.context.pushed, default=0) >= self.obs_dim:
            raise ValueError(f"context.pushed names term {max(self.context.pushed)} of {self.obs_dim}, from 0 on")
        if self.context is not None and self.context.dim != len(self.context_names):
            raise ValueError(
                f"the context has a number for each of {', '.join(self.context_names)}, but its dim is "
                f"{self.context.dim}"
            )
        if self.caution is not None:
            _require_length("caution.usual", self.caution.usual, self.obs_dim, "the observation")
            if max(self.caution.terms) >= self.obs_dim:
                raise ValueError(f"caution.terms names term {max(self.caution.terms)} of {self.obs_dim}, from 0 on")
        return self

    @property
    def adapts(self) -> bool:
        """Whether anything is inferred on the robot, for which it takes the dynamics."""
        return (self.context, self.delay, self.caution) != (None, None, None)

    @property
    def tolerance(self) -> float:
        """By how much a runtime may differ from the golden rows, relative where they exceed 1.

        A plan weighs small differences of large values, which no two runtimes round alike.
        """
        return 1e-4 if self.plan is None else 1e-3

    @property
    def context_names(self) -> tuple[str, ...]:
        """What each number of the context is about, nothing where the policy reads none."""
        if self.context is None:
            return ()
        names = self.robot.observation_names
        pushes = tuple(f"push on {names[term]}" for term in self.context.pushed)
        return pushes + (self.robot.action.joints if self.context.kind == "actuator_gain" else names)

    @property
    def obs_dim(self) -> int:
        """Size of an observation."""
        return self.robot.obs_dim

    @property
    def act_dim(self) -> int:
        """Size of a command."""
        return self.robot.act_dim

    def to_json(self, **options: Any) -> str:
        """Return the text of `bundle.json`; `options` are pydantic's."""
        return json.dumps(self.model_dump(mode="json", by_alias=True, **options), indent=2, allow_nan=False) + "\n"


def _require_length(name: str, values: tuple[float, ...], length: int, other: str) -> None:
    if len(values) != length:
        raise ValueError(f"{name} has {len(values)} numbers and {other} asks for {length}")
