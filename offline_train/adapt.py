"""`surefoot adapt`: an earlier run, corrected with a few minutes of log of the changed robot.

This is the second, slower tier of adaptation. On the robot the context tells within a second what one of a few numbers
can tell; a robot that is heavier, stiffer and worn at once needs another world model, and a policy learned in it.

1. Correction. The run's ensemble is fitted further, to the new log alone. With the old log mixed in, the ensemble would
   hold on to the original robot wherever the new log does not speak, and a policy would soon lean on that.
2. Fine-tuning. The run's algorithm goes on in the corrected model from where it ended, held to what the policy did
   (`anchor_loss` in sac.py): a few minutes of log tell little of what another way to move would do.
3. Judgement. There is no simulator of the changed robot to ask, so old and new policy are imagined in the corrected
   model, and the old one is kept unless the new one is clearly better there and stays where the log speaks (`judge`).

What each part gives: results/adapt.md.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from adapters.command import command
from adapters.datasets import TransitionDataset, load_dataset, save_npz
from adapters.errors import UserError
from adapters.files import read_json, write_json
from deploy.context import make_estimator
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.registry import make_algorithm
from offline_train.algorithms.sac import Sac
from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.data import Data, DatasetConfig, check_fit
from offline_train.evaluate import Imagined, imagine, usual_disagreement
from offline_train.export import export
from offline_train.finished_run import Run
from offline_train.graphs import DynamicsGraph
from offline_train.metrics import finite
from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.models.fit import fit_data, holdout_error
from offline_train.replay import draw
from offline_train.settings import TrainConfig, prepare_folder
from offline_train.train import train_policy
from offline_train.world_model import train_world_model
from sim.environments import make_environment
from sim.terminations import TERMINATIONS

# Steps of the log that are held out together; the segments stand for episodes, of which a robot's log may have one.
SEGMENT = 200
HOLDOUT_FRACTION = 0.2
LEAST_SEGMENTS = 5
# Epochs of 250 updates between two checkpoints of the fine-tuning.
CHECKPOINT_EVERY = 4

# Imagined rollouts of the judgement: from so many held-out states, in the world of every elite.
STARTS, HORIZON = 50, 200
# How much more the members may disagree where the new policy goes than on the held-out log.
MOST_DISAGREEMENT = 1.5

# The old context's part in a command or a motion is never taken for less, so that it can be divided by.
LEAST_CONTEXT = 1e-3


class AdaptConfig(BaseModel):
    """Settings of an adaptation; configs/adapt.yaml says what each means."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    run: Path = Field(description="folder of the finished run that is adapted")
    log: str | list[str] = Field(description="data set of the changed robot, or several that are joined")
    output: Path = Field(description="folder of the adapted run")
    seed: int = Field(description="of everything random")
    model_steps: int = Field(ge=1, description="gradient steps of the correction at most")
    updates: int = Field(ge=1, description="gradient steps of the fine-tuning")
    anchor: float = Field(ge=0, description="weight of the pull towards the old policy")
    threads: int = Field(ge=1, description="of torch")
    resume: bool = Field(description="go on where the adaptation in this folder stopped")


class Verdict(NamedTuple):
    """Whether the new policy is taken, why, and the figures behind it.

    Attributes:
        accepted: whether it is.
        reason: why, in words.
        gain: mean difference of the penalised reward a step, new minus old.
        least: what it is at least in the world of the elite that promises least, lower limit of its 95 % interval.
        disagreement: where the new policy goes, as a multiple of that on the held-out log.
    """

    accepted: bool
    reason: str
    gain: float
    least: float
    disagreement: float


def judge(old: Imagined, new: Imagined, usual: float) -> Verdict:
    """Take the new policy only where it is clearly better in the corrected model, and the model knows what it says.

    Each elite is one guess at what the robot is like, and the new policy has to be better in every one: with d the
    differences of the penalised reward over n start states, mean(d) - t(0.975, n - 1) s(d) / sqrt(n) > 0. Where no data
    is all members may be wrong alike, so that does not suffice: the members' disagreement along the new policy's
    rollouts must be at most `MOST_DISAGREEMENT` times that on held-out rows of the log.

    Args:
        old: rollouts of the old policy.
        new: of the new one, from the same states under the same noise.
        usual: mean disagreement on held-out rows of the log.
    """
    difference = (new.penalised - old.penalised).double()
    starts = difference.shape[1]
    reach = float(stats.t.ppf(0.975, starts - 1)) / math.sqrt(starts) * difference.std(1)
    gain, least = float(difference.mean()), float((difference.mean(1) - reach).min())
    ratio = float(new.disagreement.mean()) / usual
    if not math.isfinite(gain + least + ratio):
        reason = "the new policy's rollouts in the corrected model are not finite"
    elif ratio > MOST_DISAGREEMENT:
        reason = f"the new policy goes where the log says little: the members disagree {ratio:.1f} times as much there"
    elif least <= 0:
        reason = (
            f"the new policy is not clearly better in the corrected model: {gain:+.3f} a step, or only {least:+.3f}"
        )
    else:
        reason = f"in the corrected model it earns {gain:+.3f} a step more, at least {least:+.3f}, and keeps to the log"
    return Verdict(least > 0 and ratio <= MOST_DISAGREEMENT, reason, gain, least, ratio)


def in_segments(log: TransitionDataset, steps: int) -> TransitionDataset:
    """The same rows, every episode cut by timeouts after so many steps."""
    timeouts = log.timeouts.copy()
    for rows in log.episode_slices():
        timeouts[rows.start + steps - 1 : rows.stop : steps] = True
    arrays = log.arrays() | {"timeouts": timeouts & ~log.terminals}
    return TransitionDataset.from_arrays(arrays, log.metadata, "the log in segments")


def read_base(folder: Path) -> tuple[Run, Data, DynamicsEnsemble, MopoConfig]:
    """The run that is adapted, its log, its world model and its algorithm's settings.

    Raises:
        UserError: it is not finished, its log is gone, or it is of an algorithm that cannot be adapted.
    """
    record = read_json(folder / "run.json")["config"]
    if (name := record["algorithm"]["name"]) not in ("mopo", "augwm", "augwm-actuators"):
        raise UserError(
            f"{folder} is a run of algorithm={name}, and what can be adapted is one of mopo, augwm or augwm-actuators; "
            "choose another run."
        )
    base = Run(folder)
    settings = base.config.algorithm
    assert isinstance(settings, MopoConfig)
    assert base.data is not None and base.model is not None, "a run that learned from a log has both"
    if base.model.members < 2:
        raise UserError(
            f"the world model in {folder} has one member, and to judge a policy takes two; take another run."
        )
    return base, base.data, base.model, settings


def read_log(path: str | list[str], base: Run) -> TransitionDataset:
    """The changed robot's log, joined where there are several paths.

    Raises:
        UserError: it is of another robot, too short, or without rewards.
    """
    robot, name = base.robot, path if isinstance(path, str) else " and ".join(path)
    log = load_dataset(path, env=base.record["dataset"]["env"], control_dt=robot.control_dt)
    check_fit(name, log.obs_dim, log.act_dim, log.metadata.control_dt, robot)
    least = SEGMENT * LEAST_SEGMENTS
    if len(log) < least:
        raise UserError(
            f"{name} has {len(log):,} steps, {len(log) * robot.control_dt:.0f} s, and to adapt takes {least:,} at "
            "least; record a few minutes of the changed robot."
        )
    if not log.rewards.any():
        raise UserError(
            f"{name} has no rewards, and without them there is nothing to get better at; surefoot collect bag=PATH "
            "computes those of a known environment."
        )
    return log


def adapted_config(
    config: AdaptConfig, base: Run, settings: MopoConfig, log: TransitionDataset
) -> tuple[TrainConfig, MopoConfig]:
    """The settings of the adapted run, and among them its algorithm's: those of the base, but for what follows."""
    budget = {"updates": config.updates, "steps_per_epoch": 250, "rollout_starts": 2_000, "real_fraction": 0.1}
    tuning = settings.model_copy(update=budget)
    correction = {"max_steps": config.model_steps, "steps_per_epoch": 100, "learning_rate": 3e-4}
    note = config.model_dump(mode="json", include={"run", "log", "model_steps", "anchor"})
    changes: dict[str, Any] = {
        "algorithm": tuning,
        "ensemble": base.config.ensemble.model_copy(update=correction | {"holdout_fraction": HOLDOUT_FRACTION}),
        "dataset": DatasetConfig(name="log", path=str(config.output / "log.npz")),
        "adaptation": note | {"log_sha256": log.metadata.sha256},
        "world_model": None,
        "start_from": None,
        "checkpoint_every": CHECKPOINT_EVERY,
    }
    given = config.model_dump(include={"output", "seed", "threads", "resume"}) | {"device": "cpu"}
    return base.config.model_copy(update=changes | given), tuning


def inferred_context(base: Run, model: DynamicsEnsemble, settings: MopoConfig, log: TransitionDataset) -> Tensor | None:
    """What the old bundle would tell its policy on the changed robot, `(context_dim,)`; None where it tells nothing.

    It is the median of what the run's own estimator says along the first `SEGMENT * LEAST_SEGMENTS` steps of the log.
    """
    spec = settings.context_spec(base.robot)
    if spec is None:
        return None
    graph = DynamicsGraph(model, list(base.robot.action.low), list(base.robot.action.high))

    @torch.no_grad()
    def predict_change(obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        delta, std = graph(torch.tensor(obs, dtype=torch.float32), torch.tensor(action, dtype=torch.float32))
        return delta.numpy(), std.numpy()

    low, high, nominal = (np.array(v) for v in (spec.low, spec.high, spec.nominal))
    estimator = make_estimator(
        spec.estimator,
        predict_change=predict_change,
        low=low,
        high=high,
        nominal=nominal,
        act_dim=log.act_dim,
        settings=spec.settings,
        pushed=spec.pushed,
    )
    told = []
    for obs, action, next_obs in zip(log.observations, log.actions, log.next_observations, strict=True):
        estimator.update(obs, action, next_obs)
        told.append(estimator.context(obs, action))
        if len(told) == SEGMENT * LEAST_SEGMENTS:
            break
    return torch.from_numpy(np.median(told, axis=0)).float()


def make_nominal(sac: Sac, told: Tensor, nominal: Tensor, pushed: int = 0) -> None:
    """Let a policy that is told the nominal context c0 act as it did when it was told c.

    The changed robot is the new original one. Scalings and gains are multiples, so the networks, which read
    (c' - mean) / std, have to see c' c / c0 from now on: mean and std of their columns are divided by c / c0. Pushes
    add up, so that they have to see c' + c - c0: the mean of theirs is lowered by c - c0.

    Args:
        sac: the policy, changed in place.
        told: c, `(context_dim,)`.
        nominal: c0, likewise.
        pushed: how many of the context's numbers, the first ones, are pushes.
    """
    mean, std = (scale[-len(told) :] for scale in (sac.obs_mean, sac.obs_std))
    mean[:pushed] -= told[:pushed] - nominal[:pushed]
    part = (told[pushed:] / nominal[pushed:]).clamp(min=LEAST_CONTEXT)
    mean[pushed:] /= part
    std[pushed:] /= part


def model_errors(model: DynamicsEnsemble, changed: Data, original: Data) -> dict[str, float]:
    """The members' mean squared error on held-out rows of either robot, per normalised dimension."""

    def error(data: Data) -> float:
        obs, action, reward, next_obs, _ = data.batch(data.holdout)
        return float(holdout_error(model, fit_data(model, obs, action, next_obs, reward)).mean())

    return {"log": error(changed), "original": error(original)}


def imagined(algorithm: Mopo, data: Data, seed: int) -> Imagined:
    """Roll the algorithm's policy out from held-out states of the log."""
    holdout = data.batch(data.holdout).obs
    starts = draw(holdout, len(holdout), STARTS, torch.Generator().manual_seed(seed))
    act, rule = algorithm.act_nominal, algorithm.terminated
    settings = algorithm.config
    return imagine(
        algorithm.model,
        act,
        starts,
        steps=HORIZON,
        seed=seed,
        penalty=settings.penalty,
        penalty_weight=settings.penalty_weight,
        terminated=rule,
    )


class Stopwatch:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Say that a stage is over."""
        now = time.monotonic()
        self.seconds[stage], self._last = round(now - self._last, 1), now


def run(config: AdaptConfig) -> dict[str, Any]:
    """Adapt a run, or do what is left of it, into its folder.

    Returns:
        What adapt.json says.

    Raises:
        UserError: the run, the log or the output folder will not do.
    """
    torch.set_num_threads(config.threads)
    watch, folder = Stopwatch(), config.output
    base, original, model, settings = read_base(config.run)
    environment = make_environment(base.record["dataset"]["env"])
    log = read_log(config.log, base)
    data = Data(in_segments(log, SEGMENT), base.robot, HOLDOUT_FRACTION, "cpu")
    adapted, tuning = adapted_config(config, base, settings, log)
    described = {"sha256": data.dataset.metadata.sha256, "env": environment.name, "rows": len(log)}
    prepare_folder(adapted, described)
    save_npz(data.dataset, folder / "log.npz")
    told = inferred_context(base, model, settings, log)
    watch.lap("reading")

    errors = {"before": model_errors(model, data, original)}
    train_world_model(adapted, data, folder, earlier=model.requires_grad_(True))
    model.requires_grad_(False)
    errors["after"] = model_errors(model, data, original)
    watch.lap("correction")

    rule = TERMINATIONS[environment.config.termination]
    algorithm = make_algorithm(tuning, data.packed(data.train), model, rule, config.seed)
    if (spec := settings.context_spec(base.robot)) is not None and told is not None:
        make_nominal(base.sac, told, torch.tensor(spec.nominal), len(spec.pushed))
    algorithm.sac.train_on(base.sac.state_dict(), config.anchor)
    old = imagined(algorithm, data, config.seed)
    train_policy(adapted, tuning, algorithm, environment, name="fine_tuned")
    algorithm.sac.load_state_dict(load_checkpoint(folder / "fine_tuned.safetensors"))
    watch.lap("fine-tuning")

    new = imagined(algorithm, data, config.seed)
    verdict = judge(old, new, usual_disagreement(model, data.batch(data.holdout)))
    taken = algorithm.sac if verdict.accepted else base.sac
    save_checkpoint(folder / "policy.safetensors", taken.state_dict())
    watch.lap("judgement")
    report = {
        "log": {"steps": len(log), "seconds": len(log) * base.robot.control_dt, "sha256": log.metadata.sha256},
        "one_step_error": errors,
        "context_before": None if told is None else told.tolist(),
        "reward_per_step": {"before": finite(float(old.reward.mean())), "after": finite(float(new.reward.mean()))},
        "policy": "new" if verdict.accepted else "old",
        "verdict": told_verdict(verdict),
        "seconds": watch.seconds,
    }
    write_json(folder / "adapt.json", report)
    return report


def told_verdict(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON."""
    figures = {name: finite(getattr(verdict, name)) for name in ("gain", "least", "disagreement")}
    return verdict._asdict() | figures


def describe(report: dict[str, Any], folder: Path) -> str:
    """Tell a person what an adaptation came to."""
    before, after = report["one_step_error"].values()
    reward = ["not finite" if mean is None else f"{mean:.2f}" for mean in report["reward_per_step"].values()]
    outcome = "the new policy is taken" if report["policy"] == "new" else "the old policy is kept"
    return "\n".join(
        [
            f"one-step error on held-out rows of the log: {before['log']:.4f} before, {after['log']:.4f} corrected",
            f"one-step error on the original robot: {before['original']:.4f} before, {after['original']:.4f} corrected",
            f"expected reward a step in the corrected model: {reward[0]} old, {reward[1]} new",
            f"{outcome}: {report['verdict']['reason']}",
            "seconds: " + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in report["seconds"].items()),
            f"the run is in {folder}, its settings in run.json and these figures in adapt.json",
        ]
    )


@command("adapt")
def main(config: DictConfig) -> None:
    """The command line's entry."""
    settings = AdaptConfig.model_validate(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    report = run(settings)
    print(describe(report, settings.output))
    name = read_json(settings.output / "run.json")["config"]["algorithm"]["name"]
    bundle = settings.output / f"{name}.bundle"
    export(settings.output, bundle)
    print(f"bundle: {bundle}; next: surefoot inspect {bundle}")
