"""Graphs for the robot: free batch size, command units, and a comparison that can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from torch import Tensor, nn
from toy import Toy, toy_batch

from adapters.datasets import save_npz
from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.signature import fingerprint, read_public_key
from offline_train.bench_cases import random_dataset
from offline_train.export import body_terms
from offline_train.graphs import PARITY_TOLERANCE, DynamicsGraph, check_parity, to_onnx
from sim.mujoco_plant import load_robot


class Scale(nn.Module):
    """Multiplies by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, obs: Tensor) -> Tensor:
        return obs * self.factor


def inputs(rows: int = 100) -> dict[str, Tensor]:
    return {"obs": toy_batch(rows, seed=0).obs}


def test_graph_runs_with_any_batch_size() -> None:
    session = onnxruntime.InferenceSession(to_onnx(Scale(3.0), inputs(), ["action"]))
    for rows in (1, 2, 500):
        values = np.ones((rows, 2), np.float32)
        np.testing.assert_array_equal(session.run(["action"], {"obs": values})[0], 3.0 * values)


def test_parity_says_how_far_apart_graphs_are() -> None:
    onnx = to_onnx(Scale(2.0), inputs(), ["action"])
    assert check_parity(Scale(2.0), onnx, inputs(), "policy.onnx") < 1e-7
    # Values up to 2, compared absolutely up to 1 and relatively above: 2e-6 x 2 / 2 = 2e-6.
    found = check_parity(Scale(2.0 + 4e-6), onnx, inputs(), "policy.onnx")
    assert found == pytest.approx(2e-6, rel=0.3)


@pytest.mark.parametrize("factor", [2.001, float("nan")])
def test_graphs_that_differ_are_refused(factor: float) -> None:
    onnx = to_onnx(Scale(2.0), inputs(), ["action"])
    with pytest.raises(UserError, match=r"policy.onnx as onnxruntime runs it differs from torch"):
        check_parity(Scale(factor), onnx, inputs(), "policy.onnx")


def test_a_second_output_that_is_no_number_is_refused() -> None:
    class Both(nn.Module):
        def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
            return obs, obs.sqrt()

    onnx = to_onnx(Both(), inputs(), ["action", "std"])
    with pytest.raises(UserError, match="differs from torch by nan"):
        check_parity(Both(), onnx, {"obs": torch.tensor([[1.0, -1.0]])}, "policy.onnx")


def test_dynamics_graph_takes_command_units(toy: Toy) -> None:
    batch = toy_batch(1_000, seed=3)
    graph = DynamicsGraph(toy.model, [-2.0, 0.0], [2.0, 10.0])
    command = torch.stack([2.0 * batch.action[:, 0], 5.0 + 5.0 * batch.action[:, 1]], -1)
    with torch.no_grad():
        change, std = graph(batch.obs, command)
    expected = toy.model.mean_change(batch.obs, batch.action)
    torch.testing.assert_close(change, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(std, expected[1], atol=1e-5, rtol=1e-4)
    given = {"obs": batch.obs, "action": command}
    onnx = to_onnx(graph, given, ["delta", "std"])
    assert check_parity(graph, onnx, given, "dynamics.onnx") < PARITY_TOLERANCE


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key for its owner alone, and its public one."""
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_export_signs(command_line: Callable[..., Any], keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    log, run, output = tmp_path / "log.npz", tmp_path / "run", tmp_path / "out.bundle"
    save_npz(random_dataset(), log)
    small = [
        "evaluation_episodes=0",
        "ensemble.members=2",
        "ensemble.elites=2",
        "ensemble.hidden=[8]",
        "ensemble.max_steps=1",
    ]
    small += ["algorithm.updates=1", "algorithm.rollout_starts=10", "algorithm.sac.hidden=[8]"]
    trained = command_line(
        "train",
        "dataset=file",
        f"dataset.path={log}",
        f"output={run}",
        "algorithm=mopo",
        "evaluation_episodes=0",
        *small,
    )
    assert trained.code == 0, trained
    done = command_line("export", f"run={run}", f"output={output}", f"signing_key={private}")
    assert done.code == 0, done
    name = fingerprint(read_public_key(public))
    assert f"signed by the key {name}" in done.out
    assert Bundle.load(output, public).signed_by == name


def test_bad_key_is_refused_before_anything_is_written(
    command_line: Callable[..., Any], keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    run, output = tmp_path / "run", tmp_path / "out.bundle"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"config": {"algorithm": {"name": "mopo"}}}))
    private.chmod(0o644)
    for key, sentence in ((private, "chmod 600"), (public, "chmod 600"), (tmp_path / "none.pem", "there is no file")):
        done = command_line("export", f"run={run}", f"output={output}", f"signing_key={key}")
        assert done.code == 2 and done.err.count("\n") == 1 and sentence in done.err
        assert {entry.name for entry in tmp_path.iterdir()} == {"key.pem", "key.pub", "run"}
        assert [entry.name for entry in run.iterdir()] == ["run.json"]


def test_caution_looks_at_the_body_but_not_upwards() -> None:
    # HalfCheetah's terms 8, 9 and 10 are the speeds of its body along the ground, upwards and in turning.
    cheetah = load_robot("halfcheetah")
    assert cheetah.observation_names[8:11] == ("rootx_velocity", "rootz_velocity", "rooty_velocity")
    assert body_terms(cheetah) == (8, 10)
    blind = [term for term in cheetah.observations if term.source != "base_velocity"]
    assert body_terms(cheetah.model_copy(update={"observations": tuple(blind)})) == ()
