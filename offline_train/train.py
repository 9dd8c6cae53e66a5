"""`surefoot train`: from a log to a world model and a policy, in a folder that can be resumed and exported."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from adapters.command import command
from adapters.datasets import TransitionDataset, load_dataset, save_npz
from adapters.errors import UserError
from adapters.files import read_json, write_json
from adapters.progress import progress_bar
from deploy.bundle import RobotDescription
from offline_train.algorithms.augwm import AugWm, AugWmConfig
from offline_train.algorithms.augwm_actuators import ActuatorAugWm, ActuatorAugWmConfig
from offline_train.algorithms.augwm_mabe import MabeAugWm, MabeAugWmConfig
from offline_train.algorithms.awac import Awac, AwacConfig
from offline_train.algorithms.awac_online import OnlineAwac, OnlineAwacConfig
from offline_train.algorithms.awbc import Awbc, AwbcConfig
from offline_train.algorithms.base import Algorithm, Learner, Settings
from offline_train.algorithms.bc import Bc, BcConfig
from offline_train.algorithms.brac import Brac, BracConfig
from offline_train.algorithms.combo import Combo, ComboConfig
from offline_train.algorithms.cql import Cql, CqlConfig
from offline_train.algorithms.demonstrated import Demonstrated, DemonstratedConfig
from offline_train.algorithms.edac import Edac, EdacConfig
from offline_train.algorithms.iql import Iql, IqlConfig
from offline_train.algorithms.mabe import Mabe, MabeConfig
from offline_train.algorithms.model_free import ModelFree, ModelFreeConfig
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.morel import Morel, MorelConfig
from offline_train.algorithms.nppac import Nppac, NppacConfig
from offline_train.algorithms.online import OnlineConfig
from offline_train.algorithms.redq import RedqConfig
from offline_train.algorithms.rma import Rma, RmaConfig
from offline_train.algorithms.sac import SacConfig
from offline_train.algorithms.sac_bc import SacBc, SacBcConfig
from offline_train.algorithms.sac_online import OnlineSac, OnlineSacConfig
from offline_train.algorithms.synther_online import OnlineSynther, OnlineSyntherConfig
from offline_train.algorithms.td3_bc import Td3Bc, Td3BcConfig
from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.evaluate import model_return, simulator_return
from offline_train.metrics import MetricsLog, read_metrics
from offline_train.models.ensemble import DynamicsEnsemble, TerminationRule
from offline_train.models.fit import EnsembleConfig, EnsembleTrainer, fit_data, holdout_error, set_normalisers
from offline_train.models.rollout import HORIZONS, horizon_error
from offline_train.priors.base import Prior
from offline_train.priors.ensemble import EnsembleConfig as PriorEnsembleConfig
from offline_train.priors.fit import AnyPriorConfig, fit_prior, load_prior, save_prior
from offline_train.priors.sparse_gp import SparseGpConfig
from offline_train.replay import Batch
from sim.environments import Environment, make_environment
from sim.gymnasium_tasks import OpenTask, find_task, judge, robot_of, robots_of
from sim.mujoco_plant import find_world, name_world
from sim.perturb import NOMINAL, Perturbation
from sim.terminations import TERMINATIONS
from sim.worlds import steady_world

Watch = Callable[[Algorithm, dict[str, float]], None]
"""Is shown the algorithm and its figures after every evaluation; what it raises stops the run at once."""


class DatasetConfig(BaseModel):
    """Where the log is; without a path there is none, and the policy learns in the simulator."""

    model_config = ConfigDict(extra="forbid")

    name: str
    path: str | list[str] | None
    env: str | None = None
    control_dt: float | None = None
    rows: int | None = Field(default=None, ge=1)
    synthetic: str | None = None
    real_fraction: float = Field(default=0.0, ge=0, le=1)


class NoAlgorithm(BaseModel):
    """Stands where an algorithm would when the world model alone is wanted."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["none"]


class TrainConfig(BaseModel):
    """Settings of a run; configs/train.yaml says what each means.

    `perturbation` is the run's own note of what the chosen world changes, so that no later suite can tell otherwise;
    `adaptation` that of `surefoot adapt`, where the run corrects an earlier one.
    """

    model_config = ConfigDict(extra="forbid")

    algorithm: Annotated[
        MopoConfig
        | AugWmConfig
        | ActuatorAugWmConfig
        | RmaConfig
        | MorelConfig
        | MabeConfig
        | MabeAugWmConfig
        | ComboConfig
        | OnlineSacConfig
        | RedqConfig
        | OnlineSyntherConfig
        | BcConfig
        | Td3BcConfig
        | IqlConfig
        | AwacConfig
        | AwbcConfig
        | CqlConfig
        | EdacConfig
        | BracConfig
        | NppacConfig
        | SacBcConfig
        | OnlineAwacConfig
        | NoAlgorithm,
        Field(discriminator="name"),
    ]
    dataset: DatasetConfig
    robot: RobotDescription | None = None
    prior: AnyPriorConfig | None = None
    suite: str | None = None
    world: str | None = None
    perturbation: dict[str, Any] | None = None
    adaptation: dict[str, Any] | None = None
    output: Path
    seed: int
    start_from: Path | None = None
    world_model: Path | None
    ensemble: EnsembleConfig
    checkpoint_every: int = Field(ge=1)
    evaluate_every: int = Field(ge=1)
    evaluation_episodes: int = Field(ge=0)
    threads: int = Field(ge=1)
    device: Literal["cpu", "cuda"]
    resume: bool


class Data:
    """The log as torch reads it: actions in [-1, 1], whole episodes held out.

    Args:
        dataset: the log.
        robot: whose command range the actions are scaled from.
        holdout_fraction: share of the episodes held out.
        device: where the tensors live.
        synthetic: transitions drawn from a model of the log, which are learned from in its place; held-out episodes
            and what is said about the log stay those of the log itself.
        real_fraction: share of the log among what is learned from then.
    """

    def __init__(
        self,
        dataset: TransitionDataset,
        robot: RobotDescription,
        holdout_fraction: float,
        device: str,
        synthetic: TransitionDataset | None = None,
        real_fraction: float = 0.0,
    ) -> None:
        check_fit("the data set", dataset.obs_dim, dataset.act_dim, dataset.metadata.control_dt, robot)
        self.dataset, self.robot, self.device = dataset, robot, device
        self.synthetic, self.real_fraction = synthetic, real_fraction
        # The same episodes are held out whatever the seed, so that hold-out errors of two runs can be compared.
        self.train, self.holdout = dataset.split_episodes(holdout_fraction, np.random.default_rng(0))

    def packed(self, part: TransitionDataset) -> Tensor:
        """Packed rows of one part, with actions in [-1, 1]."""
        return packed(part, self.robot).to(self.device)

    def learned(self) -> Tensor:
        """Packed rows of what is learned from: the training part, or synthetic rows with the share of it asked for."""
        log = self.packed(self.train)
        return log if self.synthetic is None else mixed(log, self.packed(self.synthetic), self.real_fraction)

    def batch(self, part: TransitionDataset) -> Batch:
        """One part as a batch."""
        return Batch.unpack(self.packed(part), part.obs_dim, part.act_dim)


def packed(dataset: TransitionDataset, robot: RobotDescription) -> Tensor:
    """Packed rows of a data set, with actions in [-1, 1] of the robot's command range."""
    rows = torch.from_numpy(dataset.packed())
    low, high = (torch.tensor(v, dtype=torch.float32) for v in (robot.action.low, robot.action.high))
    columns = slice(dataset.obs_dim, dataset.obs_dim + dataset.act_dim)
    rows[:, columns] = (2.0 * (rows[:, columns] - low) / (high - low) - 1.0).clamp(-1.0, 1.0)
    return rows


def mixed(log: Tensor, synthetic: Tensor, real_fraction: float) -> Tensor:
    """As many rows as there are synthetic ones, of which a share is the log's, over and over where it is short.

    Args:
        log: packed rows.
        synthetic: packed rows.
        real_fraction: share of `log`.
    """
    real = round(real_fraction * len(synthetic))
    places = torch.arange(real, device=log.device) % len(log)
    return torch.cat([log[places], synthetic[: len(synthetic) - real]])


def open_log(source: DatasetConfig) -> TransitionDataset:
    """The log that the settings name, or as many rows of it as they ask for, always the same ones.

    Raises:
        UserError: it cannot be read, or has fewer rows.
    """
    dataset = load_dataset(source.path or "", env=source.env, control_dt=source.control_dt)
    return dataset if source.rows is None else dataset.subset(source.rows, np.random.default_rng(0))


def open_synthetic(source: DatasetConfig, log: TransitionDataset) -> TransitionDataset | None:
    """The synthetic transitions that the settings name, None where they name none.

    Raises:
        UserError: they cannot be read, are not synthetic, or were modelled on another log.
    """
    if source.synthetic is None:
        return None
    dataset = load_dataset(source.synthetic, env=log.metadata.env, control_dt=log.metadata.control_dt)
    made_by = dataset.metadata.synthetic
    if made_by is None:
        raise UserError(f"{source.synthetic} is a real log; give it as dataset.path, or upsample it first.")
    if made_by["source_sha256"] != log.metadata.sha256:
        raise UserError(
            f"{source.synthetic} was modelled on another log than the one to learn from; upsample this one, with the "
            "same dataset settings."
        )
    return dataset


def check_fit(source: str, obs_dim: int, act_dim: int, control_dt: float, robot: RobotDescription) -> None:
    """Refuse a log or an environment that is not of this robot.

    Args:
        source: what it is, for the message.
        obs_dim: size of its observations.
        act_dim: size of its actions.
        control_dt: its control period in s.
        robot: the robot.

    Raises:
        UserError: sizes or control period differ.
    """
    for kind, found, wanted in (("observation", obs_dim, robot.obs_dim), ("action", act_dim, robot.act_dim)):
        if found != wanted:
            raise UserError(
                f"{source} has {found} {kind} dimensions and the robot '{robot.name}' has {wanted}; "
                "choose the robot that it is of (robot=NAME)."
            )
    if abs(control_dt - robot.control_dt) > 1e-6:
        raise UserError(
            f"{source} has a control period of {control_dt} s and the robot '{robot.name}' is controlled every "
            f"{robot.control_dt} s; a policy has to run at the period that it was learned at."
        )


def train_world_model(
    config: TrainConfig, data: Data, folder: Path, earlier: DynamicsEnsemble | None = None
) -> DynamicsEnsemble:
    """Fit the ensemble, or take up a fit, and write it with its errors under `folder`.

    Args:
        config: settings of the run.
        data: what it is fitted to.
        folder: where it is written.
        earlier: the world model of a similar robot, which is corrected in place, with the normalisers that it has; a
            member that gets no better on the held-out data stays as it was. None for a model from scratch.
    """
    model = new_model(config.ensemble, data) if earlier is None else earlier
    final, part = folder / "world_model.safetensors", folder / "world_model.part.safetensors"
    if config.resume and final.is_file():
        model.load_state_dict(load_checkpoint(final))
        return model
    train = Batch.unpack(data.learned(), data.dataset.obs_dim, data.dataset.act_dim)
    holdout = data.batch(data.holdout)
    if earlier is None:
        set_normalisers(model, train.obs, train.action, train.next_obs, train.reward)
    trainer = EnsembleTrainer(
        model,
        fit_data(model, train.obs, train.action, train.next_obs, train.reward),
        fit_data(model, holdout.obs, holdout.action, holdout.next_obs, holdout.reward),
        config.ensemble,
        torch.Generator(data.device).manual_seed(config.seed),
    )
    if earlier is not None:
        trainer.end_epoch()
    if config.resume and part.is_file():
        trainer.load_state_dict(load_checkpoint(part))
    with (
        MetricsLog(folder, "world_model", trainer.steps) as log,
        progress_bar("world model", config.ensemble.max_steps) as move,
    ):

        def report(step: int, figures: dict[str, float]) -> None:
            log.write(step, figures)
            move(step, f"hold-out error {figures['best_holdout_mse']:.4f}")
            save_checkpoint(part, trainer.state_dict())

        move(trainer.steps)
        trainer.run(report)
    errors = world_model_errors(model, data)
    write_json(folder / "world_model.json", errors | {"steps": trainer.steps})
    save_checkpoint(final, model.state_dict())
    part.unlink(missing_ok=True)
    return model


def new_model(config: EnsembleConfig, data: Data, seed: int = 0) -> DynamicsEnsemble:
    """An unfitted ensemble for the data."""
    generator = torch.Generator().manual_seed(seed)
    return DynamicsEnsemble(
        data.dataset.obs_dim,
        data.dataset.act_dim,
        generator,
        members=config.members,
        elites=config.elites,
        hidden=config.hidden,
    ).to(data.device)


def world_model_errors(model: DynamicsEnsemble, data: Data) -> dict[str, Any]:
    """Held-out error of the ensemble, and its drift over rollout horizons, as JSON.

    `holdout_mse` is the members' mean squared error per normalised dimension of (change of state, reward);
    `elites_mse` that of the elites' averaged prediction of the change of state; `horizon_rmse` is in standard
    deviations of the observations.
    """
    holdout = data.batch(data.holdout)
    fit = fit_data(model, holdout.obs, holdout.action, holdout.next_obs, holdout.reward)
    members = holdout_error(model, fit)
    with torch.no_grad():
        change, _ = model.mean_change(holdout.obs, holdout.action)
    scaled = (change - (holdout.next_obs - holdout.obs)) / model.target_std[:-1]
    windows = [
        rows.start + offset
        for rows in data.holdout.episode_slices()
        for offset in range(0, rows.stop - rows.start - max(HORIZONS), 50)
    ]
    span = torch.arange(max(HORIZONS), device=holdout.obs.device)
    index = torch.tensor(windows, dtype=torch.long, device=holdout.obs.device)[:, None] + span
    obs = torch.cat([holdout.obs[index], holdout.next_obs[index[:, -1:]]], dim=1)
    drift = horizon_error(model, obs, holdout.action[index]) if windows else {}
    names = [*data.dataset.metadata.observation_names, "reward"]
    return {
        "holdout_episodes": len(data.holdout.episode_slices()),
        "holdout_mse": float(members.mean()),
        "elites_mse": float(scaled.square().mean()),
        "holdout_mse_by_dimension": dict(zip(names, members.mean(0).tolist(), strict=True)),
        "horizon_rmse": {str(horizon): error for horizon, error in drift.items()},
    }


MODEL_BASED: dict[str, Callable[..., Mopo]] = {
    "mopo": Mopo,
    "mbpo": Mopo,
    "morel": Morel,
    "mabe": Mabe,
    "combo": Combo,
    "augwm": AugWm,
    "augwm-actuators": ActuatorAugWm,
    "augwm-mabe": MabeAugWm,
    "rma": Rma,
}


def make_algorithm(
    settings: MopoConfig, real: Tensor, model: DynamicsEnsemble, terminated: TerminationRule, seed: int
) -> Mopo:
    """The algorithm that the settings are of."""
    return MODEL_BASED[settings.name](settings, real, model, terminated, seed)


LEARNERS: dict[str, Callable[..., Learner]] = {
    "bc": Bc,
    "td3-bc": Td3Bc,
    "iql": Iql,
    "awac": Awac,
    "awbc": Awbc,
    "cql": Cql,
    "edac": Edac,
    "sac-n": Edac,
    "brac-v": Brac,
}


def make_model_free(settings: ModelFreeConfig, log: Tensor, obs_dim: int, act_dim: int, seed: int) -> ModelFree:
    """The model-free algorithm that the settings are of."""
    return ModelFree(settings, LEARNERS[settings.name], log, obs_dim, act_dim, seed)


def train_policy(
    config: TrainConfig,
    settings: Settings,
    algorithm: Algorithm,
    environment: Environment | OpenTask,
    evaluate: Callable[[], dict[str, float]] = dict,
    world: Perturbation = NOMINAL,
    name: str = "policy",
    watch: Watch | None = None,
) -> None:
    """Train, evaluate and checkpoint the policy in the run's folder.

    Args:
        config: settings of the run.
        settings: the algorithm's.
        algorithm: untrained.
        environment: where the policy is evaluated.
        evaluate: figures of an evaluation beside the return in the environment.
        world: the environment's world in which it is evaluated.
        name: what the file of the finished policy is called.
        watch: looks on, and may stop the run.
    """
    folder = config.output
    final, part = folder / f"{name}.safetensors", folder / f"{name}.part.safetensors"
    if config.resume and final.is_file():
        return
    if config.resume and part.is_file():
        algorithm.load_state_dict(load_checkpoint(part))
    with (
        MetricsLog(folder, "policy", algorithm.updates) as log,
        progress_bar(settings.name, settings.updates, "updates") as move,
    ):
        note = ""
        move(algorithm.updates)
        while not algorithm.finished:
            figures = algorithm.train_epoch()
            epoch = -(-algorithm.updates // settings.steps_per_epoch)
            due = epoch % config.evaluate_every == 0 or algorithm.finished
            if due:
                figures |= evaluate()
                if config.evaluation_episodes:
                    figures |= evaluated(config, settings, algorithm, environment, world)
                    note = f"return {figures['return']:,.0f}"
            log.write(algorithm.updates, figures)
            move(algorithm.updates, note)
            if due and watch is not None:
                watch(algorithm, figures)
            if isinstance(algorithm, OnlineSac) and epoch % algorithm.config.snapshot_every == 0:
                save_checkpoint(snapshot_path(folder, algorithm.steps), algorithm.sac.state_dict())
            if epoch % config.checkpoint_every == 0 and not algorithm.finished:
                save_checkpoint(part, algorithm.state_dict())
    if isinstance(algorithm, OnlineSac) and algorithm.config.keep_replay:
        place = f"perturbations={config.suite} world={config.world} " * (config.world is not None)
        source = f"surefoot train algorithm=sac dataset.env={environment.name} {place}seed={config.seed}, the replay"
        save_npz(algorithm.log(environment, source), folder / "replay.npz")
    if isinstance(algorithm, Rma):
        save_checkpoint(folder / "adaptation.safetensors", algorithm.adaptation.state_dict())
    save_checkpoint(final, algorithm.policy.state_dict())
    part.unlink(missing_ok=True)


def evaluated(
    config: TrainConfig, settings: Settings, algorithm: Algorithm, task: Environment | OpenTask, world: Perturbation
) -> dict[str, float]:
    """The deterministic policy's mean return, with D4RL's score, and in a task with goals the share of successes."""
    episodes, seed = config.evaluation_episodes, config.seed
    if not isinstance(task, OpenTask):
        mean_return = simulator_return(algorithm.act_nominal, task, episodes, seed, world=world)
        reference = task.config.d4rl if world == NOMINAL else None
        return {"return": mean_return} | ({} if reference is None else {"d4rl_score": reference.score(mean_return)})
    assert isinstance(settings, OnlineConfig), "nothing else learns in tasks of gymnasium"

    def act(obs: np.ndarray) -> np.ndarray:
        return algorithm.act_nominal(torch.from_numpy(obs).float()).cpu().numpy()

    return judge(act, task, episodes, seed, settings.episode_steps)


def snapshot_path(folder: Path, steps: int) -> Path:
    """Where a run in the simulator keeps its policy after so many control steps."""
    return folder / "snapshots" / f"{steps}.safetensors"


def snapshot_steps(folder: Path) -> list[int]:
    """The control steps after which a run kept its policy, in order; none where it learned from a log."""
    return sorted(int(path.stem) for path in (folder / "snapshots").glob("*.safetensors"))


def run(config: TrainConfig, watch: Watch | None = None) -> Path:
    """Do one training run, or what is left of it; returns its folder.

    Args:
        config: settings.
        watch: looks on, and may stop the run.
    """
    torch.set_num_threads(config.threads)
    check_source(config)
    if isinstance(config.algorithm, OnlineSacConfig):
        run_online(config, config.algorithm, watch)
    elif isinstance(config.algorithm, DemonstratedConfig):
        run_with_demonstrations(config, config.algorithm, watch)
    else:
        run_offline(config, config.algorithm, watch)
    return config.output


def check_source(config: TrainConfig) -> None:
    """Refuse an algorithm without what it learns from.

    Raises:
        UserError: it needs a log and has none, or the other way round.
    """
    name, online = config.algorithm.name, isinstance(config.algorithm, OnlineSacConfig)
    if online and config.dataset.path is not None:
        raise UserError(
            f"algorithm={name} learns in the simulator and reads no log; add dataset=online dataset.env=NAME."
        )
    if online and config.world_model is not None:
        raise UserError(f"algorithm={name} learns in the simulator itself; leave world_model out.")
    if not online and config.dataset.path is None:
        raise UserError(f"algorithm={name} learns from a log; choose a data set, or algorithm=sac with dataset=online.")
    if not online and (config.suite or config.world):
        raise UserError(
            f"algorithm={name} learns from a log, whatever the world; perturbations=SUITE world=NAME go with "
            "algorithm=sac."
        )
    if name == "none" and config.start_from is not None:
        raise UserError("algorithm=none trains no policy that could start from an earlier one; leave start_from out.")
    if isinstance(config.algorithm, DemonstratedConfig) and config.world_model is not None:
        raise UserError(f"algorithm={name} learns in the simulator itself; leave world_model out.")
    if config.prior is not None and not isinstance(config.algorithm, NppacConfig):
        raise UserError(f"algorithm={name} is held to no prior of demonstrations; leave prior out.")
    if isinstance(config.algorithm, (ModelFreeConfig, DemonstratedConfig)) and config.start_from is not None:
        raise UserError(f"algorithm={name} starts from no earlier policy; leave start_from out.")


def run_online(config: TrainConfig, settings: OnlineSacConfig, watch: Watch | None) -> None:
    """Train in the simulator."""
    environment = find_task(config.dataset.env or "")
    config, robot = with_robot(config, environment)
    check_fit(
        f"the environment '{environment.name}'",
        environment.obs_dim,
        environment.act_dim,
        environment.control_dt,
        robot,
    )
    world = training_world(config, settings, environment)
    if config.world is not None:
        note = world.model_dump(mode="json", exclude_defaults=True)
        config = config.model_copy(update={"perturbation": note})
    start = earlier_policy(config, (settings.name,), settings.sac, environment.name)
    prepare_folder(config)
    write_json(config.output / "run.json", run_record(config, {"sha256": "", "env": environment.name, "rows": 0}))
    robots = robots_of(environment, settings.robots, config.seed, world)
    kind = OnlineSynther if isinstance(settings, OnlineSyntherConfig) else OnlineSac
    algorithm = kind(settings, robots, config.seed, config.device, start)
    train_policy(config, settings, algorithm, environment, world=world, watch=watch)


def run_with_demonstrations(
    config: TrainConfig, settings: NppacConfig | SacBcConfig | OnlineAwacConfig, watch: Watch | None
) -> None:
    """Train in the simulator that demonstrations are from, where the algorithm has one with their prior."""
    folder, dataset = config.output, open_log(config.dataset)
    task = find_task(dataset.metadata.env)
    if isinstance(settings, NppacConfig) and config.prior is None:
        prior_by_default = (
            PriorEnsembleConfig(name="mle", members=1) if settings.name == "brac-online" else SparseGpConfig()
        )
        config = config.model_copy(update={"prior": prior_by_default})
    config, robot = with_robot(config, task)
    check_fit("the data set", dataset.obs_dim, dataset.act_dim, dataset.metadata.control_dt, robot)
    prepare_folder(config)
    described = {"sha256": dataset.metadata.sha256, "env": task.name, "rows": len(dataset)}
    write_json(folder / "run.json", run_record(config, described))
    demonstrations = Batch.unpack(packed(dataset, robot).to(config.device), dataset.obs_dim, dataset.act_dim)
    robots = robots_of(task, settings.robots, config.seed)
    algorithm: Demonstrated
    if isinstance(settings, NppacConfig):
        prior = train_prior(config, demonstrations)
        algorithm = Nppac(settings, robots, prior, demonstrations, config.seed, config.device)
    elif isinstance(settings, SacBcConfig):
        algorithm = SacBc(settings, robots, demonstrations, config.seed, config.device)
    else:
        algorithm = OnlineAwac(settings, robots, demonstrations, config.seed, config.device)
    pretrain(config, algorithm)
    train_policy(config, settings, algorithm, task, watch=watch)


def train_prior(config: TrainConfig, demonstrations: Batch) -> Prior:
    """Fit the prior, or take up the one that the run's folder has."""
    path = config.output / "prior.safetensors"
    settings = config.prior
    assert settings is not None, "a run with demonstrations has a prior"
    if config.resume and path.is_file():
        return load_prior(path)[1]
    with progress_bar(f"prior, {settings.name}", settings.steps, "steps") as move:
        prior = fit_prior(settings, demonstrations.obs, demonstrations.action, config.seed, move)
    save_prior(path, settings, prior)
    return prior


def pretrain(config: TrainConfig, algorithm: Demonstrated) -> None:
    """Learn from the demonstrations before the robots move, or take up the one that the run's folder has."""
    path = config.output / "pretrained.safetensors"
    if config.resume and path.is_file():
        algorithm.load_pretrained(load_checkpoint(path))
        return
    with progress_bar("pretraining", algorithm.pretrain_steps, "steps") as move:
        algorithm.pretrain(move)
    save_checkpoint(path, algorithm.pretrained())


def training_world(config: TrainConfig, settings: OnlineSacConfig, environment: Environment | OpenTask) -> Perturbation:
    """Return the world to learn in, the original one where none is chosen.

    Raises:
        UserError: there is no such world, it changes during the episode, it has noise or delays, or the task has none.
    """
    if isinstance(environment, OpenTask):
        if config.suite or config.world:
            raise UserError(f"there are no changed worlds of '{environment.name}'; leave perturbations and world out.")
        return NOMINAL
    place = name_world(config.suite, config.world, None, settings.episode_steps, environment)
    world = find_world(place, environment=environment)
    steady_world(environment, world)
    return world


def earlier_policy(config: TrainConfig, of: tuple[str, ...], sac: SacConfig, env: str) -> dict[str, Any] | None:
    """Return the learner of the run that this one starts from, as that left it; None where it starts from none.

    Args:
        config: settings of this run.
        of: the algorithms that it may be of.
        sac: the learner's settings.
        env: the environment.

    Raises:
        UserError: there is no such run, it is not finished, or it is of another algorithm, environment or size.
    """
    folder = config.start_from
    if folder is None:
        return None
    record = read_json(folder / "run.json")
    before = record["config"]["algorithm"]
    if before["name"] not in of or record["dataset"]["env"] != env:
        raise UserError(f"{folder} is no run of algorithm={' or '.join(of)} in {env}; start from one.")
    if before["sac"]["hidden"] != sac.hidden:
        raise UserError(
            f"the networks in {folder} have hidden layers of {before['sac']['hidden']}; give "
            f"algorithm.sac.hidden={before['sac']['hidden']}."
        )
    return load_checkpoint(folder / "policy.safetensors")


def run_offline(config: TrainConfig, settings: MopoConfig | ModelFreeConfig | NoAlgorithm, watch: Watch | None) -> None:
    """Train on the log: in a world model that is fitted to it, or without one."""
    source, folder = config.dataset, config.output
    dataset = open_log(source)
    synthetic = open_synthetic(source, dataset)
    environment = make_environment(dataset.metadata.env)
    config, robot = with_robot(with_ensemble(config), environment)
    data = Data(dataset, robot, config.ensemble.holdout_fraction, config.device, synthetic, source.real_fraction)
    start = None
    if isinstance(settings, MopoConfig):
        kin = ("mopo", "mabe") if isinstance(settings, MabeConfig) else ("mopo",)
        start = earlier_policy(config, kin, settings.sac, environment.name)
    prepare_folder(config)
    described = {"sha256": dataset.metadata.sha256, "env": environment.name, "rows": len(dataset)}
    if synthetic is not None:
        made_by = synthetic.metadata.synthetic
        described["synthetic"] = {"sha256": synthetic.metadata.sha256, "rows": len(synthetic), "made_by": made_by}
    write_json(folder / "run.json", run_record(config, described))
    log = data.learned()
    if isinstance(settings, ModelFreeConfig):
        if config.world_model is not None:
            take_world_model(config.world_model, data, folder)
        model_free = make_model_free(settings, log, dataset.obs_dim, dataset.act_dim, config.seed)
        train_policy(config, settings, model_free, environment, watch=watch)
        return
    if config.world_model is None:
        model = train_world_model(config, data, folder)
    else:
        model = take_world_model(config.world_model, data, folder)
    if isinstance(settings, NoAlgorithm):
        return
    rule = TERMINATIONS[environment.config.termination]
    algorithm = make_algorithm(settings, log, model.requires_grad_(False), rule, config.seed)
    if start is not None:
        algorithm.start_from(start)
    holdout = data.batch(data.holdout).obs
    train_policy(
        config,
        settings,
        algorithm,
        environment,
        lambda: {"model_reward": model_return(algorithm, holdout, config.seed)},
        watch=watch,
    )


def take_world_model(earlier: Path, data: Data, folder: Path) -> DynamicsEnsemble:
    """Copy the world model of an earlier run into this run's folder and return it.

    Raises:
        UserError: there is none, or it was fitted on other data.
    """
    model = load_world_model(earlier, data)
    for name in ("world_model.safetensors", "world_model.json"):
        shutil.copyfile(earlier / name, folder / name)
    return model


def with_ensemble(config: TrainConfig) -> TrainConfig:
    """Return the settings with the ensemble's own, where the world model of an earlier run is taken."""
    if config.world_model is None:
        return config
    earlier = read_json(config.world_model / "run.json")["config"]["ensemble"]
    return config.model_copy(update={"ensemble": EnsembleConfig(**earlier)})


def with_robot(config: TrainConfig, environment: Environment | OpenTask) -> tuple[TrainConfig, RobotDescription]:
    """Return the settings with a robot, where none is chosen the environment's own, and that robot."""
    robot = config.robot or robot_of(environment)
    return config.model_copy(update={"robot": robot}), robot


def prepare_folder(config: TrainConfig) -> None:
    """Make sure that a run neither overwrites another nor resumes one with other settings.

    Raises:
        UserError: either would happen.
    """
    folder = config.output
    record = folder / "run.json"
    if not record.is_file():
        return
    if not config.resume:
        raise UserError(f"{folder} holds a run already; give another output=FOLDER, or resume=true to go on with it.")
    before, now = read_json(record)["config"], config_record(config)
    changed = sorted(key for key in now if now[key] != before.get(key))
    if changed:
        raise UserError(
            f"{folder} was started with other settings ({', '.join(changed)}); resume with the same, or give another "
            "output=FOLDER."
        )


def config_record(config: TrainConfig) -> dict[str, Any]:
    """The settings that the result is a function of."""
    free = {"output", "resume", "checkpoint_every", "evaluate_every", "evaluation_episodes", "threads"}
    return config.model_dump(mode="json", exclude=free)


def run_record(config: TrainConfig, dataset: dict[str, Any]) -> dict[str, Any]:
    """What run.json says: settings, data, commit and versions."""
    versions = {name: importlib.metadata.version(name) for name in ("surefoot", "torch", "numpy", "mujoco")}
    return {
        "config": config_record(config),
        "dataset": dataset,
        "commit": commit(),
        "versions": versions,
    }


def commit() -> str | None:
    """The commit that this runs from, or None outside a checkout."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def load_world_model(folder: Path, data: Data) -> DynamicsEnsemble:
    """Read the world model of an earlier run.

    Raises:
        UserError: there is none, or it was fitted on other data.
    """
    record = read_json(folder / "run.json")
    if record["dataset"]["sha256"] != data.dataset.metadata.sha256:
        raise UserError(f"the world model in {folder} was learned from other data; train one from this data set.")
    model = new_model(EnsembleConfig(**record["config"]["ensemble"]), data)
    model.load_state_dict(load_checkpoint(folder / "world_model.safetensors"))
    return model


def describe(folder: Path) -> str:
    """Tell a person the last return in MuJoCo of a finished run, and D4RL's score of it; empty where there is none."""
    evaluated = [figures for figures in read_metrics(folder / "metrics.jsonl") if "return" in figures]
    if not evaluated:
        return ""
    last, task = evaluated[-1], find_task(read_json(folder / "run.json")["dataset"]["env"])
    score = ""
    if "d4rl_score" in last and isinstance(task, Environment):
        score = f", D4RL score {last['d4rl_score']:.1f} ({task.d4rl_note})"
    return f"return in {task.name} after {last['step']:,} updates: {last['return']:,.0f}{score}\n"


@command("train")
def main(config: DictConfig) -> None:
    """The command line's entry."""
    folder = run(TrainConfig.model_validate(OmegaConf.to_container(config, resolve=True, throw_on_missing=True)))
    print(describe(folder), end="")
    print(f"the run is in {folder}; next: surefoot export run={folder}")
