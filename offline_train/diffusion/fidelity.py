"""How true synthetic transitions are: `python -m offline_train.diffusion.fidelity FOLDER FILE...`.

Every FILE, drawn by surefoot upsample, is compared with the log that it was modelled on: column by column, column
against column, and transition by transition with the simulator, set to the same state under the same action (Lu et al.
2023, table 2 and figure 5); besides by how near it comes to where the log's episodes begin and, where it was asked for
by its temporal-difference errors, by these. The table is printed, and FOLDER gets fidelity.json, fidelity.png and,
where models were sampled in three ways or more, steps.png.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats  # type: ignore[import-untyped]

from adapters.command import module_command
from adapters.datasets import TransitionDataset, load_dataset
from adapters.errors import UserError
from adapters.files import write_json
from offline_train.data import DatasetConfig, open_log
from offline_train.diffusion.conditions import ranks, td_errors
from offline_train.diffusion.fidelity_figure import fidelity_figure, steps_figure
from offline_train.finished_run import Run
from sim.environments import make_environment
from sim.oracle import true_step

# Rows of either side whose columns are compared, and rows that are compared one by one.
COLUMN_ROWS, SINGLE_ROWS = 50_000, 5_000
LOG_ITSELF = "the log itself"

TdRank = Callable[[TransitionDataset], float]
"""Mean rank of a data set's temporal-difference errors among those of the log."""


def marginal_score(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Mean over columns of 1 - the Kolmogorov-Smirnov statistic, the greatest gap of the distribution functions.

    Args:
        real: `(n, columns)`.
        synthetic: `(m, columns)`.
    """
    pairs = zip(real.T, synthetic.T, strict=True)
    return float(np.mean([1.0 - stats.ks_2samp(a, b, method="asymp").statistic for a, b in pairs]))


def correlation_score(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Mean over pairs of columns of 1 - |r - r'| / 2, their Pearson correlations in `(n, columns)`, `(m, columns)`."""
    gap = np.abs(np.corrcoef(real.T) - np.corrcoef(synthetic.T))
    return float(np.mean(1.0 - gap[np.triu_indices(len(gap), 1)] / 2.0))


def scores(rows: np.ndarray, real: np.ndarray, generator: np.random.Generator) -> dict[str, float]:
    """Both scores of packed rows `(n, columns)` beside real ones `(m, columns)`, over columns that change in these.

    Args:
        rows: what is judged.
        real: what it is compared with.
        generator: draws the rows that are compared.
    """
    changing = np.ptp(real, axis=0) > 0
    parts = [part[generator.permutation(len(part))[:COLUMN_ROWS]][:, changing] for part in (real, rows)]
    return {"marginal": marginal_score(*parts), "correlation": correlation_score(*parts)}


def nearest_distance(rows: np.ndarray, log: np.ndarray, chunk: int = 100, *, of_log: bool = False) -> np.ndarray:
    """Euclidean distance of each row `(n, columns)` to the nearest of the log `(m, columns)`: `(n,)`.

    Args:
        rows: what is looked at.
        log: what it is compared with.
        chunk: rows at once.
        of_log: whether the rows are the log's own, so that the nearest other one is asked for.
    """
    targets, rank = torch.from_numpy(log), 2 if of_log else 1
    parts = torch.from_numpy(rows).split(chunk)
    nearest = [torch.cdist(part, targets).topk(rank, 1, largest=False).values[:, -1] for part in parts]
    return torch.cat(nearest).numpy()


class Judged(NamedTuple):
    """What the simulator says of transitions.

    Attributes:
        kept: those of the rows that were asked for in which the simulator itself did not break down, `(n,)`.
        error: mean squared error of next observation and reward, `(n,)`; each is in standard deviations of the log, so
            that fast joints do not drown the others.
        scaling: by least squares, how much of the simulator's change of state the transitions have: 1 at the original
            dynamics, z in a world that moves the state z times as much.
    """

    kept: np.ndarray
    error: np.ndarray
    scaling: float


def judge(dataset: TransitionDataset, index: np.ndarray, log: TransitionDataset) -> Judged:
    """Compare the rows at `index` `(rows,)` with what the simulator does in the same states under the same actions.

    Raises:
        UserError: the environment's observations do not tell the simulator's state.
    """
    true = true_step(make_environment(dataset.metadata.env), dataset.observations[index], dataset.actions[index])
    index, after, reward = (values[true.sound] for values in (index, true.next_obs, true.reward))
    obs = dataset.observations[index]
    spread = np.column_stack([log.next_observations, log.rewards]).std(0)
    said = np.column_stack([dataset.next_observations[index], dataset.rewards[index]])
    error = np.square((said - np.column_stack([after, reward])) / spread).mean(1)
    change, truly = ((to - obs) / spread[:-1] for to in (dataset.next_observations[index], after))
    return Judged(index, error, float((change * truly).sum() / np.square(truly).sum()))


def start_distance(dataset: TransitionDataset, log: TransitionDataset) -> float:
    """How far observations in which the log's episodes begin lie from the nearest observation of a data set: median.

    In standard deviations of the log. Episodes begin in few rows and often far from all others, at rest for example,
    so a model may leave them out unseen by the other figures; a policy that learned from its rows alone then does not
    know how to set off.
    """
    scale = np.where(np.ptp(log.observations, axis=0) > 0, log.observations.std(0), np.float32(1.0))
    starts = np.array([rows.start for rows in log.episode_slices()])[:SINGLE_ROWS]
    looked_at, found = log.observations[starts] / scale, dataset.observations / scale
    return float(np.median(nearest_distance(looked_at, found, of_log=dataset is log)))


def td_ranking(run: Run, log: TransitionDataset) -> TdRank:
    """Ranks by the critics of a run among the errors of the log, from 0 to 1; the log's own mean rank is 0.5.

    Raises:
        UserError: the run has no critics that could judge the log.
    """
    known = np.sort(td_errors(run, log))
    return lambda dataset: float(ranks(td_errors(run, dataset), known).mean())


def compare(
    name: str,
    dataset: TransitionDataset,
    log: TransitionDataset,
    generator: np.random.Generator,
    td_rank: TdRank | None = None,
) -> dict[str, Any]:
    """The figures of one data set beside the log, as JSON.

    Distances are in standard deviations of the log; `distance` and `error` are those of the same rows, without those,
    `left_out` in number, from which the simulator itself broke down.

    Args:
        name: of the data set.
        dataset: synthetic transitions.
        log: what they were modelled on.
        generator: draws the rows that are compared.
        td_rank: of temporal-difference errors, where these are looked at.
    """
    real, rows = log.packed(), dataset.packed()
    changing = np.ptp(real, axis=0) > 0
    scale = real[:, changing].std(0)
    both = scores(rows, real, generator)
    real, rows = real[:, changing], rows[:, changing]
    single = generator.permutation(len(rows))[:SINGLE_ROWS]
    judged = judge(dataset, single, log)
    return {
        "name": name,
        "rows": len(rows),
        "reward": float(dataset.rewards.mean()),
        "scaling": judged.scaling,
        "starts": start_distance(dataset, log),
        "td_rank": None if td_rank is None else td_rank(dataset),
        **both,
        "left_out": len(single) - len(judged.kept),
        "distance": nearest_distance(rows[judged.kept] / scale, real / scale, of_log=dataset is log).tolist(),
        "error": judged.error.tolist(),
        "made_by": dataset.metadata.synthetic,
    }


def itself(log: TransitionDataset, generator: np.random.Generator, td_rank: TdRank | None) -> dict[str, Any]:
    """What a perfect model reaches.

    The scores are those of one half of the log's rows beside the other; distances are to the nearest other row of all
    of them, for the nearest of fewer rows is further away.
    """
    halves = np.array_split(generator.permutation(log.packed()), 2)
    return compare(LOG_ITSELF, log, log, generator, td_rank) | scores(halves[0], halves[1], generator)


def read(paths: Sequence[Path]) -> tuple[TransitionDataset, dict[str, TransitionDataset]]:
    """The log, and by folder the synthetic data drawn from models of it.

    Raises:
        UserError: a file is real, or they are of several logs.
    """
    found: dict[str, TransitionDataset] = {}
    for path in paths:
        dataset = load_dataset(path)
        if dataset.metadata.synthetic is None:
            raise UserError(f"{path} is a real log; give files that surefoot upsample has drawn.")
        found[path.parent.name] = dataset
    origins = [dataset.metadata.synthetic or {} for dataset in found.values()]
    log = open_log(DatasetConfig(**origins[0]["config"]["dataset"]))
    if any(origin["source_sha256"] != log.metadata.sha256 for origin in origins):
        raise UserError("the files were not all modelled on one log, as it is now; compare those of one log at a time.")
    return log, found


def asking_run(found: Mapping[str, TransitionDataset]) -> Run | None:
    """The run by whose critics transitions were asked for (condition=td-error), the first one's; None if none were.

    Raises:
        UserError: it is gone.
    """
    for dataset in found.values():
        condition = (dataset.metadata.synthetic or {}).get("config", {}).get("condition") or {}
        if condition.get("run") is not None:
            return Run(Path(condition["run"]))
    return None


def report(paths: Sequence[Path], seed: int = 0) -> list[dict[str, Any]]:
    """The figures of every file, after those of the log itself."""
    log, found = read(paths)
    run = asking_run(found)
    td_rank = None if run is None else td_ranking(run, log)
    rows = [itself(log, np.random.default_rng(seed), td_rank)]
    return rows + [compare(name, dataset, log, np.random.default_rng(seed), td_rank) for name, dataset in found.items()]


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a data set's figures: quantiles in place of every row's."""
    quantiles = (0.1, 0.5, 0.9)
    kept = {name: np.quantile(row[name], quantiles).tolist() for name in ("distance", "error")}
    return {**row, **kept, "mean_error": float(np.mean(row["error"])), "quantiles": quantiles}


def fidelity_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Lay the figures out for the terminal."""
    ranked = rows[0]["td_rank"] is not None
    table = Table(
        caption="distance: to the nearest transition of the log; error: mean square against the simulator, both in "
        "standard deviations of the log, median (90 %); starts: distance of the log's first observations of episodes "
        "to the nearest one drawn; scaling: of the simulator's change of state; reward: mean"
        + ("; TD error: mean rank among the log's" if ranked else ""),
    )
    titles = ["", "marginal", "correlation", "distance", "starts", "error", "scaling", "reward"]
    for title in titles + ["TD error"] * ranked:
        table.add_column(title, justify="right" if title else "left")
    for row in map(summary, rows):
        distance, error = (f"{row[name][1]:.4g} ({row[name][2]:.4g})" for name in ("distance", "error"))
        table.add_row(
            row["name"],
            f"{row['marginal']:.3f}",
            f"{row['correlation']:.3f}",
            distance,
            f"{row['starts']:.2f}",
            error,
            f"{row['scaling']:.3f}",
            f"{row['reward']:.2f}",
            *([f"{row['td_rank']:.2f}"] if ranked else []),
        )
    return table


@module_command
def main(words: list[str]) -> None:
    """Write the report and print its table."""
    if len(words) < 2:
        raise UserError(
            "give a folder for the report and the files to compare, as in python -m offline_train.diffusion.fidelity "
            "results/synther FILE FILE."
        )
    folder, rows = Path(words[0]), report([Path(path) for path in words[1:]])
    write_json(folder / "fidelity.json", [summary(row) for row in rows])
    fidelity_figure(folder / "fidelity.png", rows)
    steps_figure(folder / "steps.png", rows)
    Console(width=120, highlight=False).print(fidelity_table(rows))


if __name__ == "__main__":
    sys.exit(main())
