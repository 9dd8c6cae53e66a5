"""Validation reports of several training seeds, pooled: `python -m sim.seeds FOLDER` prints what results/README.md has.

The folder holds a report for each algorithm and training seed, ALGORITHM-SEED.json, or ALGORITHM-SEED-PART.json where
the suites were validated in parts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adapters.errors import UserError
from adapters.files import read_json
from sim.intervals import interval, paired_difference
from sim.scores import Column

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each part; return the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if len(given) != 1:
            raise UserError("give one folder of validation reports, as in python -m sim.seeds results/NAME/validation.")
        for columns in read_columns(Path(given[0])).values():
            Console(width=200, highlight=False).print(seeds_table(columns))
    except UserError as error:
        print(f"surefoot: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
