"""The bundle: the one thing that crosses from the workstation to validation and to the robot.

A folder `NAME.bundle/` that holds `policy.onnx`, where context is inferred `dynamics.onnx`, `golden.npz` with rows
that every runtime must reproduce, `validation.json` where there was a validation, further parts of an algorithm, and
`bundle.json`, which describes and hashes them all.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from adapters.errors import UserError
from adapters.files import atomic_path, read_json, sha256
from deploy.spec import (
    SPEC,
    ActionSpec,
    BundleSpec,
    ContextSpec,
    Limits,
    ObservationTerm,
    Provenance,
    RobotDescription,
)

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "ActionSpec",
    "Bundle",
    "BundleSpec",
    "ContextSpec",
    "Limits",
    "ObservationTerm",
    "Provenance",
    "RobotDescription",
    "attach_validation",
    "read_spec",
    "write_bundle",
]

SCHEMA_VERSIONS = (1,)
POLICY, DYNAMICS, GOLDEN, VALIDATION = "policy.onnx", "dynamics.onnx", "golden.npz", "validation.json"
METADATA_KEY = "surefoot"
GOLDEN_ROWS, GOLDEN_TOLERANCE = 64, 1e-4


class Bundle:
    """A bundle that was found whole; made by `Bundle.load`.

    Attributes:
        path: the folder.
        manifest: what bundle.json says.
        sha256: names the bundle: the hash of what bundle.json says, hashes of all else included, without its line
            about validation.json, so that a bundle keeps its name when its own report is put into it.
    """

    def __init__(self, path: Path, spec: BundleSpec) -> None:
        self.path, self.manifest, self.sha256 = path, spec, _name(spec)
        obs_dim, act_dim = spec.obs_dim, spec.act_dim
        inputs = {"obs": obs_dim} if spec.context is None else {"obs": obs_dim, "context": spec.context.dim}
        self._policy = _session(path / POLICY, inputs, {"action": act_dim})
        self._dynamics = None
        if DYNAMICS in spec.files:
            self._dynamics = _session(
                path / DYNAMICS, {"obs": obs_dim, "action": act_dim}, {"delta": obs_dim, "std": obs_dim}
            )

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle and check all of it: names, hashes, shapes, and that this runtime reproduces the golden rows.

        Raises:
            UserError: it is not there or not whole.
        """
        path = Path(path)
        spec = read_spec(path)
        _check_files(path, spec)
        bundle = cls(path, spec)
        bundle._check_golden()
        return bundle

    def act(self, obs: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
        """Run the policy.

        Args:
            obs: `(..., obs_dim)` in observation units.
            context: `(..., context_dim)`, None where the policy reads none.

        Returns:
            `(..., act_dim)` float32, in command units, without limits applied.
        """
        inputs = {"obs": obs} if context is None else {"obs": obs, "context": context}
        (action,) = _run(self._policy, inputs)
        return action

    def predict_change(self, obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict the change of state over one control period in the original environment.

        Args:
            obs: `(..., obs_dim)` in observation units.
            action: `(..., act_dim)` in command units.

        Returns:
            The mean change and its predicted standard deviation, `(..., obs_dim)` float32 in observation units.

        Raises:
            UserError: the bundle has no dynamics.
        """
        if self._dynamics is None:
            raise UserError(f"{self.path} has no {DYNAMICS}, so it predicts no change of state.")
        delta, std = _run(self._dynamics, {"obs": obs, "action": action})
        return delta, std

    def validation(self) -> dict[str, Any] | None:
        """Return the report of the validation run, None where there was none."""
        return read_json(self.path / VALIDATION) if VALIDATION in self.manifest.files else None

    def _check_golden(self) -> None:
        """Compare this runtime with the golden rows."""
        golden = _read_golden(self.path / GOLDEN)
        _check_golden_shapes(self.path / GOLDEN, golden, self.manifest)
        found = {"action": self.act(golden["obs"], golden.get("context"))}
        if self._dynamics is not None:
            found["delta"], found["std"] = self.predict_change(golden["obs"], golden["action"])
        for name, values in found.items():
            difference = np.abs(values - golden[name])
            # Written so that a NaN on either side is refused.
            if not (difference <= GOLDEN_TOLERANCE * (1.0 + np.abs(golden[name]))).all():
                raise UserError(
                    f"{self.path}: this runtime does not reproduce the golden rows of '{name}', the largest "
                    f"difference is {difference.max():.3g}; install the onnxruntime that the bundle names, "
                    "or export again."
                )


def read_spec(path: Path) -> BundleSpec:
    """Read and check `bundle.json` alone.

    Raises:
        UserError: it is not there, not JSON, of a schema that is not known, or says something that is not allowed.
    """
    if not path.is_dir():
        raise UserError(f"there is no bundle {path}; give the folder that surefoot export wrote.")
    content = read_json(path / SPEC)
    version = content.get("schema") if isinstance(content, dict) else None
    if version not in SCHEMA_VERSIONS:
        known = ", ".join(map(str, SCHEMA_VERSIONS))
        raise UserError(
            f"{path / SPEC} has schema version {version!r}; this Surefoot knows {known}: use one that fits."
        )
    try:
        return BundleSpec.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path / SPEC}: {_first_fault(error)}; export the bundle again.") from error


def _first_fault(error: ValidationError) -> str:
    """Say what is wrong first, and where."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{where}'"
    return f"{where}: {fault['msg']}" if where else fault["msg"]


def _check_files(path: Path, spec: BundleSpec) -> None:
    """Refuse a folder whose files are not the ones that bundle.json hashes."""
    for name in (POLICY, GOLDEN, *([DYNAMICS] if spec.context is not None else [])):
        if name not in spec.files:
            raise UserError(f"{path / SPEC} lists no {name}, which this bundle needs; export it again.")
    for name, expected in spec.files.items():
        if not (path / name).is_file():
            raise UserError(f"{path / name} is missing; copy the bundle again.")
        if sha256(path / name) != expected:
            raise UserError(f"{path / name} is not the file that was written (its SHA-256 differs); copy it again.")


def _read_golden(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the bundle again.") from error


def _check_golden_shapes(where: Path, golden: Mapping[str, np.ndarray], spec: BundleSpec) -> None:
    """Refuse golden arrays that are missing, too few, or not of the spec's sizes."""
    robot = spec.robot
    sizes = {"obs": robot.obs_dim, "action": robot.act_dim}
    if spec.context is not None:
        sizes["context"] = spec.context.dim
    if DYNAMICS in spec.files:
        sizes |= {"delta": robot.obs_dim, "std": robot.obs_dim}
    rows = len(golden["obs"]) if "obs" in golden else 0
    if rows < GOLDEN_ROWS:
        raise UserError(f"{where} has {rows} rows and needs at least {GOLDEN_ROWS}; export the bundle again.")
    if golden.keys() != sizes.keys():
        names = (", ".join(sorted(keys)) for keys in (golden, sizes))
        raise UserError("{} holds {} and should hold {}; export the bundle again.".format(where, *names))
    for name, size in sizes.items():
        if golden[name].shape != (rows, size):
            raise UserError(f"{where}: '{name}' has shape {golden[name].shape} and should have {(rows, size)}.")


def _session(path: Path, inputs: dict[str, int], outputs: dict[str, int]) -> onnxruntime.InferenceSession:
    """Open an ONNX file on one thread and check names and sizes of what goes in and comes out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        raise UserError(
            f"{path} is not a model that onnxruntime can run ({error}); export the bundle again."
        ) from error
    for kind, values, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        found = {value.name: value.shape for value in values}
        if not _free_batch_of(found, expected):
            wanted = ", ".join(f"{name} (batch, {size})" for name, size in expected.items())
            given = ", ".join(f"{name} {tuple(shape)}".replace("'", "") for name, shape in found.items())
            raise UserError(f"{path} has the {kind} {given}, but bundle.json asks for {wanted}; export it again.")
    return session


def _free_batch_of(found: Mapping[str, list[Any]], expected: Mapping[str, int]) -> bool:
    """Whether the tensors are the expected ones, `(batch, size)` with a batch size that is not fixed."""
    return found.keys() == expected.keys() and all(
        len(shape) == 2 and not isinstance(shape[0], int) and shape[1] == expected[name]
        for name, shape in found.items()
    )


def _run(session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a graph on inputs `(..., size)` and give its outputs their leading dimensions back."""
    arrays = {name: np.asarray(value, dtype=np.float32) for name, value in inputs.items()}
    leading = arrays["obs"].shape[:-1]
    flat = {name: array.reshape(-1, array.shape[-1]) for name, array in arrays.items()}
    return [output.reshape(*leading, output.shape[-1]) for output in session.run(None, flat)]


def write_bundle(
    path: str | Path,
    policy: bytes,
    spec: BundleSpec,
    golden: Mapping[str, np.ndarray],
    dynamics: bytes | None = None,
    validation: dict[str, Any] | None = None,
    parts: Mapping[str, bytes] | None = None,
) -> BundleSpec:
    """Write a bundle, whole or not at all; what is written is loaded and checked before it takes its name.

    Args:
        path: the folder, by custom NAME.bundle; a bundle of that name is replaced.
        policy: ONNX graph from `obs` (and `context`) to `action`.
        spec: the description; its hashes are filled in here.
        golden: `obs`, `action`, with a context `context`, with dynamics `delta` and `std`; at least 64 rows each.
        dynamics: ONNX graph from `obs` and `action` to `delta` and `std`; needed where there is a context.
        validation: the validation report; it names the hash of the bundle that was validated.
        parts: further files that the algorithm needs on the robot, by name.

    Returns:
        The spec with the hashes.

    Raises:
        UserError: what is to be written is no bundle that loads, or the place cannot be written.
    """
    mirrored = spec.to_json(exclude={"files"})
    contents = dict(parts or {})
    contents[POLICY] = _with_metadata(policy, mirrored)
    if dynamics is not None:
        contents[DYNAMICS] = _with_metadata(dynamics, mirrored)
    contents[GOLDEN] = _npz(golden)
    if validation is not None:
        contents[VALIDATION] = (json.dumps(validation, indent=2, allow_nan=False) + "\n").encode()
    with atomic_path(Path(path)) as draft:
        draft.mkdir()
        for name, content in contents.items():
            (draft / name).write_bytes(content)
        hashes = {name: sha256(draft / name) for name in sorted(contents)}
        whole = BundleSpec.model_validate(spec.model_dump() | {"files": hashes})
        (draft / SPEC).write_text(whole.to_json())
        try:
            Bundle.load(draft)
        except UserError as error:
            raise UserError(str(error).replace(str(draft), str(path))) from error
    return whole


def attach_validation(path: str | Path, report: dict[str, Any]) -> None:
    """Put a validation report into the bundle that it is of, in place of an older one.

    Args:
        path: the bundle.
        report: its validation report.

    Raises:
        UserError: the bundle is not whole, the report is of another, or the place cannot be written.
    """
    path = Path(path)
    bundle = Bundle.load(path)
    if report["bundle"] != bundle.sha256:
        raise UserError(f"the validation report is of another bundle than {path}; validate this one.")
    with atomic_path(path) as draft:
        shutil.copytree(path, draft)
        (draft / VALIDATION).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        files = {**bundle.manifest.files, VALIDATION: sha256(draft / VALIDATION)}
        spec = BundleSpec.model_validate(bundle.manifest.model_dump() | {"files": files})
        (draft / SPEC).write_text(spec.to_json())


def _name(spec: BundleSpec) -> str:
    """The hash that names a bundle."""
    files = {name: digest for name, digest in spec.files.items() if name != VALIDATION}
    unnamed = BundleSpec.model_validate(spec.model_dump() | {"files": files})
    return hashlib.sha256(unnamed.to_json().encode()).hexdigest()


def _with_metadata(model: bytes, text: str) -> bytes:
    """Return the ONNX model with the bundle's description in its metadata, without hashes: its own cannot be inside."""
    import onnx

    proto = onnx.load_from_string(model)
    kept = {entry.key: entry.value for entry in proto.metadata_props} | {METADATA_KEY: text}
    onnx.helper.set_model_props(proto, kept)
    return proto.SerializeToString(deterministic=True)


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    rows: dict[str, Any] = {name: np.asarray(values, dtype=np.float32) for name, values in arrays.items()}
    np.savez(buffer, **rows)
    return buffer.getvalue()
