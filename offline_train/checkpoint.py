"""Checkpoints: nested state dictionaries as one safetensors file, written whole or not at all; no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapters.errors import UserError
from adapters.files import atomic_path

_TENSOR = "tensor:"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a nested dictionary of tensors, numbers, strings, lists and None.

    Raises:
        UserError: the disk is full or the place cannot be written; what stood there before is still there.
    """
    tensors: dict[str, Tensor] = {}
    tree = _take_tensors(state, "", tensors)
    with atomic_path(path) as draft:
        try:
            save_file(tensors, draft, metadata={"tree": json.dumps(tree)})
        except SafetensorError as error:
            # The library wraps the system's error in its own type and keeps only the text.
            raise OSError(str(error)) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU.

    Raises:
        UserError: the file is missing, cut short or not a checkpoint.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}; check the path, or train first.")
    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads(file.metadata()["tree"])
            return _put_tensors(tree, file)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a whole checkpoint ({error}); delete it and train again.") from error


def _take_tensors(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Move every tensor of a tree into `tensors` and leave its name behind."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().contiguous()
        return _TENSOR + place
    if isinstance(value, dict):
        # JSON turns integer keys (an optimiser's parameters) into text, so the key's type travels with it.
        return {
            ("#" if isinstance(k, int) else "") + str(k): _take_tensors(v, f"{place}/{k}", tensors)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_take_tensors(v, f"{place}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _put_tensors(value: Any, file: Any) -> Any:
    """The inverse of `_take_tensors`."""
    if isinstance(value, str) and value.startswith(_TENSOR):
        return file.get_tensor(value.removeprefix(_TENSOR))
    if isinstance(value, dict):
        return {int(k[1:]) if k.startswith("#") else k: _put_tensors(v, file) for k, v in value.items()}
    if isinstance(value, list):
        return [_put_tensors(v, file) for v in value]
    return value
