"""Learning curves of several ways to train, over their seeds: as a table and as a picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from adapters.files import atomic_path
from sim.charts import COLOURS

# Characters of a panel's title in one line; more run into the legend.
TITLE_WIDTH = 50

TENTHS = 10
# Ways of one budget end a little apart, as their epochs do: by how much of it one may stand for longer than it lasted.
ROUNDING = 0.05
COLUMNS = 3


class Curves(NamedTuple):
    """What one way to train reached.

    Attributes:
        steps: control steps, updates where there are none, or minutes, `(points,)`.
        values: the figure there, `(seeds, points)`.
    """

    steps: np.ndarray
    values: np.ndarray


def align(steps: Sequence[Sequence[float]], values: Sequence[Sequence[float]]) -> Curves:
    """Put seeds on the steps that the first has been evaluated at, as far as all of them go.

    Args:
        steps: of each seed's evaluations.
        values: the figure at each.
    """
    common = np.array(steps[0][: min(map(len, steps))], dtype=float)
    return Curves(common, np.array([np.interp(common, *seed) for seed in zip(steps, values, strict=True)]))


def curves_table(title: str, figure: str, curves: Mapping[str, Curves]) -> Table:
    """Lay curves out for the terminal, at every tenth of the shortest and so on to the end of the longest.

    Args:
        title: above the table.
        figure: what is counted, `success` or `return`.
        curves: by the name of their column.
    """
    ends = [each.steps[-1] for each in curves.values()]
    tenth = min(ends) / TENTHS
    table = Table(title=f"{title}: mean {figure} (lowest to highest seed)")
    table.add_column("control steps", justify="right")
    for name in curves:
        table.add_column(name, justify="right")
    for row in range(1, round(max(ends) / tenth) + 1):
        at = row * tenth
        table.add_row(f"{at:,.0f}", *(_cell(figure, each, at) for each in curves.values()))
    return table


def _cell(figure: str, curves: Curves, at: float) -> str:
    """The figure of the last evaluation until then; empty where there is none, or the run had ended."""
    places = np.flatnonzero(curves.steps <= at)
    if not len(places) or at > (1 + ROUNDING) * curves.steps[-1]:
        return ""
    values = curves.values[:, places[-1]]
    form = "{:.2f} ({:.2f} to {:.2f})" if figure == "success" else "{:,.0f} ({:,.0f} to {:,.0f})"
    return form.format(values.mean(), values.min(), values.max())


def draw(along: Mapping[str, Mapping[str, Mapping[str, Curves]]], figure: str, path: Path) -> None:
    """Draw curves as means over their seeds with the range from lowest to highest, a panel for each title.

    Args:
        along: the curves by name, by the panel's title, by what their steps are; each of those begins a line of panels.
        figure: what is counted.
        path: picture to write.

    Raises:
        UserError: the place cannot be written.
    """
    columns = min(max(map(len, along.values())), COLUMNS)
    lines = {steps: math.ceil(len(panels) / columns) for steps, panels in along.items()}
    rows = sum(lines.values())
    whole = Figure(figsize=(3 + 4.5 * columns, 1 + 3.5 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(whole)
    axes, first = whole.subplots(rows, columns, squeeze=False), 0
    for steps, panels in along.items():
        own = axes[first : first + lines[steps]].flatten()
        for axis, (title, curves) in zip(own, panels.items(), strict=False):
            _draw_panel(axis, title, curves)
            axis.set_xlabel(steps)
        for axis in own[len(panels) :]:
            axis.set_visible(False)
        first += lines[steps]
    whole.supylabel(f"{figure} of the deterministic policy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    whole.legend(handles, labels, loc="outside right upper")
    with atomic_path(path) as draft:
        whole.savefig(draft, format="png")


def _draw_panel(axis: Axes, title: str, curves: Mapping[str, Curves]) -> None:
    for index, (name, each) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        axis.plot(each.steps, each.values.mean(0), color=colour, label=name)
        axis.fill_between(each.steps, each.values.min(0), each.values.max(0), color=colour, alpha=0.2, linewidth=0)
    axis.set_title(textwrap.fill(title, TITLE_WIDTH))
    axis.grid(color="#dddddd", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
