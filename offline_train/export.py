"""`surefoot export`: a training run as a bundle, its graphs compared with torch before anything is written."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from adapters.command import command
from adapters.datasets import TransitionDataset
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
from offline_train.algorithms.awac_online import OnlineAwacConfig, new_awac
from offline_train.algorithms.base import Learner
from offline_train.algorithms.demonstrated import DemonstratedConfig
from offline_train.algorithms.model_free import ModelFreeConfig
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.nppac import NppacConfig, PriorActorCritic
from offline_train.algorithms.registry import make_algorithm, make_model_free
from offline_train.algorithms.rma import Adaptation, Rma, transitions
from offline_train.algorithms.sac import Sac
from offline_train.algorithms.sac_online import OnlineSacConfig
from offline_train.checkpoint import load_checkpoint
from offline_train.data import Data, open_log
from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.models.rollout import UNCHANGED
from offline_train.planner import Planner
from offline_train.priors.base import Prior
from offline_train.priors.fit import load_prior
from offline_train.settings import TrainConfig
from offline_train.train import snapshot_path, snapshot_steps
from offline_train.world_model import load_world_model
from sim.environments import Environment, make_environment
from sim.gymnasium_tasks import OpenTask, find_task, robots_of
from sim.terminations import TERMINATIONS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PARITY_ROWS, GOLDEN_ROWS = 1_000, 64
# Steps of the model rollouts that tell what motion is usual, and the first of them that counts.
USUAL_STEPS, USUAL_FROM = 200, 20
RANDOM_ROBOTS = 50
# Standard deviations of the observations by which a place is far from the demonstrations.
FAR = 5.0
PARITY_TOLERANCE = 1e-5
# A variance is a small difference of large sums.
PRIOR_TOLERANCE = 1e-4
# A plan compares values of hundreds to hundredths, and no two runtimes round them alike.
PLAN_TOLERANCE = 1e-3


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
    worst = max(
        float((np.abs(f - e.numpy()) / np.maximum(np.abs(e.numpy()), 1.0)).max())
        for f, e in zip(found, expected, strict=True)
    )
    if not worst < tolerance:
        raise UserError(
            f"{name} as onnxruntime runs it differs from torch by {worst:.1e}, more than {tolerance}; nothing "
            "was written. Check the versions of onnxruntime and torch."
        )
    return worst


class Run:
    """A finished training run, read back from its folder.

    Args:
        folder: where surefoot train left it.
        policy: the file of the policy, None for the final one.

    Attributes:
        record: what run.json says.
        config: the run's settings.
        robot: whose commands the policy gives.
        policy: the policy with all that was learned beside it.
        obs: observations to compare graphs over, `(PARITY_ROWS, obs_dim)`.
        action: commands to compare graphs over, `(PARITY_ROWS, act_dim)`.
        model: the world model, None for a run without one.
        algorithm: what was trained in the world model, None for another run.
        data: the log, None for a run in the simulator.
        prior: what demonstrations gave, None for a run without.
        adaptation: the adaptation module, None where the algorithm has none.
        history: histories to compare its graphs over, `(PARITY_ROWS, window * (1 + 2 obs_dim + act_dim))`.

    Raises:
        UserError: it is not there, not finished, or its data is gone.
    """

    def __init__(self, folder: Path, policy: Path | None = None) -> None:
        if not (folder / "policy.safetensors").is_file():
            raise UserError(
                f"{folder} holds no finished run (policy.safetensors is missing); finish it with resume=true."
            )
        self.record: dict[str, Any] = read_json(folder / "run.json")
        free = {"output": folder, "resume": False, "threads": 1}
        every = {"checkpoint_every": 1, "evaluate_every": 1, "evaluation_episodes": 0}
        self.config = TrainConfig.model_validate(self.record["config"] | free | every)
        robot, settings = self.config.robot, self.config.algorithm
        assert robot is not None, "a run has a robot"
        self.robot = robot
        self.model: DynamicsEnsemble | None = None
        self.algorithm: Mopo | None = None
        self.data: Data | None = None
        self.adaptation: Adaptation | None = None
        self.prior: Prior | None = None
        self.policy: Learner
        if isinstance(settings, OnlineSacConfig):
            environment = find_task(self.record["dataset"]["env"])
            self.policy = settings.new_learner(robot.obs_dim, robot.act_dim, torch.Generator())
            self.obs, self.action = random_motion(environment)
        elif isinstance(settings, DemonstratedConfig):
            self.obs, self.action = near_and_far(open_log(self.config.dataset))
            self.policy = new_demonstrated(settings, robot)
            if isinstance(settings, NppacConfig):
                self.prior = load_prior(folder / "prior.safetensors")[1]
        else:
            assert isinstance(settings, (MopoConfig, ModelFreeConfig)), "a run with a policy has an algorithm"
            dataset = open_log(self.config.dataset)
            self.data = Data(dataset, robot, self.config.ensemble.holdout_fraction, "cpu")
            rows = np.random.default_rng(0).integers(0, len(dataset), PARITY_ROWS)
            self.obs, self.action = (torch.from_numpy(v[rows]) for v in (dataset.observations, dataset.actions))
            if isinstance(settings, MopoConfig) or self.config.world_model is not None:
                self.model = load_world_model(folder, self.data).requires_grad_(False)
            empty = torch.zeros(1, 2 * dataset.obs_dim + dataset.act_dim + 2)
            if isinstance(settings, ModelFreeConfig):
                self.policy = make_model_free(settings, empty, dataset.obs_dim, dataset.act_dim, 0).policy
            else:
                assert self.model is not None
                rule = TERMINATIONS[make_environment(self.record["dataset"]["env"]).config.termination]
                self.algorithm = make_algorithm(settings, empty, self.model, rule, self.config.seed)
                self.policy = self.algorithm.policy
            if isinstance(self.algorithm, Rma):
                self.adaptation = self.algorithm.adaptation
                self.adaptation.load_state_dict(load_checkpoint(folder / "adaptation.safetensors"))
                self.history = random_histories(dataset, self.adaptation.window)
        self.policy.load_state_dict(load_checkpoint(policy or folder / "policy.safetensors"))

    @property
    def sac(self) -> Sac:
        """The policy of an algorithm that is built on SAC."""
        assert isinstance(self.policy, Sac), "only such a run is asked for it"
        return self.policy


def new_demonstrated(settings: Any, robot: RobotDescription) -> Learner:
    """An untrained learner of an algorithm with demonstrations."""
    generator = torch.Generator()
    if isinstance(settings, NppacConfig):
        return PriorActorCritic(robot.obs_dim, robot.act_dim, settings, generator)
    if isinstance(settings, OnlineAwacConfig):
        return new_awac(settings, robot.obs_dim, robot.act_dim, generator)
    return Sac(torch.zeros(robot.obs_dim), torch.ones(robot.obs_dim), robot.act_dim, settings.sac, generator)


def near_and_far(dataset: TransitionDataset) -> tuple[Tensor, Tensor]:
    """Observations of demonstrations and, every second row, of places `FAR` standard deviations away from them.

    Returns:
        Observations and commands, `(PARITY_ROWS, dim)` each.
    """
    generator = np.random.default_rng(0)
    rows = generator.integers(0, len(dataset), PARITY_ROWS)
    away = generator.standard_normal((PARITY_ROWS, dataset.obs_dim)) * (np.arange(PARITY_ROWS) % 2)[:, None]
    obs = dataset.observations[rows] + FAR * dataset.observations.std(0) * away
    return torch.from_numpy(obs.astype(np.float32)), torch.from_numpy(dataset.actions[rows])


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


def random_motion(task: Environment | OpenTask) -> tuple[Tensor, Tensor]:
    """Observations and commands of robots that move at random from their starts: `(PARITY_ROWS, dim)` each."""
    generator = np.random.default_rng(0)
    robots = robots_of(task, RANDOM_ROBOTS, 0)
    actions = generator.uniform(-1.0, 1.0, (PARITY_ROWS // RANDOM_ROBOTS, RANDOM_ROBOTS, task.act_dim))
    seen = [robots.start(), *(robots.step(action).obs for action in actions)]
    robots.close()
    obs, action = (torch.from_numpy(np.concatenate(values)).float() for values in (seen[:-1], task.commands(actions)))
    return obs, action


def random_histories(dataset: TransitionDataset, window: int) -> Tensor:
    """Histories of transitions drawn from a log, as many absent as there may be: `(PARITY_ROWS, window * width)`."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, len(dataset), (PARITY_ROWS, window))
    parts = (dataset.observations, dataset.actions, dataset.next_observations)
    present = generator.integers(1, window + 1, (PARITY_ROWS, 1)) > np.arange(window)[::-1]
    history = transitions(*(torch.from_numpy(part[rows]) for part in parts)) * torch.from_numpy(present)[..., None]
    return history.flatten(1)


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
