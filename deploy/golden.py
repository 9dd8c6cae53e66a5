"""Golden rows: what every graph of a bundle answered at export, which every runtime has to reproduce."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import UserError

GOLDEN_ROWS = 64


def golden_bytes(rows: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of golden.npz."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(values, dtype=np.float32) for name, values in rows.items()}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_golden(content: bytes, path: Path, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Read golden.npz.

    Args:
        content: its bytes.
        path: where they are from.
        sizes: size of a row of each array.

    Returns:
        The arrays by name, `(rows, size)`.

    Raises:
        UserError: it cannot be read, or its arrays are missing, too short or not of these sizes.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            golden = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); export the bundle again.") from error
    rows = len(golden["obs"]) if "obs" in golden else 0
    if rows < GOLDEN_ROWS:
        raise UserError(f"{path} has {rows} rows and needs at least {GOLDEN_ROWS}; export the bundle again.")
    if golden.keys() != sizes.keys():
        names = (", ".join(sorted(keys)) for keys in (golden, sizes))
        raise UserError("{} holds {} and should hold {}; export the bundle again.".format(path, *names))
    for name, size in sizes.items():
        if golden[name].shape != (rows, size):
            raise UserError(
                f"{path}: '{name}' has shape {golden[name].shape} and should have {(rows, size)}; export the bundle "
                "again."
            )
    return golden


def check_golden(
    path: Path, found: Mapping[str, np.ndarray], golden: Mapping[str, np.ndarray], tolerance: float
) -> None:
    """Refuse a runtime whose answers are not the golden ones.

    Args:
        path: the bundle.
        found: what this runtime answers, `(rows, size)` by name.
        golden: what it should.
        tolerance: how far these may be apart.

    Raises:
        UserError: an answer differs by more than that, relative where the answer exceeds 1.
    """
    for name, values in found.items():
        difference = np.abs(values - golden[name])
        # Written so that a NaN on either side is refused.
        if not (difference <= tolerance * (1.0 + np.abs(golden[name]))).all():
            raise UserError(
                f"{path}: this runtime does not reproduce the golden rows of '{name}', the largest difference is "
                f"{difference.max():.3g}; install the onnxruntime that the bundle names, or export again."
            )
