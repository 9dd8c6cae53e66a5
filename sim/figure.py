"""The scores as one picture for slides: heat maps of the grids, and bars with intervals for every other world."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from adapters.files import atomic_path
from sim.charts import COLOURS, Scale, score_scale
from sim.grids import Grid, find_grid
from sim.intervals import interval
from sim.scores import Section, World


def figure(path: Path, sections: Sequence[Section]) -> None:
    """Draw one PNG: for each section the heat maps of its grids, and bars with intervals for the other worlds.

    Raises:
        UserError: the place cannot be written.
    """
    rows = [_rows(section) for section in sections]
    scale = score_scale(sections)
    heights = [0.7 + 3.9 * len(row) for row in rows]
    whole = Figure(figsize=(13.5, sum(heights)), dpi=130, layout="constrained")
    FigureCanvasAgg(whole)
    parts = whole.subfigures(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
    for section, row, part in zip(sections, rows, parts, strict=True):
        part.suptitle(f"{section.title.upper()}: {section.about}", fontsize=15, fontweight="bold", wrap=True)
        for draw, place in zip(row, part.subfigures(len(row), 1, squeeze=False)[:, 0], strict=True):
            draw(place, scale)
    with atomic_path(Path(path)) as draft:
        whole.savefig(draft, format="png")


def _rows(section: Section) -> list[Callable[[SubFigure, Scale], None]]:
    """What draws each row of a section: one for each suite, as heat maps where it is a grid."""
    first = section.columns[0]
    rows: list[Callable[[SubFigure, Scale], None]] = []
    for suite in first.suites():
        grid = find_grid({world: section.worlds[world] for world in first.worlds(suite)})
        draw = functools.partial(_draw_grid, section, grid) if grid else None
        rows.append(draw or functools.partial(_draw_bars, section, first.worlds(suite)))
    return rows


def _draw_grid(section: Section, grid: Grid, place: SubFigure, scale: Scale) -> None:
    """One heat map for each column, all on the same colour scale."""
    axes = place.subplots(1, len(section.columns), squeeze=False)[0]
    for column, axis in zip(section.columns, axes, strict=True):
        shown = np.array(
            [[column.score([grid.worlds[row, at]], section.yardstick) for at in grid.columns] for row in grid.rows]
        )
        image = axis.imshow(shown, cmap=scale.colours, vmin=scale.low, vmax=scale.high, origin="lower", aspect="auto")
        for (row, at), score in np.ndenumerate(shown):
            colour = scale.shade(score)[1]
            axis.text(at, row, section.text(score), ha="center", va="center", color=colour, fontsize=11.5)
        if 1 in grid.rows and 1 in grid.columns:
            corner = grid.columns.index(1) - 0.5, grid.rows.index(1) - 0.5
            axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#d9641e", linewidth=3, clip_on=False))
        axis.set_title(column.title, fontsize=13)
        axis.set_xticks(range(len(grid.columns)), [f"{value:g}" for value in grid.columns])
        axis.set_yticks(range(len(grid.rows)), [f"{value:g}" for value in grid.rows])
        axis.set_xlabel(f"{grid.column_quantity}, times the original")
        if axis is axes[0]:
            axis.set_ylabel(f"{grid.row_quantity}, times the original")
    place.colorbar(image, ax=list(axes), label=section.score_label, pad=0.01)
    what = f"{grid.row_quantity} and {grid.column_quantity}"
    place.suptitle(f"Score by {what} (mean over episodes and seeds; framed: original)", fontsize=12)


def _draw_bars(section: Section, worlds: Sequence[World], place: SubFigure, scale: Scale) -> None:
    """Bars with intervals, one panel for each time at which the worlds change."""
    cells = section.worlds
    starts = sorted({cells[world]["perturbation"].get("at_step", 0) for world in worlds})
    axes = place.subplots(1, len(starts), sharey=True, squeeze=False)[0]
    for start, axis in zip(starts, axes, strict=True):
        here = [world for world in worlds if cells[world]["perturbation"].get("at_step", 0) == start]
        groups = {_bar_label(cells[world]): [world] for world in here} | {f"all {len(here)}": here}
        _draw_panel(axis, section, groups)
        since = f"from step {start} on" if start else "from the start of the episode"
        axis.set_title(f"{here[0].suite.replace('-', ' ').capitalize()} {since}", fontsize=13)
        axis.set_xlabel("dead motor" if all(_failed(cells[world]) for world in here) else "changed world")
    axes[0].set_ylabel(section.score_label)
    # Below the panels, where no bar can lie under it.
    place.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(section.columns))
    over = interval(section.columns[0], worlds[:1], section.yardstick, samples=1).over
    place.suptitle(
        f"Score by changed world (bar: interquartile mean; line: 95 % bootstrap interval over {over})", fontsize=12
    )


def _draw_panel(axis: Axes, section: Section, groups: Mapping[str, Sequence[World]]) -> None:
    """One group of bars for each set of worlds."""
    width = 0.84 / len(section.columns)
    for index, column in enumerate(section.columns):
        intervals = [interval(column, worlds, section.yardstick) for worlds in groups.values()]
        points = np.array([each.point for each in intervals])
        reach = np.array([[each.point - each.low, each.high - each.point] for each in intervals]).T
        at = np.arange(len(groups)) + (index - (len(section.columns) - 1) / 2) * width
        colour = COLOURS[index % len(COLOURS)]
        axis.bar(at, points, width * 0.92, label=column.title, color=colour)
        # A percentile interval may leave its point out by a hair, and a line cannot have a negative length.
        axis.errorbar(at, points, reach.clip(min=0), fmt="none", ecolor="#222222", elinewidth=1.2, capsize=2)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.axvline(len(groups) - 1.5, color="#bbbbbb", linewidth=1)
    axis.axhline(0, color="#222222", linewidth=0.8)
    axis.grid(axis="y", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _failed(cell: Mapping[str, Any]) -> list[str]:
    """The actuators that give no force in a world."""
    return [name for name, gain in cell["perturbation"].get("actuator_gain", {}).items() if gain == 0]


def _bar_label(cell: Mapping[str, Any]) -> str:
    return "+".join(_failed(cell)) or str(cell["name"])
