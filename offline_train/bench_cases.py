"""What `surefoot bench` measures: everything of HalfCheetah's shape and of the sizes that training uses."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from adapters.datasets import Metadata, TransitionDataset, save_npz
from deploy.bundle import Bundle
from deploy.context import ESTIMATORS, make_estimator
from deploy.controller import Controller
from deploy.graph import Graph
from offline_train import bench_reference as plain
from offline_train.algorithms.augwm import AugWm, AugWmConfig
from offline_train.algorithms.edac import EdacConfig
from offline_train.algorithms.model_free import ModelFreeConfig
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.registry import make_model_free
from offline_train.algorithms.td3_bc import Td3BcConfig
from offline_train.export import export
from offline_train.graphs import PriorGraph, to_onnx
from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.models.fit import EnsembleConfig, EnsembleTrainer, FitData
from offline_train.models.rollout import rollout
from offline_train.networks import training_precision
from offline_train.priors.exact_gp import exact_posterior, new_model
from offline_train.priors.gp_posterior import Hyperparameters
from offline_train.priors.sparse_gp import sparse_posterior
from offline_train.replay import Batch
from offline_train.settings import TrainConfig
from offline_train.train import run
from sim.environments import make_environment
from sim.perturb import load_suite
from sim.rollout import run_episodes
from sim.terminations import never

ENVIRONMENT, SUITES = "halfcheetah", ("mass-damping", "joint-failure")
OBS_DIM, ACT_DIM = 17, 6
REAL_ROWS, MODEL_ROWS, ROLLOUT_STARTS = 150_000, 250_000, 50_000
EPISODES, EPISODE_STEPS = 4, 150
SCALINGS = [name for name, kind in ESTIMATORS.items() if kind == "delta_scale"]
SPEED_CASES = 18 + len(SCALINGS)
LATENCY_CALLS = 2_000
PRIOR_ROWS, INDUCING = 300, 2_000

SPEED_CAPTION = (
    "Speeds: best repeat (median). us: microseconds of one call, median (99th percentile). plain: an ordinary "
    "implementation of the same work, in this run. peer: a published figure, measured on another machine. "
    "SAC, AugWM, TD3+BC: gradient steps, 2x256, batch 256. EDAC: the same, 3x256, 10 critics. "
    "bf16: products between hidden layers in bfloat16. ensemble: gradient steps of 7 members, 4x200, batch 256. "
    f"model rollout: {ROLLOUT_STARTS:,} starts, 5 steps, with penalty. closed loop: the controller in every world of "
    f"{' and '.join(SUITES)}, {EPISODES} episodes each. prior: an exact "
    f"process of {PRIOR_ROWS} rows, plain is gpytorch. prior.onnx: a sparse process, as the robot asks it, plain is "
    "torch. context update, controller: one robot."
)

Work = Callable[[float], int]
"""Does that share of the usual work, but at least one unit of it; returns how many units it did."""


class Peer(NamedTuple):
    """What a peer reaches: measured on another machine, one CPU thread, HalfCheetah's shape."""

    name: str
    speed: int


class Case(NamedTuple):
    """One line of the report.

    Attributes:
        name: what is done.
        unit: what is counted.
        ours: the work.
        plain: the same work as an ordinary implementation does it.
        repeats: how often either is done.
        peer: a peer's figure.
        latency: whether the time of one call is asked for, in place of calls a second.
    """

    name: str
    unit: str
    ours: Work
    plain: Work
    repeats: int = 3
    peer: Peer | None = None
    latency: bool = False


def speed_cases(folder: Path) -> Iterator[Case]:
    """Every case, one after another, so that no two hold their memory at once.

    Args:
        folder: an empty one, for the bundles that the closed loop runs.
    """
    generator = np.random.default_rng(0)
    real, imagined = transitions(REAL_ROWS, generator), transitions(MODEL_ROWS, generator)
    model = DynamicsEnsemble(OBS_DIM, ACT_DIM, torch.Generator().manual_seed(0)).requires_grad_(False)
    mopo = Mopo(MopoConfig(), packed(real), model, never, seed=0)
    sac = learner_case("SAC", mopo, real, imagined, Peer("OfflineRL-Kit", 91))
    yield from (sac, in_bf16(sac))
    augwm = AugWm(AugWmConfig(), packed(real), model, never, seed=0)
    yield learner_case("AugWM", augwm, real, imagined, None)
    td3_bc, edac = Td3BcConfig(), EdacConfig()
    plain_td3_bc = plain.PlainTd3Bc(OBS_DIM, ACT_DIM, td3_bc.hidden)
    without_model = model_free_case("TD3+BC", td3_bc, real, plain_td3_bc, Peer("CORL", 148))
    yield from (without_model, in_bf16(without_model))
    plain_edac = plain.PlainEdac(OBS_DIM, ACT_DIM, edac.sac.hidden, edac.critics)
    diverse = model_free_case("EDAC", edac, real, plain_edac, Peer("OfflineRL-Kit", 9), steps=12)
    yield from (diverse, in_bf16(diverse))
    yield ensemble_case(real)
    imagining = rollout_case(mopo, real["obs"][:ROLLOUT_STARTS])
    yield from (imagining, in_bf16(imagining))
    yield prior_case()
    yield prior_graph_case()
    bundles = [untrained_bundle(algorithm, folder) for algorithm in ("mopo", "augwm")]
    for bundle in bundles:
        yield closed_loop_case(bundle, threads=1)
        yield closed_loop_case(bundle, threads=2)
    for name in SCALINGS:
        yield context_case(bundles[1], name)
    for bundle in bundles:
        yield controller_case(bundle)


def transitions(rows: int, generator: np.random.Generator) -> plain.Fields:
    """Random transitions, one array a field."""
    return {
        "obs": generator.standard_normal((rows, OBS_DIM), np.float32),
        "action": generator.uniform(-1, 1, (rows, ACT_DIM)).astype(np.float32),
        "reward": generator.standard_normal(rows, np.float32),
        "next_obs": generator.standard_normal((rows, OBS_DIM), np.float32),
        "terminal": np.zeros(rows, np.float32),
    }


def as_batch(fields: plain.Fields) -> Batch:
    """The same transitions as torch reads them."""
    return Batch(**{name: torch.from_numpy(values) for name, values in fields.items()})


def packed(fields: plain.Fields) -> Tensor:
    """The same transitions in one tensor."""
    return as_batch(fields).pack()


def repeated(step: Callable[[], Any], times: int) -> Work:
    """Work that is one step, done over and over."""

    def work(share: float) -> int:
        count = max(round(times * share), 1)
        for _ in range(count):
            step()
        return count

    return work


def learner_case(name: str, algorithm: Mopo, real: plain.Fields, imagined: plain.Fields, peer: Peer | None) -> Case:
    """Gradient steps of a learner, sampling included."""
    config, generator = algorithm.config, np.random.default_rng(0)
    algorithm.replay.add(as_batch(imagined))
    ordinary = plain.PlainSac(OBS_DIM + algorithm.context_dim, ACT_DIM, config.sac.hidden)

    def plain_step() -> None:
        batch = plain.mixed_batch(real, imagined, config.batch_size, generator)
        ordinary.update(plain.scaled_batch(batch, generator) if algorithm.context_dim else batch)

    return Case(name, "steps", repeated(algorithm._update, 128), repeated(plain_step, 96), peer=peer)


def model_free_case(
    name: str,
    config: ModelFreeConfig,
    real: plain.Fields,
    ordinary: plain.PlainTd3Bc | plain.PlainEdac,
    peer: Peer,
    steps: int = 128,
) -> Case:
    """Gradient steps of a learner on the log alone, sampling included."""
    algorithm, generator = make_model_free(config, packed(real), OBS_DIM, ACT_DIM, seed=0), np.random.default_rng(0)
    count = itertools.count()

    def plain_step() -> None:
        ordinary.update(plain.sample(real, config.batch_size, generator))

    ours = repeated(lambda: algorithm._update(next(count)), steps)
    return Case(name, "steps", ours, repeated(plain_step, steps), peer=peer)


def in_bf16(case: Case) -> Case:
    """The same work with products between hidden layers in bfloat16, and what is plain as it was."""

    def ours(share: float) -> int:
        with training_precision("cpu", bf16=True):
            return case.ours(share)

    return case._replace(name=f"{case.name}, bf16", ours=ours)


def ensemble_case(real: plain.Fields) -> Case:
    """Gradient steps of the dynamics ensemble."""
    config, generator = EnsembleConfig(), np.random.default_rng(0)
    inputs = np.concatenate([real["obs"], real["action"]], -1)
    targets = np.concatenate([real["next_obs"], real["reward"][:, None]], -1)
    model = DynamicsEnsemble(OBS_DIM, ACT_DIM, torch.Generator().manual_seed(0))
    data = FitData(torch.from_numpy(inputs), torch.from_numpy(targets))
    trainer = EnsembleTrainer(model, data, data, config, torch.Generator().manual_seed(0))
    ordinary = plain.PlainEnsemble(OBS_DIM, ACT_DIM, config.members, config.hidden)
    bootstrap = generator.integers(0, len(inputs), (config.members, len(inputs)))

    def plain_step() -> None:
        column = generator.integers(0, len(inputs), (config.members, config.batch_size))
        ordinary.update(inputs, targets, np.take_along_axis(bootstrap, column, 1))

    return Case(
        "ensemble", "steps", repeated(trainer.step, 48), repeated(plain_step, 32), peer=Peer("OfflineRL-Kit", 38)
    )


def rollout_case(algorithm: Mopo, starts: np.ndarray) -> Case:
    """Model rollouts with their penalty."""
    config, generator = algorithm.config, np.random.default_rng(0)
    ordinary = plain.PlainEnsemble(OBS_DIM, ACT_DIM, algorithm.model.members, EnsembleConfig().hidden)
    policy = plain.PlainSac(OBS_DIM, ACT_DIM, config.sac.hidden)

    def ours(share: float) -> int:
        steps = rollout(
            algorithm.model,
            torch.from_numpy(starts[: max(round(len(starts) * share), 1)]),
            lambda obs, _: algorithm.sac.explore(obs),
            algorithm.generator,
            horizon=config.horizon,
            penalty=config.penalty,
            pessimism=algorithm.pessimistic,
            terminated=never,
        )
        return sum(len(batch.obs) for batch, _ in steps)

    def plain_work(share: float) -> int:
        chosen = starts[: max(round(len(starts) * share), 1)]
        return len(plain.plain_rollout(ordinary, chosen, policy.act, config.horizon, generator)["obs"])

    return Case("model rollout", "transitions", ours, plain_work, repeats=2, peer=Peer("OfflineRL-Kit", 15_400))


def prior_case() -> Case:
    """Mean and standard deviation of a batch of 256 by the exact prior; the plain counterpart is gpytorch's own.

    gpytorch is given its caches and `fast_pred_var`, as N-PPAC's authors use it. A test holds both to the same answer.
    """
    generator = torch.Generator().manual_seed(0)
    obs, action = (torch.randn(PRIOR_ROWS, dim, generator=generator).double() for dim in (OBS_DIM, ACT_DIM))
    model = new_model(obs, action, "rbf", generator)
    with torch.no_grad():
        cached = exact_posterior(model.hyperparameters(), obs, action)
    asked = torch.randn(256, OBS_DIM, generator=generator)
    ordinary = plain.GpytorchPrediction(model)
    return Case(
        "prior, batch of 256",
        "calls",
        repeated(lambda: cached.predict(asked), 100),
        repeated(lambda: ordinary.predict(asked.double()), 2),
        repeats=20,
        latency=True,
    )


def prior_graph_case() -> Case:
    """Mean and standard deviation of one state by the graph of a sparse prior, as the robot asks for its confidence.

    The plain counterpart asks the same process in torch.
    """
    generator = torch.Generator().manual_seed(0)
    obs, action = (torch.randn(2 * INDUCING, dim, generator=generator).double() for dim in (OBS_DIM, ACT_DIM))
    one, small = torch.ones(ACT_DIM).double(), torch.full((ACT_DIM,), 0.1).double()
    lengthscale = torch.full((OBS_DIM,), 5.0).double()
    parameters = Hyperparameters("rbf", lengthscale, mean=0.0 * one, factor=0.1 * one, diagonal=small, noise=small)
    posterior = sparse_posterior(parameters, obs[:INDUCING], obs, action)
    asked = obs[:1].float()
    module = PriorGraph(posterior, [-1.0] * ACT_DIM, [1.0] * ACT_DIM)
    graph = Graph(to_onnx(module, {"obs": obs[:2].float()}, ["prior_mean", "prior_std"]), Path("prior.onnx"))
    values = {"obs": asked.numpy()}
    return Case(
        f"prior.onnx of {INDUCING:,} points, one state",
        "calls",
        repeated(lambda: graph.run(values), 100),
        repeated(lambda: posterior.predict(asked), 100),
        repeats=20,
        latency=True,
    )


def untrained_bundle(algorithm: str, folder: Path) -> Bundle:
    """A bundle of full size after one gradient step, made by the real training and the real export.

    Args:
        algorithm: mopo or augwm.
        folder: where the data, the run and the bundle are put.
    """
    data, output = folder / "data.npz", folder / f"{algorithm}.bundle"
    save_npz(random_dataset(), data)
    overrides = [f"algorithm.{setting}" for setting in ("updates=1", "rollout_starts=10", "retain_epochs=1")]
    overrides += [f"algorithm={algorithm}", f"dataset.path={data}", f"output={folder / algorithm}"]
    overrides += ["dataset=file", "ensemble.max_steps=1", "evaluation_episodes=0"]
    settings = OmegaConf.to_container(hydra.compose("train", overrides), resolve=True)
    with contextlib.redirect_stdout(io.StringIO()):
        run(TrainConfig.model_validate(settings))
        # The plain counterparts look for no delay and show no caution either.
        export(folder / algorithm, output, longest_delay=0, caution=False)
    return Bundle.load(output)


def random_dataset(rows: int = 1_200) -> TransitionDataset:
    """Two episodes of noise in HalfCheetah's shape."""
    fields = transitions(rows, np.random.default_rng(0))
    last = np.arange(rows) % (rows // 2) == rows // 2 - 1
    arrays = {
        "observations": fields["obs"],
        "actions": fields["action"],
        "rewards": fields["reward"],
        "next_observations": np.roll(fields["obs"], -1, axis=0),
        "terminals": np.zeros(rows, bool),
        "timeouts": last,
    }
    metadata = Metadata(env=ENVIRONMENT, control_dt=make_environment(ENVIRONMENT).control_dt, source="noise")
    return TransitionDataset.from_arrays(arrays, metadata, "the benchmark's data")


def closed_loop_case(bundle: Bundle, threads: int) -> Case:
    """Validation over the shipped suites, every world changed from the start.

    The plain counterpart steps one gymnasium environment with one policy call a step, the context's estimate included
    where there is one.
    """
    environment = make_environment(ENVIRONMENT)
    worlds = [world.model_copy(update={"at_step": 0}) for suite in SUITES for world in load_suite(suite, environment)]
    inferred = bundle.manifest.context is not None
    single, clock = Controller(bundle), itertools.count()

    def ours(share: float) -> int:
        steps = max(round(EPISODE_STEPS * share), 1)
        result = run_episodes(
            environment,
            worlds,
            lambda plant: Controller(bundle, batch=(len(plant),)),
            episodes=EPISODES,
            seed=0,
            steps=steps,
            threads=threads,
        )
        return int(result.lengths.sum())

    def policy(obs: np.ndarray) -> np.ndarray:
        return single.step(next(clock) * environment.control_dt, obs).action if inferred else bundle.act(obs)

    def plain_work(share: float) -> int:
        steps = max(round(10 * EPISODE_STEPS * share), 1)
        plain.plain_episodes(environment.task_id, policy, steps)
        return steps

    name = f"closed loop, {'context' if inferred else 'no context'}, {threads} thread{'s' * (threads > 1)}"
    peer = None if inferred else Peer("gymnasium", 28_000)
    return Case(name, "steps", ours, plain_work, peer=peer)


def context_case(bundle: Bundle, estimator: str) -> Case:
    """One update of a context estimator, the world model's prediction included, on one robot."""
    context = bundle.manifest.context
    assert context is not None
    ours = make_estimator(
        estimator,
        predict_change=bundle.predict_change,
        low=np.array(context.low),
        high=np.array(context.high),
        nominal=np.array(context.nominal),
        act_dim=ACT_DIM,
    )
    ordinary = plain.PlainContext(bundle.predict_change, estimator, window=200)
    # The plain window is full before anything is timed.
    for obs, action, next_obs in itertools.islice(_endless(), ordinary.window):
        ordinary.update(obs, action, next_obs)
    ours_rows, plain_rows = _endless(), _endless()
    return Case(
        f"context update, {estimator}",
        "updates",
        repeated(lambda: ours.update(*next(ours_rows)), LATENCY_CALLS),
        repeated(lambda: ordinary.update(*next(plain_rows)), LATENCY_CALLS // 10),
        repeats=LATENCY_CALLS // 4,
        latency=True,
    )


def _endless() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Observation, action and next observation, for ever."""
    fields = transitions(1_000, np.random.default_rng(1))
    rows = zip(fields["obs"], fields["action"], fields["next_obs"], strict=True)
    return itertools.cycle([(obs.astype(np.float64), action, after.astype(np.float64)) for obs, action, after in rows])


def controller_case(bundle: Bundle) -> Case:
    """One step of the controller on one robot; the plain counterpart is the bare policy, clipped, without any check."""
    context = bundle.manifest.context
    controller, clock = Controller(bundle), itertools.count()
    nominal = None if context is None else np.array(context.nominal)
    ours_rows, plain_rows = _endless(), _endless()

    def step() -> None:
        controller.step(next(clock) * bundle.manifest.robot.control_dt, next(ours_rows)[0])

    def plain_step() -> None:
        np.clip(bundle.act(next(plain_rows)[0], nominal), -1.0, 1.0)

    return Case(
        f"controller, {'no context' if context is None else context.estimator}",
        "steps",
        repeated(step, LATENCY_CALLS),
        repeated(plain_step, LATENCY_CALLS),
        repeats=LATENCY_CALLS,
        latency=True,
    )
