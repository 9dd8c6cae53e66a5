"""A bundle's ONNX graph: opened on one thread, its tensors compared with the description, run on rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import UserError

METADATA_KEY = "surefoot"


class Graph:
    """An opened graph.

    Args:
        content: the bytes of the ONNX file, so that what was hashed is what runs.
        path: where they are from.

    Raises:
        UserError: onnxruntime cannot run it.
    """

    def __init__(self, content: bytes, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.path = path
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            raise UserError(
                f"{path} is not a model that onnxruntime can run ({error}); export the bundle again."
            ) from error

    def description(self) -> str:
        """Return the bundle's description that the metadata carries.

        Raises:
            UserError: there is none, or it is not text.
        """
        try:
            return self._session.get_modelmeta().custom_metadata_map[METADATA_KEY]
        except (KeyError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.path} has no description of a bundle in its metadata; give a policy.onnx that surefoot export "
                "wrote, or the bundle's folder."
            ) from error

    def check(self, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        """Refuse other tensors than `(batch, size)` of these names and sizes, or a batch size that is fixed.

        Raises:
            UserError: the graph has others.
        """
        for kind, values, expected in (
            ("inputs", self._session.get_inputs(), inputs),
            ("outputs", self._session.get_outputs(), outputs),
        ):
            found = {value.name: value.shape for value in values}
            if not _free_batch_of(found, expected):
                wanted = ", ".join(f"{name} (batch, {size})" for name, size in expected.items())
                given = ", ".join(f"{name} {tuple(shape)}".replace("'", "") for name, shape in found.items())
                raise UserError(
                    f"{self.path} has the {kind} {given}, but its description asks for {wanted}; export it again."
                )

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run on inputs `(..., size)`; return the outputs with the leading dimensions of the first, float32."""
        arrays = {name: np.asarray(value, dtype=np.float32) for name, value in inputs.items()}
        leading = next(iter(arrays.values())).shape[:-1]
        flat = {name: array.reshape(-1, array.shape[-1]) for name, array in arrays.items()}
        return [output.reshape(*leading, output.shape[-1]) for output in self._session.run(None, flat)]


def _free_batch_of(found: Mapping[str, list[Any]], expected: Mapping[str, int]) -> bool:
    """Whether the tensors are the expected ones, `(batch, size)` with a batch size that is not fixed."""
    return found.keys() == expected.keys() and all(
        len(shape) == 2 and not isinstance(shape[0], int) and shape[1] == expected[name]
        for name, shape in found.items()
    )


def with_description(model: bytes, text: str) -> bytes:
    """Return the ONNX model with the bundle's description in its metadata."""
    import onnx

    proto = onnx.load_from_string(model)
    kept = {entry.key: entry.value for entry in proto.metadata_props} | {METADATA_KEY: text}
    onnx.helper.set_model_props(proto, kept)
    return proto.SerializeToString(deterministic=True)
