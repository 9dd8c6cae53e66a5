"""What a bundle's graphs compute, in the robot's units, and how they are written as ONNX and compared with torch."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from adapters.errors import UserError
from offline_train.algorithms.base import Learner
from offline_train.algorithms.rma import Adaptation
from offline_train.algorithms.sac import Sac
from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.planner import Planner
from offline_train.priors.base import Prior

PARITY_TOLERANCE = 1e-5


class CommandGraph(nn.Module):
    """A graph in command units around networks whose actions are in [-1, 1].

    Args:
        low: smallest command, `(act_dim,)`.
        high: largest.
    """

    low: Tensor
    span: Tensor

    def __init__(self, low: list[float], high: list[float]) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("span", torch.tensor(high) - torch.tensor(low))

    def to_command(self, action: Tensor) -> Tensor:
        """Scale actions in [-1, 1] to commands."""
        return self.low + 0.5 * (action + 1.0) * self.span

    def to_action(self, command: Tensor) -> Tensor:
        """Scale commands to actions in [-1, 1]."""
        return 2.0 * (command - self.low) / self.span - 1.0


class PolicyGraph(CommandGraph):
    """What policy.onnx computes: raw observation (and context) to command, `(batch, act_dim)` in command units."""

    def __init__(self, policy: Learner | Planner, low: list[float], high: list[float]) -> None:
        super().__init__(low, high)
        self.policy = policy

    def forward(self, obs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the deterministic command."""
        return self.to_command(self.policy(obs if context is None else torch.cat([obs, context], -1)))


class BehaviourGraph(nn.Module):
    """A behaviour policy for `surefoot collect`: raw observation to `mean` and `log_std` before squashing."""

    def __init__(self, sac: Sac) -> None:
        super().__init__()
        self.sac = sac

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the averaged actor's distribution, each `(batch, act_dim)`."""
        return self.sac.average_actor.distribution(self.sac.normalise(obs))


class DynamicsGraph(CommandGraph):
    """What dynamics.onnx computes: the elites' mean change of state and its standard deviation."""

    def __init__(self, model: DynamicsEnsemble, low: list[float], high: list[float]) -> None:
        super().__init__(low, high)
        self.model = model

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Take the action in command units; return `delta` and `std`, `(batch, obs_dim)` in observation units."""
        return self.model.mean_change(obs, self.to_action(action))


class AdaptationGraph(CommandGraph):
    """What adaptation.onnx computes: a history with actions in command units to gains."""

    def __init__(self, adaptation: Adaptation, low: list[float], high: list[float]) -> None:
        super().__init__(low, high)
        self.adaptation = adaptation

    def forward(self, history: Tensor) -> Tensor:
        """Take `(batch, window * (1 + 2 obs_dim + act_dim))`; return `estimate`, `(batch, act_dim)`."""
        act_dim = len(self.low)
        rows = history.unflatten(-1, (self.adaptation.window, -1))
        obs_dim = (rows.shape[-1] - 1 - act_dim) // 2
        state, command, change = rows.split([1 + obs_dim, act_dim, obs_dim], -1)
        return self.adaptation(torch.cat([state, self.to_action(command), change], -1))


class PriorGraph(CommandGraph):
    """What prior.onnx computes: raw observation to mean and standard deviation of the demonstrator's command."""

    def __init__(self, prior: Prior, low: list[float], high: list[float]) -> None:
        super().__init__(low, high)
        self.prior = prior

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return `prior_mean` and `prior_std`, `(batch, act_dim)` in command units."""
        mean, std = self.prior(obs)
        return self.to_command(mean), 0.5 * self.span * std


def to_onnx(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> bytes:
    """Export a module with a free batch size.

    Args:
        graph: the module.
        inputs: example rows by input name, in the order of the module's arguments.
        outputs: output names.
    """
    batch = torch.export.Dim("batch")
    # The exporter's own notices (missing torchvision, deprecations inside torch) are none that a person could act on.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            tuple(inputs.values()),
            dynamo=True,
            input_names=[*inputs],
            output_names=outputs,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        # Where in our sources each node comes from is of no use to a robot, and names folders of this machine.
        del node.metadata_props[:]
    return model.SerializeToString()


def check_parity(
    graph: nn.Module, onnx: bytes, inputs: dict[str, Tensor], name: str, tolerance: float = PARITY_TOLERANCE
) -> float:
    """Compare onnxruntime with torch and return the largest difference.

    Raises:
        UserError: it is above the tolerance, relative to the size of the output where that exceeds 1.
    """
    with torch.no_grad():
        expected = graph(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    found = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    gaps = [
        (np.abs(f - e.numpy()) / np.maximum(np.abs(e.numpy()), 1.0)).max() for f, e in zip(found, expected, strict=True)
    ]
    worst = float(np.max(gaps))  # not a number where one of them is none
    if not worst < tolerance:
        raise UserError(
            f"{name} as onnxruntime runs it differs from torch by {worst:.1e}, more than {tolerance}; nothing "
            "was written. Check the versions of onnxruntime and torch."
        )
    return worst
