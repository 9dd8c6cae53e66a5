"""`surefoot tune`: Bayesian optimisation of an algorithm's settings, each trial a run of `surefoot train`.

A Gaussian process over the settings, whole, real and categorical ones together, is fitted to the scores so far, and the
next trial is where it expects most improvement (Optuna's GPSampler); Lu et al. 2022, "Revisiting Design Choices in
Offline Model-Based RL", look for ensemble size, horizon, penalty and its weight in this way. Scores are returns in
MuJoCo, or, where there is no environment, what fitted Q evaluation or model rollouts say (offline_evaluation.py).

What is proposed is a function of the seed and the trials that have ended, and a run is one of its settings, so a study
that was killed and goes on comes out as if it had not been.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import hydra
import numpy as np
import optuna
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table

from adapters.command import command
from adapters.errors import UserError
from adapters.files import write_json
from adapters.progress import MoveBar, progress_bar
from offline_train.algorithms.base import Algorithm
from offline_train.algorithms.mopo import MopoConfig
from offline_train.data import Data, open_log
from offline_train.fqe import FqeConfig
from offline_train.offline_evaluation import OfflineEvaluation, RolloutConfig
from offline_train.search_space import Space, as_overrides, read_space
from offline_train.settings import NoAlgorithm, TrainConfig
from offline_train.train import run, with_robot
from offline_train.world_model import load_world_model
from sim.environments import make_environment
from sim.terminations import TERMINATIONS

# The share of a trial's updates in which it is not stopped: what learns slowly at first may end far ahead.
UNJUDGED = 1 / 3

Score = Callable[[Algorithm, dict[str, float]], float]
"""What an algorithm in training is worth, from itself and the figures of its evaluation; more is better."""


class TuneConfig(BaseModel):
    """Settings of a study beside those of `surefoot train`; configs/tune.yaml says what each means."""

    model_config = ConfigDict(extra="forbid")

    trials: int = Field(ge=1)
    space: list[str]
    score: Literal["simulator", "fqe", "model"]
    startup: int = Field(ge=1)
    prune: bool
    judge: Path | None
    fqe: FqeConfig
    rollouts: RolloutConfig


def propose(space: Space, ended: list[FrozenTrial], startup: int, seed: int) -> dict[str, Any]:
    """Choose the settings of the next trial.

    A trial that was stopped counts with its last score, which Optuna's own loop would not tell the sampler. The sampler
    is made anew, with a seed of its own, so that nothing depends on what this process has drawn before.

    Args:
        space: the distribution of every setting.
        ended: the trials so far.
        startup: trials at random before the Gaussian process is asked.
        seed: of the study.
    """
    own = int(np.random.SeedSequence((seed, len(ended))).generate_state(1)[0])
    sampler = optuna.samplers.GPSampler(seed=own, n_startup_trials=startup)
    scored = optuna.create_study(direction="maximize", sampler=sampler)
    scored.add_trials(
        optuna.create_trial(params=trial.params, distributions=space, value=trial.value)
        for trial in ended
        if trial.value is not None
    )
    return scored.ask(space).params


class Study:
    """A study in its folder: what was asked, what has ended, and what to try next.

    Args:
        config: its settings.
        base: those of `surefoot train`, which every trial shares; its `output` is the study's folder.
        given: the overrides that `base` differs from the defaults by.

    Raises:
        UserError: the settings make no sense together, or the folder holds a study and may not be gone on with.
    """

    def __init__(self, config: TuneConfig, base: TrainConfig, given: list[str]) -> None:
        self.config, self.base, self.given, self.folder = config, base, given, base.output
        self.space = read_space(config.space)
        self._check()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        place = self.folder / "study.db"
        if place.is_file() and not base.resume:
            raise UserError(
                f"{self.folder} holds a study already; give another output=FOLDER, or resume=true to go on."
            )
        self.optuna = optuna.create_study(
            storage=f"sqlite:///{place}",
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(config.startup, n_warmup_steps=math.ceil(UNJUDGED * self.budget)),
        )
        now = config.model_dump(mode="json", exclude={"trials"}) | {"given": given, "seed": base.seed}
        before = self.optuna.user_attrs.get("settings", now)
        if before != now:
            changed = ", ".join(sorted(key for key in now if now[key] != before[key]))
            raise UserError(
                f"{self.folder} was started with other settings ({changed}); resume with the same, or give another "
                "output=FOLDER."
            )
        self.optuna.set_user_attr("settings", now)

    def _check(self) -> None:
        """Refuse what would fail in the first trial, or have no effect."""
        config, base = self.config, self.base
        if isinstance(base.algorithm, NoAlgorithm):
            raise UserError("algorithm=none trains no policy that could be scored; choose another.")
        if config.score == "simulator" and not base.evaluation_episodes:
            raise UserError("score=simulator takes evaluations in MuJoCo; give evaluation_episodes=5, say.")
        if config.score != "simulator" and base.dataset.path is None:
            raise UserError(f"score={config.score} takes a log; choose a data set, or score=simulator.")
        fixed = base.world_model is not None or not isinstance(base.algorithm, MopoConfig)
        if fixed and (keys := [key for key in self.space if key.startswith("ensemble.")]):
            raise UserError(f"no world model is trained here, so {keys[0]} changes nothing; leave it out of the space.")
        self.settings(propose(self.space, [], config.startup, base.seed))

    @property
    def ended(self) -> list[FrozenTrial]:
        """The trials that have ended with a score or were stopped for it, in order."""
        return self.optuna.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))

    def settings(self, chosen: dict[str, Any]) -> TrainConfig:
        """What a trial with these chosen settings is run with, but for its folder and its world model.

        Raises:
            UserError: a setting is unknown or has a value that it does not take.
        """
        composed = hydra.compose("train", [*self.given, *as_overrides(chosen)])
        return TrainConfig.model_validate(OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))

    def next_trial(self) -> optuna.Trial:
        """Begin the next trial, or begin anew, with its scores so far, what was running when the study was killed."""
        for cut in self.optuna.get_trials(states=(TrialState.RUNNING,)):
            self.optuna.tell(cut.number, state=TrialState.FAIL)
            again = {**cut.user_attrs, "before": cut.number}
            self.optuna.enqueue_trial(again["chosen"], user_attrs=again)
        if not self.optuna.get_trials(states=(TrialState.WAITING,)):
            ended = self.ended
            chosen = propose(self.space, ended, self.config.startup, self.base.seed)
            self.optuna.enqueue_trial(chosen, user_attrs={"chosen": chosen, "index": len(ended)})
        trial = self.optuna.ask(self.space)
        if "before" in trial.user_attrs:
            for step, value in self.scores(trial.user_attrs["before"]).items():
                trial.report(value, step)
        return trial

    def scores(self, number: int) -> dict[int, float]:
        """The scores that a trial has so far, by the updates after which it had them."""
        return self.optuna.trials[number].intermediate_values

    def run_trial(self, trial: optuna.Trial, score: Score, move: MoveBar) -> None:
        """Train what the trial's settings ask for, and stop as soon as its scores are behind those of others.

        A score that is no number stops it as well.
        """
        index = trial.user_attrs["index"]
        settings = self.settings(trial.user_attrs["chosen"])
        changes: dict[str, Any] = {"output": self.folder / "trials" / f"{index:03d}", "resume": True}
        changes["world_model"] = self.world_model(settings)
        if self.config.score != "simulator":
            changes["evaluation_episodes"] = 0
        trial.set_user_attr("run", str(changes["output"]))
        trial.set_user_attr("command", self.command(trial.params, settings, changes["world_model"]))
        known, done = self.scores(trial.number), index * self.budget

        def watch(algorithm: Algorithm, figures: dict[str, float]) -> None:
            step = algorithm.updates
            if step not in known:
                value = score(algorithm, figures)
                if not math.isfinite(value):
                    raise optuna.TrialPruned
                trial.report(value, step)
            move(done + step, self.note())
            if self.config.prune and not algorithm.finished and trial.should_prune():
                raise optuna.TrialPruned

        move(done, self.note())
        try:
            run(settings.model_copy(update=changes), watch)
        except optuna.TrialPruned:
            self.optuna.tell(trial, state=TrialState.PRUNED)
        else:
            scores = self.scores(trial.number)
            self.optuna.tell(trial, scores[max(scores)])

    @property
    def budget(self) -> int:
        """Gradient steps of a trial that is not stopped."""
        assert not isinstance(self.base.algorithm, NoAlgorithm)
        return self.base.algorithm.updates

    def note(self) -> str:
        """What the progress bar says beside the bar."""
        whole = self.optuna.get_trials(states=(TrialState.COMPLETE,))
        best = max((trial.value for trial in whole if trial.value is not None), default=None)
        return f"trial {len(self.ended) + 1} of {self.config.trials}" + ("" if best is None else f", best {best:,.1f}")

    def world_model(self, settings: TrainConfig) -> Path | None:
        """The folder of a trial's world model, which trials of the same ensemble share; None where it has none."""
        if settings.world_model is not None or not isinstance(settings.algorithm, MopoConfig):
            return settings.world_model
        ensemble = settings.ensemble.model_dump_json()
        name = f"members-{settings.ensemble.members}-{hashlib.sha256(ensemble.encode()).hexdigest()[:8]}"
        return fit_world_model(settings, self.folder / "world_models" / name)

    def command(self, chosen: dict[str, Any], settings: TrainConfig, world_model: Path | None) -> str:
        """The command that trains a trial's policy again."""
        overrides = [*self.given, *as_overrides(chosen)]
        if world_model != settings.world_model:
            overrides.append(f"world_model={world_model}")
        return shlex.join(["surefoot", "train", *overrides])

    def report(self) -> dict[str, Any]:
        """What trials.json says."""
        states = {TrialState.FAIL: "failed"}
        trials = [
            {
                "trial": trial.user_attrs["index"],
                "state": states.get(trial.state, trial.state.name.lower()),
                "settings": trial.user_attrs["chosen"],
                "score": trial.value,
                "scores": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
                "seed": self.base.seed,
                "run": trial.user_attrs.get("run"),
                "command": trial.user_attrs.get("command"),
            }
            for trial in self.optuna.trials
        ]
        complete = [trial for trial in trials if trial["state"] == "complete"]
        best = max(complete, key=lambda trial: trial["score"])["trial"] if complete else None
        return {"settings": self.optuna.user_attrs["settings"], "best": best, "trials": trials}


def fit_world_model(settings: TrainConfig, folder: Path, seed: int | None = None) -> Path:
    """Train a world model alone, or what is left of it; returns its folder."""
    changes: dict[str, Any] = {"algorithm": NoAlgorithm(name="none"), "output": folder, "resume": True}
    changes |= {"world_model": None, "start_from": None, "seed": settings.seed if seed is None else seed}
    return run(settings.model_copy(update=changes))


def make_score(config: TuneConfig, base: TrainConfig) -> Score:
    """What trials are scored by; a world model that judges them is none that they are trained in."""
    if config.score == "simulator":
        return lambda _, figures: figures["return"]
    dataset = open_log(base.dataset)
    environment = make_environment(dataset.metadata.env)
    data = Data(dataset, with_robot(base, environment)[1], base.ensemble.holdout_fraction, "cpu")
    model = None
    if config.score == "model":
        judge = config.judge or fit_world_model(base, base.output / "judge", base.seed + 1)
        model = load_world_model(judge, data).requires_grad_(False)
    rule = TERMINATIONS[environment.config.termination]
    evaluation = OfflineEvaluation(data, model, rule, config.fqe, config.rollouts, base.seed)
    if config.score == "fqe":
        return lambda algorithm, _: float(evaluation.fitted_values(algorithm.act_nominal).mean())
    return lambda algorithm, _: float(evaluation.model_returns(evaluation.imagined(algorithm.act_nominal)).mean())


def tune(config: TuneConfig, base: TrainConfig, given: list[str]) -> dict[str, Any]:
    """Do a study, or what is left of it; returns what trials.json says.

    Args:
        config: settings of the study.
        base: settings of `surefoot train` that every trial shares; its `output` is the study's folder.
        given: the overrides that `base` differs from the defaults by.

    Raises:
        UserError: the settings make no sense, or the folder is another study's.
    """
    torch.set_num_threads(base.threads)
    with alone(base.output):
        study = Study(config, base, given)
        score = make_score(config, base)
        with progress_bar("study", config.trials * study.budget, "updates") as move:
            while len(study.ended) < config.trials:
                study.run_trial(study.next_trial(), score, move)
                write_json(base.output / "trials.json", study.report())
        return study.report()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second command out of the folder while the block runs.

    Raises:
        UserError: one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another surefoot tune is at work in {folder}; wait for it, or stop it.") from error
        yield


def table(report: dict[str, Any]) -> Table:
    """Lay the trials out in order, the best one in bold."""
    keys = dict.fromkeys(key for trial in report["trials"] for key in trial["settings"])
    shown = Table(title=f"trials, scored by {report['settings']['score']}", title_justify="left")
    for title in ("trial", "state", *keys, "updates", "score"):
        shown.add_column(title.rpartition(".")[2], justify="right")
    for trial in report["trials"]:
        chosen = [text.partition("=")[2] for text in as_overrides(trial["settings"])]
        updates = max(map(int, trial["scores"]), default=0)
        score = "" if trial["score"] is None else f"{trial['score']:,.1f}"
        best = trial["trial"] == report["best"] and trial["state"] == "complete"
        cells = [str(trial["trial"]), trial["state"], *chosen, f"{updates:,}", score]
        shown.add_row(*cells, style="bold" if best else None)
    return shown


def split(config: DictConfig, overrides: list[str]) -> tuple[TuneConfig, TrainConfig, list[str]]:
    """Part a study's own settings from those of `surefoot train`, and leave the overrides that a trial shares."""
    whole: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    own = {key: whole.pop(key) for key in TuneConfig.model_fields}
    parsed = OverridesParser.create().parse_overrides(overrides)
    left_out = {*own, "output", "resume"}
    shared = [o.input_line or "" for o in parsed if o.key_or_group.partition(".")[0] not in left_out]
    return TuneConfig.model_validate(own), TrainConfig.model_validate(whole), shared


@command("tune")
def main(config: DictConfig) -> None:
    """The command line's entry."""
    settings, base, given = split(config, list(HydraConfig.get().overrides.task))
    report = tune(settings, base, given)
    console = Console(highlight=False)
    console.print(table(report))
    if report["best"] is not None:
        best = next(t for t in report["trials"] if t["trial"] == report["best"] and t["state"] == "complete")
        console.print(f"the best is in {best['run']}; to train it again, with other seeds or for longer:", markup=False)
        console.print(best["command"], markup=False, soft_wrap=True)
    console.print(f"written to {base.output / 'trials.json'}", markup=False)
