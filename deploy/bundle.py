"""The bundle: the one thing that crosses from the workstation to validation and to the robot.

A folder `NAME.bundle/` that holds `policy.onnx`, where context or delay are inferred `dynamics.onnx`, where a network
infers the context `adaptation.onnx`, with a prior of demonstrations `prior.onnx`, `golden.npz` with rows that every
runtime must reproduce, `validation.json` where there was a validation, further parts of an algorithm, `bundle.json`,
which describes and hashes them all, and where it is signed `signature`. The graphs carry the description too, so that
a lone policy.onnx still loads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from adapters.errors import UserError
from adapters.files import atomic_path, parse_json, read_bytes, read_json, sha256
from deploy.confidence import PredictPrior
from deploy.context import Adapt, HistorySettings, PredictChange, estimator_settings, require_estimator
from deploy.golden import check_golden, golden_bytes, read_golden
from deploy.graph import Graph, with_description
from deploy.signature import check_signature, fingerprint, is_signed, read_public_key, sign
from deploy.spec import (
    SPEC,
    ActionSpec,
    BundleSpec,
    CautionSpec,
    ContextSpec,
    DelaySpec,
    Limits,
    ObservationTerm,
    PlanSpec,
    PriorSpec,
    Provenance,
    RobotDescription,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "ActionSpec",
    "Bundle",
    "BundleSpec",
    "CautionSpec",
    "ContextSpec",
    "DelaySpec",
    "Limits",
    "ObservationTerm",
    "PlanSpec",
    "PriorSpec",
    "Provenance",
    "RobotDescription",
    "attach_validation",
    "write_bundle",
]

SCHEMA_VERSIONS = (1,)
POLICY, DYNAMICS, GOLDEN, VALIDATION = "policy.onnx", "dynamics.onnx", "golden.npz", "validation.json"
ADAPTATION, PRIOR = "adaptation.onnx", "prior.onnx"


class Bundle:
    """A bundle that was found whole, or a lone policy.onnx out of one; made by `Bundle.load`.

    Attributes:
        path: the folder, or the lone file.
        manifest: what bundle.json says; of a lone file what its metadata says, which names no files.
        sha256: names the bundle: the hash of what bundle.json says, hashes of all else included, without its line
            about validation.json, so that a bundle keeps its name when its own report is put into it. A lone file's
            name is its own hash.
        signed_by: fingerprint of the public key that the signature was checked with, None where none was given.
    """

    def __init__(
        self,
        path: Path,
        spec: BundleSpec,
        sha256: str,
        policy: Graph,
        dynamics: Graph | None = None,
        adaptation: Graph | None = None,
        prior: Graph | None = None,
        signed_by: str | None = None,
    ) -> None:
        self.path, self.manifest, self.sha256, self.signed_by = path, spec, sha256, signed_by
        self._policy, self._dynamics, self._adaptation, self._prior = policy, dynamics, adaptation, prior
        obs_dim, act_dim = spec.obs_dim, spec.act_dim
        context = {} if spec.context is None else {"context": spec.context.dim}
        policy.check({"obs": obs_dim} | context, {"action": act_dim})
        if dynamics is not None:
            dynamics.check({"obs": obs_dim, "action": act_dim}, {"delta": obs_dim, "std": obs_dim})
        if adaptation is not None:
            adaptation.check({"history": _history_dim(spec)}, {"estimate": len(spec.context_names)})
        if prior is not None:
            prior.check({"obs": obs_dim}, {"prior_mean": act_dim, "prior_std": act_dim})

    @classmethod
    def load(cls, path: str | Path, public_key: str | Path | None = None) -> Bundle:
        """Read a bundle and check all of it: names, hashes, shapes, and that this runtime reproduces the golden rows.

        A lone policy.onnx loads as well, from the description in its metadata. It has no dynamics, so it runs with its
        nominal context alone and does not adapt; it has no golden rows, so nothing tells whether this runtime computes
        what was exported; and it has neither hashes nor a signature, so nothing tells whether it was altered.

        Args:
            path: the folder, or a policy.onnx.
            public_key: PEM file of the key that has to have signed the bundle, None where anyone may have made it.

        Raises:
            UserError: it is not there or not whole, or the key has not signed it.
        """
        path = Path(path)
        key = None if public_key is None else read_public_key(Path(public_key))
        if not path.is_file():
            return _load_folder(path, key)
        if key is not None:
            raise UserError(f"{path} is a lone file, which carries no signature; give the folder of a signed bundle.")
        return _load_lone(path)

    @property
    def lone(self) -> bool:
        """Whether this is a lone policy.onnx, of which nothing but its tensors could be checked."""
        return not self.manifest.files

    def act(self, obs: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
        """Run the policy.

        Args:
            obs: `(..., obs_dim)` in observation units.
            context: `(..., context_dim)`, None where the policy reads none.

        Returns:
            `(..., act_dim)` float32, in command units, without limits applied.
        """
        inputs = {"obs": obs} if context is None else {"obs": obs, "context": context}
        (action,) = self._policy.run(inputs)
        return action

    @property
    def predict_change(self) -> PredictChange:
        """The dynamics of the original environment, as a function of `obs` and `action`.

        From `obs` `(..., obs_dim)` in observation units and `action` `(..., act_dim)` in command units to the mean
        change of state over one control period and its predicted standard deviation, both `(..., obs_dim)` float32 in
        observation units. A property, so that who needs the dynamics is refused before the robot moves.

        Raises:
            UserError: the bundle has no dynamics.
        """
        if self._dynamics is None:
            raise UserError(
                f"{self.path} has no {DYNAMICS}, from which context and delay are inferred; set context=nominal, or "
                "give the folder of a bundle that has one."
            )
        return self._predict_change

    def _predict_change(self, obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self._dynamics is not None
        delta, std = self._dynamics.run({"obs": obs, "action": action})
        return delta, std

    @property
    def adapt(self) -> Adapt | None:
        """The adaptation module, None where the bundle needs none.

        From histories `(..., history_dim)`, as `deploy.context.history` makes them in observation and command units, to
        contexts `(..., context_dim)` float32, without limits applied.
        """
        return None if self._adaptation is None else self._adapt

    def _adapt(self, history: np.ndarray) -> np.ndarray:
        assert self._adaptation is not None
        (estimate,) = self._adaptation.run({"history": history})
        return estimate

    @property
    def predict_prior(self) -> PredictPrior | None:
        """The prior that demonstrations gave, None where the bundle has none.

        From observations `(..., obs_dim)` to mean and standard deviation of the demonstrator's command, both
        `(..., act_dim)` float32 in command units.
        """
        return None if self._prior is None else self._predict_prior

    def _predict_prior(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self._prior is not None
        mean, std = self._prior.run({"obs": obs})
        return mean, std

    def validation(self) -> dict[str, Any] | None:
        """Return the report of the validation run, None where there was none."""
        return read_json(self.path / VALIDATION) if VALIDATION in self.manifest.files else None

    def _check_golden(self, content: bytes) -> None:
        """Compare this runtime with the golden rows."""
        spec = self.manifest
        sizes = {"obs": spec.obs_dim, "action": spec.act_dim}
        sizes |= {} if spec.context is None else {"context": spec.context.dim}
        sizes |= {} if self._dynamics is None else {"delta": spec.obs_dim, "std": spec.obs_dim}
        if self._adaptation is not None:
            sizes |= {"history": _history_dim(spec), "estimate": len(spec.context_names)}
        if self._prior is not None:
            sizes |= {"prior_mean": spec.act_dim, "prior_std": spec.act_dim}
        golden = read_golden(content, self.path / GOLDEN, sizes)
        found = {"action": self.act(golden["obs"], golden.get("context"))}
        if self._dynamics is not None:
            found["delta"], found["std"] = self.predict_change(golden["obs"], golden["action"])
        if self._adaptation is not None:
            found["estimate"] = self._adapt(golden["history"])
        if self._prior is not None:
            found["prior_mean"], found["prior_std"] = self._predict_prior(golden["obs"])
        check_golden(self.path, found, golden, spec.tolerance)


def _load_folder(path: Path, key: Ed25519PublicKey | None) -> Bundle:
    """Read a bundle's folder; each file is read once, so that what was checked is what runs."""
    if not path.is_dir():
        raise UserError(f"there is no bundle {path}; give the folder that surefoot export wrote.")
    description = read_bytes(path / SPEC)
    if key is not None:
        check_signature(path, description, key)
    spec = _parse_spec(description, str(path / SPEC))
    contents = _read_files(path, spec)
    bundle = Bundle(
        path,
        spec,
        sha256=_name(spec),
        policy=Graph(contents[POLICY], path / POLICY),
        dynamics=Graph(contents[DYNAMICS], path / DYNAMICS) if DYNAMICS in contents else None,
        adaptation=Graph(contents[ADAPTATION], path / ADAPTATION) if ADAPTATION in _needed(spec) else None,
        prior=Graph(contents[PRIOR], path / PRIOR) if spec.prior is not None else None,
        signed_by=None if key is None else fingerprint(key),
    )
    bundle._check_golden(contents[GOLDEN])
    return bundle


def _load_lone(path: Path) -> Bundle:
    """Read a policy.onnx that carries the description."""
    content = read_bytes(path)
    policy = Graph(content, path)
    spec = _parse_spec(policy.description(), f"the description in {path}")
    alone = spec.model_copy(update={"files": {}})
    return Bundle(path, alone, hashlib.sha256(content).hexdigest(), policy)


def _parse_spec(description: str | bytes, source: str) -> BundleSpec:
    """Read what bundle.json says, or refuse what is not JSON, of an unknown schema, or not allowed."""
    content = parse_json(description, source)
    version = content.get("schema") if isinstance(content, dict) else None
    if version not in SCHEMA_VERSIONS:
        known = ", ".join(map(str, SCHEMA_VERSIONS))
        raise UserError(f"{source} has schema version {version!r}; this Surefoot knows {known}: use one that fits.")
    try:
        spec = BundleSpec.model_validate(content)
        if spec.context is not None:
            require_estimator(spec.context.estimator, spec.context.kind, spec.context.settings)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_fault(error)}; export the bundle again.") from error
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return spec


def _first_fault(error: ValidationError) -> str:
    """Say what is wrong first, and where."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{where}'"
    return f"{where}: {fault['msg']}" if where else fault["msg"]


def _needed(spec: BundleSpec) -> list[str]:
    """The files without which a bundle does not run."""
    needed = [POLICY, GOLDEN]
    if spec.adapts:
        needed.append(DYNAMICS)
    if spec.context is not None and spec.context.estimator == "history":
        needed.append(ADAPTATION)
    if spec.prior is not None:
        needed.append(PRIOR)
    return needed


def _history_dim(spec: BundleSpec) -> int:
    """How many numbers the adaptation module reads."""
    assert spec.context is not None
    settings = estimator_settings(spec.context.estimator, spec.context.settings)
    assert isinstance(settings, HistorySettings)
    return settings.size(spec.obs_dim, spec.act_dim)


def _read_files(path: Path, spec: BundleSpec) -> dict[str, bytes]:
    """Read the files that bundle.json hashes, or refuse a folder whose files are others."""
    for name in _needed(spec):
        if name not in spec.files:
            raise UserError(f"{path / SPEC} lists no {name}, which this bundle needs; export it again.")
    contents = {}
    for name, expected in spec.files.items():
        if not (path / name).is_file():
            raise UserError(f"{path / name} is missing; copy the bundle again.")
        contents[name] = read_bytes(path / name)
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise UserError(f"{path / name} is not the file that was written (its SHA-256 differs); copy it again.")
    return contents


def write_bundle(
    path: str | Path,
    policy: bytes,
    spec: BundleSpec,
    golden: Mapping[str, np.ndarray],
    dynamics: bytes | None = None,
    validation: dict[str, Any] | None = None,
    parts: Mapping[str, bytes] | None = None,
    signing_key: Ed25519PrivateKey | None = None,
) -> BundleSpec:
    """Write a bundle, whole or not at all; what is written is loaded and checked before it takes its name.

    Args:
        path: the folder, by custom NAME.bundle; a bundle of that name is replaced.
        policy: ONNX graph from `obs` (and `context`) to `action`.
        spec: the description; its hashes are filled in here.
        golden: `obs`, `action`, with a context `context`, with dynamics `delta` and `std`, with an adaptation module
            `history` and `estimate`, with a prior `prior_mean` and `prior_std`; at least 64 rows each.
        dynamics: ONNX graph from `obs` and `action` to `delta` and `std`; needed where there is a context.
        validation: the validation report; it names the hash of the bundle that was validated.
        parts: further files that the algorithm needs on the robot, by name; with the estimator `history` the
            adaptation module, adaptation.onnx, from `history` to `estimate`; with a prior prior.onnx, from `obs` to
            `prior_mean` and `prior_std`.
        signing_key: key that signs the bundle, None for one without a signature.

    Returns:
        The spec with the hashes.

    Raises:
        UserError: what is to be written is no bundle that loads, or the place cannot be written.
    """
    mirrored = spec.to_json(exclude={"files"})  # without hashes: a graph cannot hold its own
    contents = dict(parts or {})
    contents[POLICY] = with_description(policy, mirrored)
    if dynamics is not None:
        contents[DYNAMICS] = with_description(dynamics, mirrored)
    contents[GOLDEN] = golden_bytes(golden)
    if validation is not None:
        contents[VALIDATION] = (json.dumps(validation, indent=2, allow_nan=False) + "\n").encode()
    with atomic_path(Path(path)) as draft:
        draft.mkdir()
        for name, content in contents.items():
            (draft / name).write_bytes(content)
        hashes = {name: sha256(draft / name) for name in sorted(contents)}
        whole = BundleSpec.model_validate(spec.model_dump() | {"files": hashes})
        (draft / SPEC).write_text(whole.to_json())
        if signing_key is not None:
            sign(draft, signing_key)
        try:
            Bundle.load(draft)
        except UserError as error:
            raise UserError(str(error).replace(str(draft), str(path))) from error
    return whole


def attach_validation(path: str | Path, report: dict[str, Any], signing_key: Ed25519PrivateKey | None = None) -> None:
    """Put a validation report into the bundle that it is of, in place of an older one.

    Args:
        path: the bundle's folder.
        report: its validation report.
        signing_key: the key that signed the bundle, which signs it again; None where it is not signed.

    Raises:
        UserError: the bundle is not whole, signed by another key or signed where no key is given, the report is of
            another bundle, or the place cannot be written.
    """
    path = Path(path)
    bundle = _load_folder(path, None if signing_key is None else signing_key.public_key())
    if signing_key is None and is_signed(path):
        raise UserError(
            f"{path} is signed, and a report put into it would break the signature; give the key that signed it, or "
            "keep the report outside the bundle."
        )
    if report["bundle"] != bundle.sha256:
        raise UserError(f"the validation report is of another bundle than {path}; validate this one.")
    with atomic_path(path) as draft:
        shutil.copytree(path, draft)
        (draft / VALIDATION).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        files = {**bundle.manifest.files, VALIDATION: sha256(draft / VALIDATION)}
        spec = BundleSpec.model_validate(bundle.manifest.model_dump() | {"files": files})
        (draft / SPEC).write_text(spec.to_json())
        if signing_key is not None:
            sign(draft, signing_key)


def _name(spec: BundleSpec) -> str:
    """The hash that names a bundle."""
    files = {name: digest for name, digest in spec.files.items() if name != VALIDATION}
    unnamed = BundleSpec.model_validate(spec.model_dump() | {"files": files})
    return hashlib.sha256(unnamed.to_json().encode()).hexdigest()
