"""Validation reports of several training seeds, pooled: `python -m sim.seeds FOLDER` prints the tables of results/.

The folder holds a report for each algorithm and training seed, ALGORITHM-SEED.json, or ALGORITHM-SEED-PART.json where
the suites were validated in parts.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from adapters.command import module_command
from adapters.errors import UserError
from adapters.files import read_json
from sim.intervals import interval, paired_difference
from sim.scores import Column, World
from sim.validate import REGAIN

NAME = re.compile(r"(?P<algorithm>.+?)-(?P<seed>\d+)(?:-(?P<part>[a-z]+))?\.json")


def read_columns(folder: Path) -> dict[str, list[Column]]:
    """Return for each part the columns of every algorithm and context, over the training seeds in order.

    Raises:
        UserError: the folder holds no reports.
    """
    parts: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for path in sorted(folder.glob("*.json")):
        if found := NAME.fullmatch(path.name):
            algorithms = parts.setdefault(found["part"] or "", {})
            algorithms.setdefault(found["algorithm"], {})[int(found["seed"])] = read_json(path)
    if not parts:
        raise UserError(f"{folder} holds no reports named ALGORITHM-SEED.json; give a folder that does.")
    return {
        part: [
            Column(f"{algorithm} {context}", [reports[seed] for seed in sorted(reports)], context)
            for algorithm, reports in algorithms.items()
            for context in dict.fromkeys(cell["context"] for cell in next(iter(reports.values()))["cells"])
        ]
        for part, algorithms in parts.items()
    }


def seeds_table(columns: Sequence[Column]) -> Table:
    """Lay the interquartile mean scores of one part out, with each column's mean difference to every other below.

    A score's interval is a stratified bootstrap over seeds, a difference's is Student's t over the seeds' means.
    """
    yardstick = columns[0].reports[0]["yardstick_return"] or 1.0
    suites = columns[0].suites()
    table = Table()
    for title in ("", *suites):
        table.add_column(title)
    for column in columns:
        scores = [interval(column, column.worlds(suite), yardstick) for suite in suites]
        table.add_row(column.title, *(f"{s.point:.3f} ({s.low:.3f} to {s.high:.3f})" for s in scores))
    table.add_section()
    for place, a in enumerate(columns):
        for b in columns[:place]:
            pairs = [paired_difference(a, b, a.worlds(suite), yardstick) for suite in suites]
            texts = [
                f"{d.interval.point:+.3f} ({d.interval.low:+.3f} to {d.interval.high:+.3f}); "
                + ", ".join(f"{value:+.3f}" for value in d.by_seed)
                for d in pairs
            ]
            table.add_row(f"{a.title} - {b.title}", *texts)
    return table


def regained(column: Column) -> dict[World, np.ndarray]:
    """What a policy regains after a change in mid-run, of what it reaches where the change is there from the start.

    Both are mean rewards a step from 100 steps after the change on (`settled_reward`).

    Returns:
        For every world that changes once, in mid-run, and is there with that change from the start as well: the share,
        `(seeds,)`.
    """

    def change(cell: dict[str, Any]) -> str:
        return json.dumps(
            {k: v for k, v in cell["perturbation"].items() if k not in ("name", "at_step")}, sort_keys=True
        )

    # Reports of earlier versions do not tell.
    told = {world: cell for world, cell in column.cells[0].items() if "settled_reward" in cell}
    whole = {change(cell): world for world, cell in told.items() if not cell["perturbation"].get("at_step")}
    late = [world for world, cell in told.items() if cell["perturbation"].get("at_step")]
    return {
        world: np.array([cells[world]["settled_reward"] / cells[other]["settled_reward"] for cells in column.cells])
        for world in late
        if (other := whole.get(change(column.cells[0][world])))
    }


def hardest(columns: Sequence[Column], baseline: Column, share: float = 0.25) -> list[list[World]]:
    """For every seed the worlds of all columns in which the baseline's mean return is lowest, `share` of them.

    They are chosen by the other seeds: chosen by the same returns that are then compared, the baseline's would be low
    by luck, too. One seed alone has no others.
    """
    common = [world for world in baseline.worlds() if all(world in column.cells[0] for column in columns)]
    means = baseline.returns(common).mean(2)
    others = means if len(means) == 1 else (means.sum(0) - means) / (len(means) - 1)
    count = max(round(share * len(common)), 1)
    return [[common[index] for index in order[:count]] for order in np.argsort(others, axis=1)]


def regained_table(columns: Sequence[Column]) -> Table | None:
    """Lay out what each column regains after changes in mid-run, mean over the seeds; None where no world has both."""
    shares = {column.title: regained(column) for column in columns}
    worlds = next(iter(shares.values()))
    if not worlds:
        return None
    table = Table(
        title=f"reward from {REGAIN} steps after a change, of what is reached where it is there from the start"
    )
    for title in ("", *shares):
        table.add_column(title)
    for world in worlds:
        table.add_row(world.name, *(f"{found[world].mean():.2f}" for found in shares.values()))
    table.add_row("median", *(f"{np.median([v.mean() for v in found.values()]):.2f}" for found in shares.values()))
    return table


def hardest_table(columns: Sequence[Column], baseline: Column) -> Table:
    """Lay out the mean scores over the quarter of the worlds in which the baseline is worst, and each one's by seed."""
    worlds, yardstick = hardest(columns, baseline), baseline.reports[0]["yardstick_return"] or 1.0
    counts = Counter(world.suite for chosen in worlds for world in chosen)
    names = ", ".join(f"{count / len(worlds):.3g} of {suite}" for suite, count in counts.items())
    by_others = "by its other seeds" if len(worlds) > 1 else "by the same returns"
    table = Table(
        "",
        "mean score",
        "by seed",
        title=f"the quarter of the worlds where '{baseline.title}' is worst, {by_others}: {names}",
    )
    for column in columns:
        by_seed = np.array([column.returns(chosen)[seed].mean() for seed, chosen in enumerate(worlds)]) / yardstick
        table.add_row(column.title, f"{by_seed.mean():.3f}", ", ".join(f"{value:.3f}" for value in by_seed))
    return table


@module_command
def main(words: list[str]) -> None:
    """Print the tables of each part."""
    console = Console(width=200, highlight=False)
    if len(words) not in (1, 2):
        raise UserError(
            "give one folder of validation reports, and the column to take for the baseline where it is not the "
            "first, as in python -m sim.seeds results/NAME/validation 'mopo nominal'."
        )
    for columns in read_columns(Path(words[0])).values():
        baseline = next((column for column in columns if column.title == words[-1]), columns[0])
        if len(words) == 2 and baseline.title != words[1]:
            titles = ", ".join(f"'{column.title}'" for column in columns)
            raise UserError(f"there is no column '{words[1]}'; choose one of {titles}.")
        for table in (seeds_table(columns), hardest_table(columns, baseline), regained_table(columns)):
            if table is not None:
                console.print(table)


if __name__ == "__main__":
    sys.exit(main())
