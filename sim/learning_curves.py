"""Learning curves of algorithms and seeds, from their runs: `python -m sim.learning_curves FOLDER [FIGURE.png]`.

FOLDER holds the runs, ALGORITHM-SEED. Printed is the mean figure over the seeds, and its range, at every tenth of the
control steps; FIGURE.png gets the curves. What is counted is the success, where the task has it, else the return.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from adapters.command import module_command
from adapters.errors import UserError
from adapters.files import atomic_path, read_jsonl
from sim.charts import COLOURS

NAME = re.compile(r"(?P<algorithm>.+)-(?P<seed>\d+)")
TENTHS = 10


class Curves(NamedTuple):
    """What one algorithm reached.

    Attributes:
        steps: control steps, `(points,)`.
        values: the figure there, `(seeds, points)`.
    """

    steps: np.ndarray
    values: np.ndarray


def read_curves(folder: Path) -> tuple[str, dict[str, Curves]]:
    """Return what is counted, and the curves of every algorithm.

    Raises:
        UserError: the folder holds no evaluated runs.
    """
    runs: dict[str, list[np.ndarray]] = {}
    figure = "return"
    for path in sorted(folder.glob("*/metrics.jsonl")):
        found = NAME.fullmatch(path.parent.name)
        evaluated = [line for line in read_jsonl(path) if line["stage"] == "policy" and "return" in line]
        if found and evaluated:
            figure = "success" if "success" in evaluated[0] else "return"
            points = np.array([[line["control_steps"], line[figure]] for line in evaluated], dtype=float)
            runs.setdefault(found["algorithm"], []).append(points)
    if not runs:
        raise UserError(f"{folder} holds no evaluated runs named ALGORITHM-SEED; give a folder that does.")
    return figure, {name: _aligned(points) for name, points in runs.items()}


def _aligned(runs: Sequence[np.ndarray]) -> Curves:
    """The seeds of one algorithm at the steps that all of them have reached."""
    steps = runs[0][: min(map(len, runs)), 0]
    return Curves(steps, np.array([np.interp(steps, run[:, 0], run[:, 1]) for run in runs]))


def curves_table(figure: str, curves: dict[str, Curves]) -> Table:
    """Lay the curves out for the terminal, at every tenth of the longest."""
    longest = max(each.steps[-1] for each in curves.values())
    table = Table(title=f"mean {figure} of the deterministic policy (lowest to highest seed) by control steps")
    table.add_column("control steps", justify="right")
    for name, each in curves.items():
        table.add_column(f"{name}, {len(each.values)} seeds", justify="right")
    for tenth in range(1, TENTHS + 1):
        at = longest * tenth / TENTHS
        table.add_row(f"{at:,.0f}", *(_cell(figure, each, at) for each in curves.values()))
    return table


def _cell(figure: str, curves: Curves, at: float) -> str:
    """The figure of the last evaluation until then; empty where there is none, or the run ended long before."""
    places = np.flatnonzero(curves.steps <= at)
    if not len(places) or at - curves.steps[places[-1]] > 0.1 * at:
        return ""
    values = curves.values[:, places[-1]]
    form = "{:.2f} ({:.2f} to {:.2f})" if figure == "success" else "{:,.0f} ({:,.0f} to {:,.0f})"
    return form.format(values.mean(), values.min(), values.max())


def draw(figure: str, curves: dict[str, Curves], path: Path) -> None:
    """Draw every algorithm's mean over its seeds, and their range.

    Raises:
        UserError: the place cannot be written.
    """
    whole = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    FigureCanvasAgg(whole)
    axis = whole.subplots()
    for index, (name, each) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        axis.plot(each.steps, each.values.mean(0), color=colour, label=name)
        axis.fill_between(each.steps, each.values.min(0), each.values.max(0), color=colour, alpha=0.2, linewidth=0)
    axis.set_xlabel("control steps in the simulator")
    axis.set_ylabel(f"{figure} of the deterministic policy")
    axis.grid(color="#dddddd", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend()
    with atomic_path(path) as draft:
        whole.savefig(draft, format="png")


@module_command
def main(words: list[str]) -> None:
    """Print the table and draw the curves."""
    given = [Path(word) for word in words]
    if len(given) not in (1, 2):
        raise UserError(
            "give a folder of runs and, for the curves, a picture to write, as in python -m sim.learning_curves "
            "outputs/nppac/halfcheetah outputs/nppac/halfcheetah.png."
        )
    figure, curves = read_curves(given[0])
    Console(width=200, highlight=False).print(curves_table(figure, curves))
    if len(given) == 2:
        draw(figure, curves, given[1])


if __name__ == "__main__":
    sys.exit(main())
