"""`surefoot bench name=algorithms`: the returns of every offline algorithm on one log, several training seeds of each.

Every training is a `surefoot train` of its own, in a folder of its own, so that an interrupted comparison goes on where
it stopped and a finished one only has its figures read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from adapters.datasets import load_dataset
from adapters.errors import UserError
from adapters.files import atomic_path
from adapters.progress import MoveBar
from offline_train.algorithms.registry import LEARNERS
from offline_train.commands import Piece, run_all, run_once
from offline_train.metrics import evaluations
from sim.charts import COLOURS
from sim.intervals import mean_interval

SHIPPED = "package://adapters/datasets/data"

CAPTION = (
    "return: mean over the training seeds with Student's 95 % interval, after the last update, of deterministic "
    "episodes\nnormalised: 100 (return - random) / (expert - random) with D4RL's reference returns, which are of "
    "older versions of the environment\npublished: normalised, on D4RL's log of this name, with the papers' budgets"
)


class Log(BaseModel):
    """A log to learn from, a file of configs/benchmark.

    Attributes:
        name: by which it is chosen.
        collect: settings of `surefoot collect` that make it; None for a shipped one, a file of configs/dataset.
        algorithms: settings of some algorithms for this log alone.
        published: normalised scores that papers report on D4RL's log of this name.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    collect: list[str] | None
    algorithms: dict[str, list[str]]
    published: dict[str, float]


class Budget(BaseModel):
    """How much every algorithm may learn, a file of configs/budget.

    Attributes:
        name: by which it is chosen.
        train: settings of every training.
        world_model: settings of the world model's.
        algorithms: settings of each algorithm's; those that are named here take part.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    train: list[str]
    world_model: list[str]
    algorithms: dict[str, list[str]] = Field(min_length=1)


@dataclass(frozen=True)
class Comparison:
    """Which trainings belong to a table.

    Attributes:
        log: what is learned from.
        budget: how much.
        algorithms: names of those that take part.
        seeds: a training of every algorithm for each.
        folder: for the log and the runs, each in a folder of its own.
    """

    log: Log
    budget: Budget
    algorithms: Sequence[str]
    seeds: Sequence[int]
    folder: Path

    def run(self, algorithm: str, seed: int) -> Path:
        """The folder of a training."""
        return self.folder / f"{algorithm}-{seed}"

    @property
    def log_path(self) -> Path:
        """Where a log that is not shipped is kept."""
        return self.folder / f"{self.log.name}.npz"

    @property
    def dataset(self) -> list[str]:
        """Settings of a training that choose the log."""
        if self.log.collect is None:
            return [f"dataset={self.log.name}"]
        return ["dataset=file", f"dataset.path={self.log_path}", f"dataset.name={self.log.name}"]

    def piece(self, algorithm: str, seed: int) -> Piece:
        """A training."""
        return Piece(self.run(algorithm, seed), self.train_command(algorithm, seed))

    def train_command(self, algorithm: str, seed: int) -> list[str]:
        """Words of the command line after `surefoot` that train an algorithm; `none` fits the world model alone."""
        learned = [*self.dataset, f"seed={seed}", f"output={self.run(algorithm, seed)}", *self.budget.train]
        if algorithm == "none":
            return ["train", "algorithm=none", *learned, *self.budget.world_model]
        if algorithm not in LEARNERS:
            learned.append(f"world_model={self.run('none', seed)}")
        own = [*self.budget.algorithms[algorithm], *self.log.algorithms.get(algorithm, [])]
        return ["train", f"algorithm={algorithm}", *learned, *own]


def compare(comparison: Comparison, workers: int, move: MoveBar) -> dict[str, Any]:
    """Do every training that is not done, and return the table as JSON.

    Args:
        comparison: which trainings.
        workers: how many side by side.
        move: moves a progress bar that counts trainings.

    Raises:
        UserError: an algorithm is none of the budget's, or a training fails.
    """
    known = comparison.budget.algorithms
    for name in comparison.algorithms:
        if name not in known:
            raise UserError(f"budget={comparison.budget.name} has no algorithm '{name}'; choose of {', '.join(known)}.")
    with_model = any(name not in LEARNERS for name in comparison.algorithms)
    models = [comparison.piece("none", seed) for seed in comparison.seeds if with_model]
    policies = [comparison.piece(name, seed) for name in comparison.algorithms for seed in comparison.seeds]
    move(0, total=len(models) + len(policies))
    if comparison.log.collect is not None:
        run_once(Piece(comparison.log_path, ["collect", *comparison.log.collect, f"output={comparison.log_path}"]))
    run_all(models, workers, move)
    run_all(policies, workers, move, len(models))
    return {
        "log": log_figures(comparison),
        "budget": comparison.budget.name,
        "seeds": [*comparison.seeds],
        "rows": [algorithm_figures(comparison, name) for name in comparison.algorithms],
    }


def log_figures(comparison: Comparison) -> dict[str, Any]:
    """Returns of the log's own episodes."""
    shipped = comparison.log.collect is None
    dataset = load_dataset(f"{SHIPPED}/{comparison.log.name}.npz" if shipped else comparison.log_path)
    returns = [float(dataset.rewards[rows].sum()) for rows in dataset.episode_slices()]
    return {
        "name": comparison.log.name,
        "env": dataset.metadata.env,
        "sha256": dataset.metadata.sha256,
        "transitions": len(dataset),
        "mean_return": float(np.mean(returns)),
        "best_return": max(returns),
    }


def algorithm_figures(comparison: Comparison, algorithm: str) -> dict[str, Any]:
    """Returns of an algorithm's finished trainings, seed by seed."""
    last = [evaluations(comparison.run(algorithm, seed))[-1] for seed in comparison.seeds]
    return {
        "algorithm": algorithm,
        "updates": last[0]["step"],
        "returns": [line["return"] for line in last],
        "scores": [line["d4rl_score"] for line in last if "d4rl_score" in line],
        "published": comparison.log.published.get(algorithm),
        "command": " ".join(["surefoot", *comparison.train_command(algorithm, comparison.seeds[0])]),
    }


def by_return(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table, that of the highest mean return first."""
    return sorted(report["rows"], key=lambda row: -float(np.mean(row["returns"])))


def algorithms_table(report: dict[str, Any]) -> Table:
    """Lay the returns out for the terminal, highest first, with Student intervals over training seeds."""
    log = report["log"]
    table = Table(
        title=f"{log['name']}: {log['transitions']:,} transitions; episodes return {log['mean_return']:,.0f} on "
        f"average and {log['best_return']:,.0f} at most",
        caption=CAPTION,
        caption_justify="left",
    )
    for title in ("algorithm", "updates", "return", "by seed", "normalised", "published"):
        table.add_column(title, justify="left" if title == "algorithm" else "right")
    for row in by_return(report):
        found = mean_interval(np.array(row["returns"]))
        span = "" if math.isnan(found.low) else f" ({found.low:,.0f} to {found.high:,.0f})"
        table.add_row(
            row["algorithm"],
            f"{row['updates']:,}",
            f"{found.point:,.0f}{span}",
            ", ".join(f"{value:,.0f}" for value in row["returns"]),
            f"{np.mean(row['scores']):.1f}" if row["scores"] else "",
            "" if row["published"] is None else f"{row['published']:.1f}",
        )
    return table


def algorithms_figure(report: dict[str, Any], path: Path) -> None:
    """Draw every training's return, the means, and the log's own mean and best return.

    Raises:
        UserError: the place cannot be written.
    """
    rows, log = by_return(report)[::-1], report["log"]
    whole = Figure(figsize=(7, 1.2 + 0.28 * len(rows)), dpi=130, layout="constrained")
    FigureCanvasAgg(whole)
    axis = whole.subplots()
    for name, colour in (("mean_return", COLOURS[0]), ("best_return", COLOURS[3])):
        axis.axvline(
            log[name], color=colour, linestyle="--", linewidth=1, label=f"{name.split('_')[0]} of the log's episodes"
        )
    for place, row in enumerate(rows):
        axis.barh(place, np.mean(row["returns"]), color=COLOURS[2], height=0.6)
        axis.plot(row["returns"], [place] * len(row["returns"]), "o", color="#222222", markersize=3)
    axis.set_yticks(range(len(rows)), [row["algorithm"] for row in rows])
    axis.set_xlabel(f"return, {log['name']}: mean (bar) and training seeds (dots)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right")
    with atomic_path(path) as draft:
        whole.savefig(draft, format="png")
