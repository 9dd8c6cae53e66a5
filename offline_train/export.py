"""`surefoot export`: a training run as a bundle, its graphs compared with torch before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from adapters.command import command
from adapters.errors import UserError
from adapters.files import atomic_path, read_json
from deploy.bundle import (
    ADAPTATION,
    PRIOR,
    BundleSpec,
    CautionSpec,
    DelaySpec,
    PlanSpec,
    PriorSpec,
    Provenance,
    RobotDescription,
    write_bundle,
)
from deploy.context.estimator import LARGEST
from deploy.signature import fingerprint, read_signing_key
from deploy.spec import LONGEST_DELAY
from offline_train.algorithms.mopo import MopoConfig
from offline_train.finished_run import PARITY_ROWS, Run
from offline_train.graphs import (
    PARITY_TOLERANCE,
    AdaptationGraph,
    BehaviourGraph,
    DynamicsGraph,
    PolicyGraph,
    PriorGraph,
    check_parity,
    to_onnx,
)
from offline_train.models.rollout import UNCHANGED
from offline_train.planner import Planner
from offline_train.train import snapshot_path, snapshot_steps
from sim.environments import make_environment
from sim.terminations import TERMINATIONS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

GOLDEN_ROWS = 64
# Steps of the model rollouts that tell what motion is usual, and the first of them that counts.
USUAL_STEPS, USUAL_FROM = 200, 20
# A variance is a small difference of large sums.
PRIOR_TOLERANCE = 1e-4
# A plan compares values of hundreds to hundredths, and no two runtimes round them alike.
PLAN_TOLERANCE = 1e-3


def confidence_range(prior: PriorGraph, obs: Tensor) -> PriorSpec:
    """What the prior's standard deviation is next to the demonstrations and far from them.

    Args:
        prior: in command units.
        obs: as `near_and_far` gives them.

    Raises:
        UserError: it is no larger far from them, so that it tells no confidence.
    """
    with torch.no_grad():
        doubt = prior(obs)[1].mean(1)
    near, far = (float(doubt[start::2].median()) for start in (0, 1))
    if not near < far:
        raise UserError(
            f"the prior's standard deviation is {near:.2g} next to the demonstrations and {far:.2g} far from them, so "
            "it tells nothing of where the policy can be trusted; fit a Gaussian process (prior=sparse-gp), or export "
            "without it (with_prior=false)."
        )
    return PriorSpec(near=near, far=far)


def export_behaviour(folder: Path) -> list[Path]:
    """Write the snapshots of a run in the simulator as policies that `surefoot collect` rolls out.

    Args:
        folder: the run.

    Returns:
        The files, `behaviour/ENV-sac-STEPS.onnx` in the run's folder; none for a run that learned from a log.
    """
    written = []
    for steps in snapshot_steps(folder):
        run = Run(folder, policy=snapshot_path(folder, steps))
        path = folder / "behaviour" / f"{run.record['dataset']['env']}-sac-{steps}.onnx"
        graph, inputs = BehaviourGraph(run.sac), {"obs": run.obs}
        onnx = to_onnx(graph, inputs, ["mean", "log_std"])
        check_parity(graph, onnx, inputs, path.name)
        with atomic_path(path) as draft:
            draft.write_bytes(onnx)
        written.append(path)
    return written


def export(
    folder: Path,
    output: Path,
    signing_key: Ed25519PrivateKey | None = None,
    longest_delay: int = DelaySpec().most,
    plan: PlanSpec | None = None,
    with_prior: bool = True,
    caution: bool = True,
) -> float:
    """Write the bundle of a run; returns the largest difference between torch and onnxruntime.

    Args:
        folder: the run.
        output: the bundle.
        signing_key: key that signs it, None for a bundle without a signature.
        longest_delay: delay of the loop, in control periods, up to which the controller finds it and makes up for it
            with the world model; 0 for a controller that takes commands to act at once.
        plan: how far ahead every command is planned, None for the policy by itself.
        with_prior: whether the prior of demonstrations goes with the policy, where there is one.
        caution: whether commands get smaller for a body that has become light, where its velocity is observed.

    Raises:
        UserError: the run is not whole, the graphs differ, the delay is not possible, or there is no world model to
            plan in.
    """
    run = Run(folder)
    robot, obs, action = run.robot, run.obs, run.action
    low, high = list(robot.action.low), list(robot.action.high)
    context = run.config.algorithm.context_spec(robot) if isinstance(run.config.algorithm, MopoConfig) else None
    policy = PolicyGraph(run.policy if plan is None else planner(run, plan), low, high)
    inputs = {"obs": obs}
    if context is not None:
        z_low, z_high = torch.tensor(context.low), torch.tensor(context.high)
        drawn = torch.rand(len(obs), context.dim, generator=torch.Generator().manual_seed(0))
        inputs["context"] = z_low + drawn * (z_high - z_low)
    policy_onnx = to_onnx(policy, inputs, ["action"])
    worst = check_parity(
        policy, policy_onnx, inputs, "policy.onnx", PARITY_TOLERANCE if plan is None else PLAN_TOLERANCE
    )
    with torch.no_grad():
        golden = {name: value for name, value in inputs.items()} | {"action": policy(*inputs.values())}
    delay = _delay(longest_delay) if run.model is not None else None
    careful, dynamics_onnx = None, None
    caution = caution and bool(body_terms(robot))
    if run.model is not None and (context is not None or delay is not None or caution):
        dynamics = DynamicsGraph(run.model, low, high)
        dynamics_inputs = {"obs": obs, "action": action}
        dynamics_onnx = to_onnx(dynamics, dynamics_inputs, ["delta", "std"])
        worst = max(worst, check_parity(dynamics, dynamics_onnx, dynamics_inputs, "dynamics.onnx"))
        with torch.no_grad():
            golden["delta"], golden["std"] = dynamics(obs, golden["action"])
        told = None if context is None else torch.tensor(context.nominal)
        # A plan would take minutes for this, and its commands stay near the policy's.
        careful = usual_motion(run, PolicyGraph(run.policy, low, high), dynamics, told) if caution else None
    parts = {}
    if run.adaptation is not None:
        adaptation, histories = AdaptationGraph(run.adaptation, low, high), {"history": run.history}
        parts[ADAPTATION] = to_onnx(adaptation, histories, ["estimate"])
        worst = max(worst, check_parity(adaptation, parts[ADAPTATION], histories, ADAPTATION))
        with torch.no_grad():
            golden |= {"history": run.history, "estimate": adaptation(run.history)}
    doubt = None
    if run.prior is not None and with_prior:
        prior = PriorGraph(run.prior, low, high)
        doubt = confidence_range(prior, obs)
        parts[PRIOR] = to_onnx(prior, {"obs": obs}, ["prior_mean", "prior_std"])
        worst = max(worst, check_parity(prior, parts[PRIOR], {"obs": obs}, PRIOR, PRIOR_TOLERANCE))
        with torch.no_grad():
            golden["prior_mean"], golden["prior_std"] = prior(obs)
    origin = provenance(run)
    spec = BundleSpec(
        robot=robot,
        env=run.record["dataset"]["env"],
        context=context,
        delay=delay,
        caution=careful,
        plan=plan,
        prior=doubt,
        provenance=origin,
    )
    rows_kept = {name: value[:GOLDEN_ROWS].numpy() for name, value in golden.items()}
    write_bundle(output, policy_onnx, spec, rows_kept, dynamics_onnx, parts=parts, signing_key=signing_key)
    return worst


def planner(run: Run, plan: PlanSpec) -> Planner:
    """The run's policy with a plan around it.

    Raises:
        UserError: the run has no world model to plan in.
    """
    if run.model is None or run.algorithm is None:
        raise UserError(
            f"plan.horizon plans in the world model that a policy was trained in, and a run of "
            f"algorithm={run.config.algorithm.name} has none; leave it out, or export a run of mopo or its kin."
        )
    change = run.algorithm.change if run.algorithm.context_dim else UNCHANGED
    return Planner(run.sac, run.model, plan, run.algorithm.terminated, change)


def _delay(longest: int) -> DelaySpec | None:
    """Return what the bundle says of delays; None where none is looked for."""
    if type(longest) is not int or not 0 <= longest <= LONGEST_DELAY:
        raise UserError(
            f"longest_delay={longest} is not possible; give a whole number of control periods up to {LONGEST_DELAY}."
        )
    return DelaySpec(most=longest) if longest else None


def body_terms(robot: RobotDescription) -> tuple[int, ...]:
    """Which terms of the observation are the body's velocity along the ground and its turning, counted from 0."""
    return tuple(
        place
        for place, term in enumerate(robot.observations)
        if term.source == "base_velocity" and not (term.unit == "m/s" and term.name.endswith("z_velocity"))
    )


@torch.no_grad()
def usual_motion(run: Run, policy: PolicyGraph, dynamics: DynamicsGraph, told: Tensor | None) -> CautionSpec | None:
    """How unsure the world model is along the policy's own motion in the original world, by rollouts in the model.

    Args:
        run: the run.
        policy: its policy without a plan, in command units.
        dynamics: its world model, likewise.
        told: the context that the policy reads there, `(context_dim,)`, None where it reads none.

    Returns:
        None where too few rollouts go on for long enough to tell.
    """
    generator = torch.Generator().manual_seed(0)
    ended = TERMINATIONS[make_environment(run.record["dataset"]["env"]).config.termination]
    obs, deviations = run.obs, []
    for _ in range(USUAL_STEPS):
        change, std = dynamics(obs, policy(obs, *(() if told is None else (told.expand(len(obs), -1),))))
        deviations.append(std)
        obs = obs + change + std * torch.randn(std.shape, generator=generator)
        obs = obs[~ended(obs) & (obs.abs() < LARGEST).all(1)]
    seen = torch.cat(deviations[USUAL_FROM:])
    if len(seen) < PARITY_ROWS:
        return None
    usual = seen.square().mean(0).sqrt()
    ratios = (seen / usual).square().mean(1).sqrt()
    return CautionSpec(
        terms=body_terms(run.robot), usual=tuple(usual.tolist()), limit=float(np.quantile(ratios.numpy(), 0.98))
    )


def _plan(given: Any) -> PlanSpec | None:
    """Return what the bundle says of plans; None where none is made."""
    if not isinstance(given, DictConfig):
        raise UserError(f"plan={given} is not possible; give a number of steps, plan.horizon=3.")
    return PlanSpec.model_validate(OmegaConf.to_container(given)) if given.horizon else None


def provenance(run: Run) -> Provenance:
    """Where the bundle comes from."""
    return Provenance(
        algorithm=run.config.algorithm.name,
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
    worst = export(folder, output, key, config.longest_delay, _plan(config.plan), config.with_prior, config.caution)
    print(f"{output}: torch and onnxruntime agree to {worst:.1e} over {PARITY_ROWS:,} rows")
    if key is not None:
        print(f"signed by the key {fingerprint(key.public_key())}")
    for path in export_behaviour(folder):
        print(f"behaviour policy {path}")
    print(f"next: surefoot validate bundle={output}")
