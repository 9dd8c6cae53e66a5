"""Charts as the page draws them: colours, heat maps as tables, bars, and lines over time as SVG paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, to_hex
from matplotlib.ticker import MaxNLocator

from sim.grids import Grid, find_grid
from sim.intervals import Interval, interval
from sim.scores import Column, Section, World
from sim.traces import Trace

COLOURS = ("#77828f", "#d9641e", "#2b7bba", "#1d9a74", "#c76fa8", "#b58a1b", "#56b4e9", "#8f5bd0", "#a8523f", "#6b9a2d")
SCORES, DIFFERENCES = colormaps["YlGnBu"], colormaps["RdBu"]
# Differences below this share of the scale of the scores are not blown up to full colour.
LEAST_DIFFERENCE = 0.05

# Control steps that a line chart shows before the first change and after the last one, and over which it averages.
BEFORE, AFTER, SMOOTH = 100, 300, 10
# Size of a line chart, in SVG units, and what its axes take of it.
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 460, 190, 52, 16, 24, 8
# What a line has to move by, in SVG units, to be called by its name.
LEAST_MOVE = 12


@dataclass(frozen=True)
class Scale:
    """Numbers as colours, the same wherever they stand on a page.

    Attributes:
        low: the number of the first colour; what is below has the same.
        high: the number of the last colour.
        colours: from first to last.
    """

    low: float
    high: float
    colours: Colormap

    def shade(self, value: float) -> tuple[str, str]:
        """The background of a number, and the text colour that can be read on it."""
        red, green, blue, _ = self.colours((value - self.low) / (self.high - self.low))
        # Relative luminance (WCAG 2): black and white have the same contrast at 0.18.
        light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18
        return to_hex((red, green, blue)), "#000000" if light else "#ffffff"

    def stops(self) -> list[str]:
        """Colours from low to high, for a gradient."""
        return [to_hex(self.colours(share)) for share in np.linspace(0, 1, 9)]


def score_scale(sections: Sequence[Section]) -> Scale:
    """The scale that all sections share: from 0, or the worst score, to the best one of any world, and at least 1."""
    scores = [
        column.score([world], section.yardstick)
        for section in sections
        for column in section.columns
        for world in section.worlds
    ]
    return Scale(min(0.0, *scores), max(1.0, *scores), SCORES)


def difference_scale(section: Section, scores: Scale) -> Scale:
    """The scale of a section's differences: as far below 0 as above it, with 0 in the middle."""
    most = max(
        (abs(pair.score([world], section.yardstick)) for pair in section.pairs for world in section.worlds),
        default=0.0,
    )
    most = max(most, LEAST_DIFFERENCE * scores.high)
    return Scale(-most, most, DIFFERENCES)


def heat_maps(section: Section, scores: Scale, differences: Scale) -> list[dict[str, Any]]:
    """For each suite that is a grid, a map of every column and of every difference."""
    shown = []
    for suite in section.columns[0].suites():
        grid = find_grid({world: section.worlds[world] for world in section.columns[0].worlds(suite)})
        if grid is None:
            continue
        maps = [
            _heat_map(section, grid, column.title, scores, partial(column.score, yardstick=section.yardstick))
            for column in section.columns
        ]
        changes = [
            _heat_map(section, grid, pair.title, differences, partial(pair.score, yardstick=section.yardstick))
            for pair in section.pairs
        ]
        shown.append({"suite": suite, "grid": grid, "maps": maps, "differences": changes})
    return shown


def _heat_map(
    section: Section, grid: Grid, title: str, scale: Scale, score: Callable[[list[World]], float]
) -> dict[str, Any]:
    """One map; its rows fall, so that the largest multiplier is at the top as on an axis."""

    def cell(row: float, column: float) -> dict[str, Any]:
        number = score([grid.worlds[row, column]])
        text = section.text(number, sign=scale.colours is DIFFERENCES)
        return {"text": text, "shade": scale.shade(number), "original": row == column == 1}

    rows = [(f"{row:g}", [cell(row, column) for column in grid.columns]) for row in reversed(grid.rows)]
    return {"title": title, "rows": rows}


def bars(section: Section) -> list[dict[str, Any]]:
    """For each set of worlds, each column's interval, with its place on a common scale in per cent."""
    scopes = section.scopes()
    intervals = {
        scope: [interval(column, worlds, section.yardstick) for column in section.columns]
        for scope, worlds in scopes.items()
    }
    ends = [end for row in intervals.values() for each in row for end in each[:3] if not math.isnan(end)]
    low, high = min(0.0, *ends), max(0.0, *ends) if section.yardstick == 1 else max(1.0, *ends)

    def per_cent(score: float) -> float:
        return float(np.clip((score - low) / (high - low or 1.0), 0, 1)) * 100

    def bar(index: int, column: Column, worlds: Sequence[World], each: Interval) -> dict[str, Any]:
        ends = sorted([per_cent(0.0), per_cent(each.point)])
        start, end = per_cent(each.low), per_cent(each.high)
        return {
            "title": column.title,
            "colour": COLOURS[index % len(COLOURS)],
            "text": interval_text(each, section),
            "fill": (ends[0], ends[1] - ends[0]),
            "whisker": None if math.isnan(each.low) else (start, end - start),
            "falls": sum(cells[world]["falls"] for cells in column.cells for world in worlds),
            "episodes": column.returns(worlds).size,
        }

    return [
        {
            "scope": scope,
            "worlds": len(scopes[scope]),
            "over": row[0].over,
            "bars": [
                bar(index, column, scopes[scope], each)
                for index, (column, each) in enumerate(zip(section.columns, row, strict=True))
            ],
        }
        for scope, row in intervals.items()
    ]


def interval_text(each: Interval, section: Section, sign: bool = False) -> str:
    """A figure and its limits, where it has any."""
    point, low, high = (section.text(value, sign) for value in each[:3])
    return point if math.isnan(each.low) else f"{point} ({low} to {high})"


def line_charts(traces: Mapping[str, Trace], names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Draw the traces of one world, by the title of their column: the reward, and the context where there is one.

    Args:
        traces: of one world.
        names: what each number of the context stands for; each is a line of its own.
    """
    first = next(iter(traces.values()))
    rewards = [Line(title, title, each.reward) for title, each in traces.items()]
    contexts = [
        Line(title, f"{title}, {name}", values)
        for title, each in traces.items()
        if each.context is not None
        for name, values in zip(names, each.context.T, strict=True)
    ]
    charts = [_line_chart("reward per step", first.changes, rewards)]
    if contexts:
        charts.append(_line_chart("context", first.changes, contexts))
        charts[-1]["label"] = _farthest(charts[-1]["lines"], names)
    return charts


class Line(NamedTuple):
    """What a line shows.

    Attributes:
        column: title of its column, which gives it its colour.
        title: what a person reads who points at it.
        values: `(steps,)`.
    """

    column: str
    title: str
    values: np.ndarray


def _line_chart(title: str, changes: Sequence[int], lines: Sequence[Line]) -> dict[str, Any]:
    """Turn lines into SVG paths with ticks, around the changes."""
    length = len(lines[0].values)
    # Blocks of steps begin here, and the first change between two of them.
    start = changes[0] - BEFORE if changes[0] >= BEFORE else changes[0] % SMOOTH
    end = min(changes[-1] + AFTER, length)
    drawn = [_smooth(line.values, start, end) for line in lines]
    finite = np.concatenate([values for _, values in drawn])
    ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(*_spread(finite[np.isfinite(finite)]))
    low, high = ticks[0], ticks[-1]

    def across(step: Any) -> Any:
        return LEFT + (np.asarray(step) - start) / (end - start) * (WIDTH - LEFT - RIGHT)

    def down(value: Any) -> Any:
        return TOP + (high - np.asarray(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def points(steps: np.ndarray, values: np.ndarray) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in zip(across(steps), down(values), strict=True) if math.isfinite(y)]

    columns = list(dict.fromkeys(line.column for line in lines))
    moments = [step for step in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(start, end) if start <= step <= end]
    return {
        "title": title,
        "lines": [
            {
                "title": line.title,
                "points": points(*each),
                "colour": COLOURS[columns.index(line.column) % len(COLOURS)],
                "dashed": line.column == columns[0] and len(columns) > 1,
            }
            for line, each in zip(lines, drawn, strict=True)
        ],
        "label": None,
        "changes": [(step, float(across(step))) for step in changes],
        "y_ticks": [(f"{value:g}", float(down(value))) for value in ticks],
        "x_ticks": [(f"{step:,.0f}", float(across(step))) for step in moments],
        "size": (WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM),
    }


def _farthest(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> tuple[str, float, float] | None:
    """The name of the number that goes farthest from where it was, and where; None where none of them moves.

    Args:
        lines: a chart's, for each column one of every name.
        names: of the numbers.
    """
    moves = [
        (abs(y - line["points"][0][1]), names[index % len(names)], x, y)
        for index, line in enumerate(lines)
        for x, y in line["points"]
    ]
    far, name, x, y = max(moves, default=(0.0, "", 0.0, 0.0))
    return (name, x, y) if far > LEAST_MOVE else None


def _smooth(values: np.ndarray, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over blocks of steps from start to end; returns the middle step of each, and its mean."""
    starts = np.arange(start, end, SMOOTH)
    return starts + SMOOTH / 2, np.array([np.mean(values[at : min(at + SMOOTH, end)]) for at in starts])


def _spread(values: np.ndarray) -> tuple[float, float]:
    """The range of an axis, never empty."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    return (low, high) if high - low > 1e-6 else (low - 0.5, high + 0.5)
