"""`surefoot export`: a training run as a bundle, its graphs compared with torch before anything is written."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from adapters.command import command
from adapters.datasets import load_dataset
from adapters.errors import UserError
from adapters.files import read_json
from deploy.bundle import BundleSpec, ContextSpec, Provenance, write_bundle
from deploy.context import estimator_settings
from deploy.signature import fingerprint, read_signing_key
from offline_train.algorithms.augwm import AugWmConfig
from offline_train.algorithms.mopo import MopoConfig
from offline_train.algorithms.sac import Sac
from offline_train.checkpoint import load_checkpoint
from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.train import Data, TrainConfig, load_world_model, make_algorithm
from sim.terminations import never

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PARITY_ROWS, GOLDEN_ROWS = 1_000, 64
PARITY_TOLERANCE = 1e-5


class PolicyGraph(nn.Module):
    """What policy.onnx computes: raw observation (and context) to command, `(batch, act_dim)` in command units."""

    low: Tensor
    span: Tensor

    def __init__(self, sac: Sac, low: list[float], high: list[float]) -> None:
        super().__init__()
        self.sac = sac
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("span", torch.tensor(high) - torch.tensor(low))

    def forward(self, obs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the deterministic command."""
        action = self.sac(obs if context is None else torch.cat([obs, context], -1))
        return self.low + 0.5 * (action + 1.0) * self.span


class DynamicsGraph(nn.Module):
    """What dynamics.onnx computes: the elites' mean change of state and its standard deviation."""

    low: Tensor
    span: Tensor

    def __init__(self, model: DynamicsEnsemble, low: list[float], high: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("span", torch.tensor(high) - torch.tensor(low))

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Take the action in command units; return `delta` and `std`, `(batch, obs_dim)` in observation units."""
        return self.model.mean_change(obs, 2.0 * (action - self.low) / self.span - 1.0)


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
    return program.model_proto.SerializeToString()


def check_parity(graph: nn.Module, onnx: bytes, inputs: dict[str, Tensor], name: str) -> float:
    """Compare onnxruntime with torch and return the largest difference.

    Raises:
        UserError: it is above `PARITY_TOLERANCE`, relative to the size of the output where that exceeds 1.
    """
    with torch.no_grad():
        expected = graph(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    found = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    worst = max(
        float((np.abs(f - e.numpy()) / np.maximum(np.abs(e.numpy()), 1.0)).max())
        for f, e in zip(found, expected, strict=True)
    )
    if not worst < PARITY_TOLERANCE:
        raise UserError(
            f"{name} as onnxruntime runs it differs from torch by {worst:.1e}, more than {PARITY_TOLERANCE}; nothing "
            "was written. Check the versions of onnxruntime and torch."
        )
    return worst


class Run:
    """A finished training run, read back from its folder.

    Args:
        folder: where surefoot train left it.

    Raises:
        UserError: it is not there, not finished, or its data is gone.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "policy.safetensors").is_file():
            raise UserError(
                f"{folder} holds no finished run (policy.safetensors is missing); finish it with resume=true."
            )
        self.record: dict[str, Any] = read_json(folder / "run.json")
        free = {"output": folder, "resume": False, "threads": 1}
        every = {"checkpoint_every": 1, "evaluate_every": 1, "evaluation_episodes": 0}
        self.config = TrainConfig.model_validate(self.record["config"] | free | every)
        source = self.config.dataset
        dataset = load_dataset(source.path, env=source.env, control_dt=source.control_dt)
        self.data = Data(dataset, self.config.robot, self.config.ensemble.holdout_fraction, "cpu")
        self.model = load_world_model(folder, self.data).requires_grad_(False)
        settings = self.config.algorithm
        assert isinstance(settings, MopoConfig), "a run with a policy has an algorithm"
        empty = torch.zeros(1, 2 * self.model.obs_dim + self.model.act_dim + 2)
        self.algorithm = make_algorithm(settings, empty, self.model, never, self.config.seed)
        self.algorithm.sac.load_state_dict(load_checkpoint(folder / "policy.safetensors"))


def export(folder: Path, output: Path, signing_key: Ed25519PrivateKey | None = None) -> float:
    """Write the bundle of a run; returns the largest difference between torch and onnxruntime.

    Args:
        folder: the run.
        output: the bundle.
        signing_key: key that signs it, None for a bundle without a signature.

    Raises:
        UserError: the run is not whole, or the graphs differ.
    """
    run = Run(folder)
    robot = run.config.robot
    low, high = list(robot.action.low), list(robot.action.high)
    rows = np.random.default_rng(0).integers(0, len(run.data.dataset), PARITY_ROWS)
    obs, action = (torch.from_numpy(v[rows]) for v in (run.data.dataset.observations, run.data.dataset.actions))
    context = context_spec(run)
    policy = PolicyGraph(run.algorithm.sac, low, high)
    inputs = {"obs": obs}
    if context is not None:
        z_low, z_high = torch.tensor(context.low), torch.tensor(context.high)
        drawn = torch.rand(obs.shape, generator=torch.Generator().manual_seed(0))
        inputs["context"] = z_low + drawn * (z_high - z_low)
    policy_onnx = to_onnx(policy, inputs, ["action"])
    worst = check_parity(policy, policy_onnx, inputs, "policy.onnx")
    with torch.no_grad():
        golden = {name: value for name, value in inputs.items()} | {"action": policy(*inputs.values())}
    dynamics_onnx = None
    if context is not None:
        dynamics = DynamicsGraph(run.model, low, high)
        dynamics_inputs = {"obs": obs, "action": action}
        dynamics_onnx = to_onnx(dynamics, dynamics_inputs, ["delta", "std"])
        worst = max(worst, check_parity(dynamics, dynamics_onnx, dynamics_inputs, "dynamics.onnx"))
        with torch.no_grad():
            golden["delta"], golden["std"] = dynamics(obs, golden["action"])
    spec = BundleSpec(robot=robot, env=run.record["dataset"]["env"], context=context, provenance=provenance(run))
    rows_kept = {name: value[:GOLDEN_ROWS].numpy() for name, value in golden.items()}
    write_bundle(output, policy_onnx, spec, rows_kept, dynamics_onnx, signing_key=signing_key)
    return worst


def context_spec(run: Run) -> ContextSpec | None:
    """What the bundle says of the context, None where the policy reads none."""
    config = run.config.algorithm
    if not isinstance(config, AugWmConfig):
        return None
    dim = run.algorithm.context_dim
    return ContextSpec(
        kind="delta_scale",
        dim=dim,
        nominal=(config.nominal,) * dim,
        low=(config.z_low,) * dim,
        high=(config.z_high,) * dim,
        estimator=config.estimator,
        # All of them, so that a later default does not change what a bundle does.
        settings=dataclasses.asdict(estimator_settings(config.estimator, config.estimator_settings)),
    )


def provenance(run: Run) -> Provenance:
    """Where the bundle comes from."""
    return Provenance(
        algorithm=run.algorithm.config.name,
        config=run.record["config"],
        dataset_sha256=run.record["dataset"]["sha256"],
        seed=run.config.seed,
        commit=run.record["commit"],
        versions=run.record["versions"],
    )


@command("export")
def main(config: DictConfig) -> None:
    """The command line's entry."""
    folder = Path(config.run)
    name = read_json(folder / "run.json")["config"]["algorithm"]["name"]
    output = Path(config.output) if config.output else folder / f"{name}.bundle"
    key = read_signing_key(Path(config.signing_key)) if config.signing_key else None
    worst = export(folder, output, key)
    print(f"{output}: torch and onnxruntime agree to {worst:.1e} over {PARITY_ROWS:,} rows")
    if key is not None:
        print(f"signed by the key {fingerprint(key.public_key())}")
    print(f"next: surefoot validate bundle={output}")
