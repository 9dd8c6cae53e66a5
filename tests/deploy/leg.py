"""A robot with a hip and a knee, and a bundle for it whose graphs are two matrix products."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle import BundleSpec, ContextSpec, Provenance, RobotDescription

OBS, ACT, DT = 5, 2, 0.02
GAIN = np.array([[-0.5, 0.2], [-0.8, 0.0], [0.0, -0.7], [-0.1, 0.0], [0.0, -0.1]], np.float32)
LEAN = np.full((OBS, ACT), 0.1, np.float32)
MOTION = np.zeros((OBS, OBS), np.float32)
MOTION[3:, 1:3] = DT * np.eye(2)
PUSH = np.zeros((ACT, OBS), np.float32)
PUSH[:, 3:] = 0.5 * np.eye(2)
STD = 0.01
LOW, HIGH = np.array([-2.0, -1.0]), np.array([2.0, 3.0])


def robot(law: str = "effort", **limits: Any) -> RobotDescription:
    """The robot; commands lie in [-2, 2] and [-1, 3]."""
    terms = [
        {"name": "pitch", "source": "tilt", "unit": "rad"},
        {"name": "hip_position", "source": "joint_position", "joints": ["hip"], "unit": "rad"},
        {"name": "knee_position", "source": "joint_position", "joints": ["knee"], "unit": "rad"},
        {"name": "hip_velocity", "source": "joint_velocity", "joints": ["hip"], "unit": "rad/s"},
        {"name": "knee_velocity", "source": "joint_velocity", "joints": ["knee"], "unit": "rad/s"},
    ]
    action = {"law": law, "joints": ["hip", "knee"], "low": [-2, -1], "high": [2, 3], "unit": "N m"}
    return RobotDescription.model_validate(
        {"name": "leg", "observations": terms, "action": action, "control_dt": DT, "limits": limits}
    )


def spec(context: bool = True, law: str = "effort", **limits: Any) -> BundleSpec:
    """What the robot's bundle says."""
    described = ContextSpec(
        kind="delta_scale", dim=OBS, nominal=(1.0,) * OBS, low=(0.5,) * OBS, high=(1.5,) * OBS, estimator="scale"
    )
    return BundleSpec(
        env="leg",
        robot=robot(law, **limits),
        context=described if context else None,
        provenance=Provenance(
            algorithm="by-hand", config={}, dataset_sha256="ab" * 32, seed=7, commit="c0ffee", versions={"numpy": "2"}
        ),
    )


def act(obs: np.ndarray, context: np.ndarray | None) -> np.ndarray:
    """The policy in numpy, to compare with."""
    lean = 0.0 if context is None else (context - 1) @ LEAN
    return 2 * np.tanh(obs @ GAIN + lean)


def stand_in(policy: Callable[..., Any] = act, context: bool = True, law: str = "effort", **limits: Any) -> Any:
    """A bundle in memory with any policy."""
    return SimpleNamespace(
        manifest=spec(context, law, **limits),
        act=policy,
        adapt=None,
        predict_change=lambda obs, action: (obs @ MOTION + action @ PUSH, np.full(np.shape(obs), STD)),
    )


def golden(rows: int = 64, context: bool = True) -> dict[str, np.ndarray]:
    """Rows that the graphs reproduce."""
    generator = np.random.default_rng(0)
    obs = generator.standard_normal((rows, OBS)).astype(np.float32)
    z = generator.uniform(0.5, 1.5, (rows, OBS)).astype(np.float32) if context else None
    arrays = {"obs": obs, "action": act(obs, z)}
    if z is not None:
        delta = obs @ MOTION + arrays["action"] @ PUSH
        arrays |= {"context": z, "delta": delta, "std": np.full_like(obs, STD)}
    return arrays


def graph(
    inputs: dict[str, int], outputs: dict[str, int], nodes: list[Any], constants: dict[str, Any], batch: Any = "batch"
) -> bytes:
    """Serialise an ONNX graph."""
    make = helper.make_tensor_value_info
    built = helper.make_graph(
        nodes,
        "leg",
        [make(name, TensorProto.FLOAT, [batch, size]) for name, size in inputs.items()],
        [make(name, TensorProto.FLOAT, [batch, size]) for name, size in outputs.items()],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def policy_graph(context: bool = True, batch: Any = "batch") -> bytes:
    """2 tanh(obs GAIN + (context - 1) LEAN)."""
    node = helper.make_node
    nodes = [node("MatMul", ["obs", "gain"], ["sum"])]
    inputs = {"obs": OBS}
    if context:
        inputs["context"] = OBS
        nodes = [
            node("Sub", ["context", "one"], ["change"]),
            node("MatMul", ["change", "lean"], ["leaning"]),
            node("MatMul", ["obs", "gain"], ["straight"]),
            node("Add", ["straight", "leaning"], ["sum"]),
        ]
    nodes += [node("Tanh", ["sum"], ["unit"]), node("Mul", ["unit", "two"], ["action"])]
    constants = {"gain": GAIN, "lean": LEAN, "one": np.ones(OBS), "two": 2.0}
    used = {name for entry in nodes for name in entry.input}
    return graph(inputs, {"action": ACT}, nodes, {k: v for k, v in constants.items() if k in used}, batch)


def dynamics_graph() -> bytes:
    """Positions follow velocities, commands push velocities; the same standard deviation everywhere."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["obs", "motion"], ["drift"]),
        node("MatMul", ["action", "push"], ["pushed"]),
        node("Add", ["drift", "pushed"], ["delta"]),
        node("Sub", ["delta", "delta"], ["zero"]),
        node("Add", ["zero", "deviation"], ["std"]),
    ]
    constants = {"motion": MOTION, "push": PUSH, "deviation": np.full(OBS, STD)}
    return graph({"obs": OBS, "action": ACT}, {"delta": OBS, "std": OBS}, nodes, constants)
