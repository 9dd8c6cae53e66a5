"""`surefoot train`: from a log to a world model and a policy, in a folder that can be resumed and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from adapters.command import command
from adapters.datasets import save_npz
from adapters.errors import UserError
from adapters.files import read_json, read_jsonl
from adapters.progress import progress_bar
from deploy.bundle import RobotDescription
from offline_train.algorithms.awac_online import OnlineAwac, OnlineAwacConfig
from offline_train.algorithms.base import Algorithm, Settings
from offline_train.algorithms.demonstrated import Demonstrated, DemonstratedConfig
from offline_train.algorithms.mabe import MabeConfig
from offline_train.algorithms.model_free import ModelFreeConfig
from offline_train.algorithms.mopo import MopoConfig
from offline_train.algorithms.nppac import Nppac, NppacConfig
from offline_train.algorithms.online import OnlineConfig
from offline_train.algorithms.registry import make_algorithm, make_model_free
from offline_train.algorithms.rma import Rma, RmaConfig
from offline_train.algorithms.sac_bc import SacBc, SacBcConfig
from offline_train.algorithms.sac_online import OnlineSac, OnlineSacConfig
from offline_train.algorithms.synther_online import OnlineSynther, OnlineSyntherConfig
from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.data import Data, check_fit, open_log, open_synthetic, packed
from offline_train.evaluate import model_return, simulator_return
from offline_train.metrics import MetricsLog
from offline_train.networks import training_precision, warn_of_slow_bf16
from offline_train.priors.base import Prior
from offline_train.priors.ensemble import EnsembleConfig as PriorEnsembleConfig
from offline_train.priors.fit import fit_prior, load_prior, save_prior
from offline_train.priors.sparse_gp import SparseGpConfig
from offline_train.replay import Batch
from offline_train.settings import NoAlgorithm, TrainConfig, prepare_folder
from offline_train.world_model import (
    take_world_model,
    train_world_model,
    with_ensemble,
)
from sim.environments import Environment, make_environment
from sim.gymnasium_tasks import OpenTask, find_task, judge, robot_of, robots_of
from sim.mujoco_plant import find_world, name_world
from sim.perturb import NOMINAL, Perturbation
from sim.terminations import TERMINATIONS
from sim.worlds import steady_world

Watch = Callable[[Algorithm, dict[str, float]], None]
# Added to the seed of evaluations where the training draws starts, too.
UNSEEN = 1_000_000


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
            with training_precision(config.device, config.bf16):
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
        command = f"surefoot train algorithm={settings.name} dataset.env={environment.name}"
        place = f"perturbations={config.suite} world={config.world} " * (config.world is not None)
        source = f"{command} {place}seed={config.seed}, the replay"
        save_npz(algorithm.log(environment, source), folder / "replay.npz")
    if isinstance(algorithm, Rma):
        save_checkpoint(folder / "adaptation.safetensors", algorithm.adaptation.state_dict())
    save_checkpoint(final, algorithm.policy.state_dict())
    part.unlink(missing_ok=True)


def evaluated(
    config: TrainConfig, settings: Settings, algorithm: Algorithm, task: Environment | OpenTask, world: Perturbation
) -> dict[str, float]:
    """The deterministic policy's mean return, with D4RL's score, and in a task with goals the share of successes."""
    # Robots that learn in the simulator draw their starts from the run's own seed.
    episodes = config.evaluation_episodes
    seed = config.seed + (UNSEEN if isinstance(settings, OnlineConfig) else 0)
    if not isinstance(task, OpenTask):
        mean_return = simulator_return(algorithm.act_nominal, task, episodes, seed, world=world)
        reference = task.config.d4rl if world == NOMINAL else None
        return {"return": mean_return} | ({} if reference is None else {"d4rl_score": reference.score(mean_return)})
    assert isinstance(settings, OnlineConfig), "nothing else learns in tasks of gymnasium"

    def act(obs: np.ndarray) -> np.ndarray:
        return algorithm.act_nominal(torch.from_numpy(obs).float()).numpy()

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
    if config.bf16 or (isinstance(config.algorithm, OnlineSyntherConfig) and config.algorithm.diffusion.bf16):
        warn_of_slow_bf16(config.device)
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
    if isinstance(config.algorithm, RmaConfig) and config.dataset.synthetic is not None:
        raise UserError("algorithm=rma learns from stretches of a log, and synthetic rows have none; leave them out.")
    if isinstance(config.algorithm, DemonstratedConfig) and config.dataset.synthetic is not None:
        raise UserError(f"algorithm={name} learns from demonstrations as they are; leave dataset.synthetic out.")
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
    start = earlier_policy(config, (settings.name,), settings, environment.name)
    prepare_folder(config, {"sha256": "", "env": environment.name, "rows": 0})
    robots = robots_of(environment, settings.robots, config.seed, world)
    kind = OnlineSynther if isinstance(settings, OnlineSyntherConfig) else OnlineSac
    algorithm = kind(settings, robots, config.seed, config.device, start)
    train_policy(config, settings, algorithm, environment, world=world, watch=watch)


def run_with_demonstrations(
    config: TrainConfig, settings: NppacConfig | SacBcConfig | OnlineAwacConfig, watch: Watch | None
) -> None:
    """Train in the simulator that demonstrations are from, where the algorithm has one with their prior."""
    dataset = open_log(config.dataset)
    task = find_task(dataset.metadata.env)
    if isinstance(settings, NppacConfig) and config.prior is None:
        prior_by_default = (
            PriorEnsembleConfig(name="mle", members=1) if settings.name == "brac-online" else SparseGpConfig()
        )
        config = config.model_copy(update={"prior": prior_by_default})
    config, robot = with_robot(config, task)
    check_fit("the data set", dataset.obs_dim, dataset.act_dim, dataset.metadata.control_dt, robot)
    prepare_folder(config, {"sha256": dataset.metadata.sha256, "env": task.name, "rows": len(dataset)})
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


def earlier_policy(
    config: TrainConfig, of: tuple[str, ...], settings: MopoConfig | OnlineSacConfig, env: str
) -> dict[str, Any] | None:
    """Return the learner of the run that this one starts from, as that left it; None where it starts from none.

    Args:
        config: settings of this run.
        of: the algorithms that it may be of.
        settings: of the algorithm.
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
    if (critics := before.get("critics")) != getattr(settings, "critics", None):
        raise UserError(f"the learner in {folder} has {critics} critics; give algorithm.critics={critics}.")
    for part in ("sac", "prior"):
        if hasattr(settings, part) and part in before and before[part]["hidden"] != getattr(settings, part).hidden:
            raise UserError(
                f"the networks of '{part}' in {folder} have hidden layers of {before[part]['hidden']}; give "
                f"algorithm.{part}.hidden={before[part]['hidden']}."
            )
    return load_checkpoint(folder / "policy.safetensors")


def run_offline(config: TrainConfig, settings: MopoConfig | ModelFreeConfig | NoAlgorithm, watch: Watch | None) -> None:
    """Train on the log: in a world model that is fitted to it, or without one."""
    source, folder = config.dataset, config.output
    dataset = open_log(source)
    synthetic = open_synthetic(source, dataset)
    environment = make_environment(dataset.metadata.env)
    config, robot = with_robot(with_ensemble(config), environment)
    data = Data(
        dataset,
        robot,
        config.ensemble.holdout_fraction,
        config.device,
        synthetic,
        source.real_fraction,
        source.beginnings,
    )
    start = None
    if isinstance(settings, MopoConfig):
        kin = ("mopo", "mabe") if isinstance(settings, MabeConfig) else ("mopo",)
        start = earlier_policy(config, kin, settings, environment.name)
        settings.context_spec(robot)  # refuses what the robot does not observe, before anything is trained
    described = {"sha256": dataset.metadata.sha256, "env": environment.name, "rows": len(dataset)}
    if synthetic is not None:
        made_by = synthetic.metadata.synthetic
        described["synthetic"] = {"sha256": synthetic.metadata.sha256, "rows": len(synthetic), "made_by": made_by}
    prepare_folder(config, described)
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


def with_robot(config: TrainConfig, environment: Environment | OpenTask) -> tuple[TrainConfig, RobotDescription]:
    """Return the settings with a robot, where none is chosen the environment's own, and that robot."""
    robot = config.robot or robot_of(environment)
    return config.model_copy(update={"robot": robot}), robot


def describe(folder: Path) -> str:
    """Tell a person the last return in MuJoCo of a finished run, and D4RL's score of it; empty where there is none."""
    evaluated = [figures for figures in read_jsonl(folder / "metrics.jsonl") if "return" in figures]
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
