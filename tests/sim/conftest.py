"""A tiny bundle for HalfCheetah: graphs of one or two matrix products, written with onnx alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle import (
    ActionSpec,
    BundleSpec,
    ContextSpec,
    DelaySpec,
    ObservationTerm,
    Provenance,
    RobotDescription,
    write_bundle,
)
from sim.environments import make_environment

ENVIRONMENT = make_environment("halfcheetah")
OBS, ACT, DT = ENVIRONMENT.obs_dim, ENVIRONMENT.act_dim, ENVIRONMENT.control_dt

# The policy damps the joints and leans on the context; the model knows that positions follow velocities.
POLICY = np.zeros((OBS, ACT), np.float32)
POLICY[-ACT:] = -0.3 * np.eye(ACT)
LEAN = np.full((OBS, ACT), 0.05, np.float32)
MOTION = np.zeros((OBS, OBS), np.float32)
MOTION[9:, :8] = DT * np.eye(8)
PUSH = np.zeros((ACT, OBS), np.float32)
PUSH[:, -ACT:] = 5.0 * np.eye(ACT)
STD = np.full(OBS, 0.02, np.float32)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a tiny bundle: `make_bundle(context=True, spare_terms=0, env="halfcheetah")`.

    With `gains=True` its context is one gain for each actuator, after a push on each term that is `pushed`; with
    `delay=True` it looks for delays.
    """

    def make(
        context: bool = True,
        spare_terms: int = 0,
        env: str = "halfcheetah",
        gains: bool = False,
        name: str = "tiny",
        delay: bool = False,
        pushed: tuple[int, ...] = (),
    ) -> Path:
        generator = np.random.default_rng(0)
        size, dim = OBS + spare_terms, (len(pushed) + ACT if gains else OBS) * context
        obs = generator.standard_normal((64, size)).astype(np.float32)
        golden = {"obs": obs}
        lean = np.zeros((64, ACT), np.float32)
        if context:
            golden["context"] = generator.uniform(0.5, 1.5, (64, dim)).astype(np.float32)
            lean = (golden["context"] - 1) @ LEAN[:dim]
        golden["action"] = np.tanh(obs[:, :OBS] @ POLICY + lean)
        if context or delay:
            golden["delta"] = obs @ MOTION + golden["action"] @ PUSH
            golden["std"] = np.tile(STD, (64, 1))
        path = tmp_path / f"{name}.bundle"
        write_bundle(
            path,
            policy=_policy(size, dim),
            dynamics=_dynamics() if context or delay else None,
            spec=_spec(size, dim, env, pushed).model_copy(update={"delay": DelaySpec() if delay else None}),
            golden=golden,
        )
        return path

    return make


def _policy(size: int, dim: int) -> bytes:
    """The graph of tanh(obs POLICY + (context - 1) LEAN)."""
    constants = {"policy": np.concatenate([POLICY, np.zeros((size - OBS, ACT), np.float32)])}
    if not dim:
        nodes = [helper.make_node("MatMul", ["obs", "policy"], ["sum"])]
    else:
        constants |= {"one": np.ones(dim), "lean": LEAN[:dim]}
        nodes = [
            helper.make_node("Sub", ["context", "one"], ["change"]),
            helper.make_node("MatMul", ["change", "lean"], ["leaning"]),
            helper.make_node("MatMul", ["obs", "policy"], ["damping"]),
            helper.make_node("Add", ["damping", "leaning"], ["sum"]),
        ]
    nodes.append(helper.make_node("Tanh", ["sum"], ["action"]))
    return _graph({"obs": size} | ({"context": dim} if dim else {}), {"action": ACT}, nodes, constants)


def _dynamics() -> bytes:
    """The graph of obs MOTION + action PUSH, with a constant standard deviation."""
    nodes = [
        helper.make_node("MatMul", ["obs", "motion"], ["drift"]),
        helper.make_node("MatMul", ["action", "push"], ["pushed"]),
        helper.make_node("Add", ["drift", "pushed"], ["delta"]),
        helper.make_node("Sub", ["delta", "delta"], ["nothing"]),
        helper.make_node("Add", ["nothing", "deviation"], ["std"]),
    ]
    constants = {"motion": MOTION, "push": PUSH, "deviation": STD}
    return _graph({"obs": OBS, "action": ACT}, {"delta": OBS, "std": OBS}, nodes, constants)


def _graph(inputs: dict[str, int], outputs: dict[str, int], nodes: list[Any], constants: dict[str, Any]) -> bytes:
    """Serialise a graph with a free batch size."""
    make = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [make(name, TensorProto.FLOAT, ["batch", size]) for name, size in inputs.items()],
        [make(name, TensorProto.FLOAT, ["batch", size]) for name, size in outputs.items()],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _spec(size: int, dim: int, env: str, pushed: tuple[int, ...]) -> BundleSpec:
    names = [*ENVIRONMENT.observation_names, *(f"spare{index}" for index in range(size - OBS))]
    return BundleSpec(
        env=env,
        robot=RobotDescription(
            name="tiny",
            control_dt=DT,
            observations=tuple(ObservationTerm(name=name, source="other", unit="1") for name in names),
            action=ActionSpec(
                law="effort", joints=ENVIRONMENT.action_names, low=(-1.0,) * ACT, high=(1.0,) * ACT, unit="1"
            ),
        ),
        context=ContextSpec(
            kind="delta_scale" if dim == OBS else "actuator_gain",
            dim=dim,
            nominal=(0.0,) * len(pushed) + (1.0,) * (dim - len(pushed)),
            low=(-100.0,) * dim,
            high=(100.0,) * dim,
            estimator="scale" if dim == OBS else "actuator_gain",
            # The toy dynamics explain nothing; the context is to be used all the same.
            settings={"min_explained": -1e9},
            pushed=pushed,
        )
        if dim
        else None,
        provenance=Provenance(algorithm="tiny", config={}, dataset_sha256="0" * 64, seed=0, commit=None, versions={}),
    )
