"""`surefoot select`: which of several finished runs to take, for a user who has logs and no environment.

Every run's policy is asked for what it is worth by fitted Q evaluation and by model rollouts (offline_evaluation.py),
and the run with the best mean of the two ranks is taken. Intervals are over first states of episodes: they tell what
other starts would change, and nothing of how wrong an estimate is. How far to trust the choice is therefore read from
three signs: whether two estimates of different make agree, whether the chosen policy is clearly ahead of the next one
from these starts, and whether it keeps to where the log speaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from adapters.command import command
from adapters.errors import UserError
from adapters.files import read_json, sha256, write_json
from adapters.progress import progress_bar
from offline_train.adapt import MOST_DISAGREEMENT
from offline_train.evaluate import simulator_return
from offline_train.finished_run import Run
from offline_train.fqe import FqeConfig
from offline_train.offline_evaluation import Act, OfflineEvaluation, RolloutConfig
from offline_train.world_model import load_world_model
from sim.environments import Environment, make_environment
from sim.terminations import TERMINATIONS

BOOTSTRAP_SAMPLES = 2_000


class SelectConfig(BaseModel):
    """Settings of a selection; configs/select.yaml says what each means."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    runs: list[Path] = Field(min_length=2)
    world_model: Path | None
    output: Path
    seed: int
    fqe: FqeConfig
    rollouts: RolloutConfig
    truth: bool
    truth_episodes: int = Field(ge=1)
    threads: int = Field(ge=1)
    resume: bool


class Estimates(NamedTuple):
    """What is said of one run.

    Attributes:
        fqe: discounted returns by fitted Q evaluation, by first state of the log.
        rollouts: returns of model rollouts, by held-out first state; None without a world model.
        disagreement: the members' disagreement along them, as a multiple of that on the held-out log; likewise.
        truth: mean return in MuJoCo; None where it was not asked for.
    """

    fqe: list[float]
    rollouts: list[float] | None
    disagreement: float | None
    truth: float | None


class Choice(NamedTuple):
    """Which run is taken, how far to trust that (`good`, `fair`, `poor`), and why, in sentences."""

    run: int
    trust: str
    reasons: list[str]


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of `(runs, starts)` values by their means, `(runs,)`, 1 for the highest."""
    return stats.rankdata(-values.mean(1))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of `(runs,)` and `(runs,)`; 0 where one of them tells no run from another."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The bootstrap's 95 % percentile interval of the mean of values `(starts,)`."""
    picks = np.random.default_rng(seed).integers(len(values), size=(BOOTSTRAP_SAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def choose(names: list[str], fqe: np.ndarray, rollouts: np.ndarray | None, disagreement: list[float] | None) -> Choice:
    """Take the run with the best mean rank, the better one by fitted Q evaluation where two are equal.

    Args:
        names: of the runs.
        fqe: `(runs, starts)`.
        rollouts: `(runs, held-out starts)`; None without a world model.
        disagreement: of each run's rollouts; likewise.
    """
    by_fqe = ranks(fqe)
    if rollouts is None or disagreement is None:
        index = int(by_fqe.argmin())
        ahead = _lead("fitted Q evaluation", names, fqe, index)
        alone = "There is no world model to ask as well; give one (world_model=RUN) for a second opinion."
        return Choice(index, "poor", [ahead.sentence, alone])
    by_rollouts = ranks(rollouts)
    index = int(np.lexsort((by_fqe, by_fqe + by_rollouts))[0])
    leads = [_lead("fitted Q evaluation", names, fqe, index), _lead("the model rollouts", names, rollouts, index)]
    reasons = [lead.sentence for lead in leads]
    reasons.append(f"The two rank the runs with a correlation of {rank_correlation(by_fqe, by_rollouts):.2f}.")
    near = disagreement[index] <= MOST_DISAGREEMENT
    reasons.append(
        f"Along its rollouts the members disagree {disagreement[index]:.1f} times as much as on the held-out log"
        + ("." if near else ": it goes where the log says little.")
    )
    if near and all(lead.first for lead in leads):
        return Choice(index, "good" if all(lead.clear for lead in leads) else "fair", reasons)
    return Choice(index, "fair" if near and any(lead.first for lead in leads) else "poor", reasons)


class _Lead(NamedTuple):
    """Whether a run is first, and clear of the next one, in one estimate; and the sentence that says so."""

    first: bool
    clear: bool
    sentence: str


def _lead(estimate: str, names: list[str], values: np.ndarray, index: int) -> _Lead:
    """Compare a run with the best of the others, start by start."""
    means = values.mean(1)
    other = max((k for k in range(len(names)) if k != index), key=lambda k: means[k])
    low, high = interval(values[index] - values[other])
    first = bool(means[index] > means[other])
    how = f"{means[index] - means[other]:+,.1f} (95 % {low:+,.1f} to {high:+,.1f})"
    place = "first" if first else "not first"
    return _Lead(first, low > 0, f"By {estimate} {names[index]} is {place}: {how} against {names[other]}.")


def judged_by(truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """How well scores `(runs,)` choose, where the true returns `(runs,)` are known.

    Returns:
        Spearman's rank correlation, and the regret of taking the highest score: the best true return minus that of the
        run taken, in return and as a share of what lies between the best and the worst run.
    """
    regret, span = float(truth.max() - truth[scores.argmax()]), float(np.ptp(truth))
    return {
        "rank_correlation": rank_correlation(scores, truth),
        "regret": regret,
        "regret_share": regret / span if span else 0.0,
    }


def select(config: SelectConfig) -> dict[str, Any]:
    """Compare the runs; returns what select.json says.

    Raises:
        UserError: a run is not finished, learned in the simulator or from another log than the first, the world model
            is of another log, or the folder holds another selection.
    """
    torch.set_num_threads(config.threads)
    records = [_record(folder) for folder in config.runs]
    for folder, record in zip(config.runs, records, strict=True):
        if record["dataset"]["sha256"] != records[0]["dataset"]["sha256"]:
            raise UserError(
                f"{folder} learned from another log than {config.runs[0]}; policies can be compared by one log only."
            )
    environment = make_environment(records[0]["dataset"]["env"])
    data = Run(config.runs[0]).data
    assert data is not None, "a run that learned from a log has it"
    judge = world_model(config)
    model = None if judge is None else load_world_model(judge, data).requires_grad_(False)
    rule = TERMINATIONS[environment.config.termination]
    evaluation = OfflineEvaluation(data, model, rule, config.fqe, config.rollouts, config.seed)
    settings = config.model_dump(mode="json", include={"seed", "fqe", "rollouts", "truth", "truth_episodes"})
    settings |= {"world_model": None if judge is None else str(judge), "log_sha256": data.dataset.metadata.sha256}
    estimates = estimate_all(config, settings, evaluation, environment)
    report = {"settings": settings} | summary([str(folder) for folder in config.runs], records, estimates)
    write_json(config.output / "select.json", report)
    return report


def _record(folder: Path) -> dict[str, Any]:
    """What run.json says of a run that learned from a log."""
    record: dict[str, Any] = read_json(folder / "run.json")
    if not record["dataset"]["sha256"]:
        raise UserError(f"{folder} learned in the simulator, so there is no log to compare it by; leave it out.")
    return record


def world_model(config: SelectConfig) -> Path | None:
    """The run whose world model is asked: the one given, else the first of the runs that has one; None without any."""
    having = (folder for folder in config.runs if (folder / "world_model.safetensors").is_file())
    return config.world_model or next(having, None)


def estimate_all(
    config: SelectConfig, settings: dict[str, Any], evaluation: OfflineEvaluation, environment: Environment
) -> list[Estimates]:
    """Ask everything of every run, or what is left to ask; kept in estimates.json as it comes.

    Raises:
        UserError: the folder holds a selection and `resume` is not set, or one with other settings.
    """
    place = config.output / "estimates.json"
    known: dict[str, Any] = {"settings": settings, "policies": {}}
    if place.is_file():
        if not config.resume:
            raise UserError(
                f"{config.output} holds a selection already; give another output=FOLDER, or resume=true to go on."
            )
        known = read_json(place)
        if known["settings"] != settings:
            raise UserError(f"{config.output} was started with other settings; give another output=FOLDER.")
    estimates = []
    with progress_bar("runs compared", config.fqe.updates * len(config.runs), "updates") as move:
        for index, folder in enumerate(config.runs):
            # By the policy itself, so that a run that was trained anew is asked anew.
            key = sha256(folder / "policy.safetensors")
            if key not in known["policies"]:

                def report(updates: int, done: int = index * config.fqe.updates, name: str = folder.name) -> None:
                    move(done + updates, name)

                known["policies"][key] = estimate(config, evaluation, environment, folder, report)._asdict()
                write_json(place, known)
            estimates.append(Estimates(**known["policies"][key]))
            move((index + 1) * config.fqe.updates, folder.name)
    return estimates


def estimate(
    config: SelectConfig,
    evaluation: OfflineEvaluation,
    environment: Environment,
    folder: Path,
    report: Callable[[int], None],
) -> Estimates:
    """Ask everything of one run."""
    act = policy(folder)
    imagined = None if evaluation.model is None else evaluation.imagined(act)
    return Estimates(
        evaluation.fitted_values(act, report).tolist(),
        None if imagined is None else evaluation.model_returns(imagined).tolist(),
        None if imagined is None else evaluation.relative_disagreement(imagined),
        simulator_return(act, environment, config.truth_episodes, config.seed) if config.truth else None,
    )


def policy(folder: Path) -> Act:
    """The deterministic policy of a finished run, as it acts at the original dynamics."""
    run = Run(folder)
    learner, algorithm = run.policy, run.algorithm

    @torch.no_grad()
    def act(obs: Tensor) -> Tensor:
        return learner(obs) if algorithm is None else algorithm.act_nominal(obs)

    return act


def summary(names: list[str], records: list[dict[str, Any]], estimates: list[Estimates]) -> dict[str, Any]:
    """What select.json says of the runs, as JSON."""
    columns = {"fqe": np.array([e.fqe for e in estimates])}
    disagreement = None
    if estimates[0].rollouts is not None:
        columns["rollouts"] = np.array([e.rollouts for e in estimates])
        disagreement = [e.disagreement for e in estimates if e.disagreement is not None]
    choice = choose(names, columns["fqe"], columns.get("rollouts"), disagreement)
    runs = []
    for index, (name, record, found) in enumerate(zip(names, records, estimates, strict=True)):
        settings = record["config"]["algorithm"]
        row = {
            "run": name,
            "algorithm": settings["name"],
            "updates": settings["updates"],
            "seed": record["config"]["seed"],
        }
        for column, values in columns.items():
            low, high = interval(values[index])
            row[column] = {"mean": float(values[index].mean()), "low": low, "high": high, "rank": ranks(values)[index]}
        runs.append(row | {"disagreement": found.disagreement, "truth": found.truth})
    report: dict[str, Any] = {
        "runs": runs,
        "chosen": names[choice.run],
        "trust": choice.trust,
        "reasons": choice.reasons,
    }
    if estimates[0].truth is not None:
        truth = np.array([e.truth for e in estimates])
        scores = {name: values.mean(1) for name, values in columns.items()}
        if len(columns) > 1:
            scores["mean_rank"] = -sum(ranks(values) for values in columns.values())
        report["judged_by_truth"] = {name: judged_by(truth, values) for name, values in scores.items()}
    return report


def table(report: dict[str, Any]) -> Table:
    """Lay the runs out, the best by fitted Q evaluation first."""
    runs = sorted(report["runs"], key=lambda row: row["fqe"]["rank"])
    steps, truth = report["settings"]["rollouts"]["steps"], report["settings"]["truth"]
    common = os.path.commonpath([Path(row["run"]).parent for row in runs])
    shown = Table(title="what the policies are worth, with 95 % intervals over first states", title_justify="left")
    shown.add_column("run")
    for title in ("fitted Q", f"model, {steps} steps", "disagree", *(["MuJoCo"] if truth else [])):
        shown.add_column(title, justify="right")
    for row in runs:
        cells = [os.path.relpath(row["run"], common), _cell(row["fqe"])]
        cells += [_cell(row["rollouts"]), f"{row['disagreement']:.2f}"] if "rollouts" in row else ["", ""]
        cells += [f"{row['truth']:,.0f}"] if truth else []
        shown.add_row(*cells, style="bold" if row["run"] == report["chosen"] else None)
    return shown


def _cell(column: dict[str, float]) -> str:
    """A mean with its interval."""
    return f"{column['mean']:,.0f} ({column['low']:,.0f} to {column['high']:,.0f})"


def verdict(report: dict[str, Any]) -> str:
    """The lines below the table: which run, how far to trust that, and how well it was chosen where that is known."""
    lines = [f"Take {report['chosen']}. Trust in that: {report['trust']}.", *report["reasons"]]
    lines.append("No estimate has seen the robot, and both can be wrong alike: watch the policy's first steps.")
    titles = {"fqe": "fitted Q evaluation", "rollouts": "model rollouts", "mean_rank": "mean rank of both"}
    for name, judged in report.get("judged_by_truth", {}).items():
        lines.append(
            f"Against MuJoCo, {titles[name]}: rank correlation {judged['rank_correlation']:.2f}, regret "
            f"{judged['regret']:,.0f}, {judged['regret_share']:.0%} of what lies between the best and the worst run."
        )
    return "\n".join(lines)


@command("select")
def main(config: DictConfig) -> None:
    """The command line's entry."""
    settings = SelectConfig.model_validate(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    report = select(settings)
    console = Console(highlight=False)
    console.print(table(report))
    console.print(verdict(report), markup=False)
    console.print(f"written to {settings.output / 'select.json'}", markup=False)
