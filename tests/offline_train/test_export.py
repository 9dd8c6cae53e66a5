"""Graphs for the robot: free batch size, command units, and a comparison that can fail."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from toy import Toy, toy_batch

from adapters.errors import UserError
from offline_train.export import PARITY_TOLERANCE, DynamicsGraph, check_parity, to_onnx


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
