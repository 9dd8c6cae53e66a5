"""The tiny bundle with the description of the shipped robot, which tells where its terms stand in messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploy.bundle import Bundle, write_bundle
from sim.mujoco_plant import load_robot


def describe(path: Path) -> Path:
    """Write the bundle again with that description."""
    manifest = Bundle.load(path).manifest
    with np.load(path / "golden.npz") as golden:
        write_bundle(
            path,
            policy=(path / "policy.onnx").read_bytes(),
            dynamics=(path / "dynamics.onnx").read_bytes() if manifest.context else None,
            spec=manifest.model_copy(update={"robot": load_robot("halfcheetah")}),
            golden=dict(golden),
        )
    return path
