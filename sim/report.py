"""What a person opens at the end: the figure and the HTML page of the scores (sim/scores.py)."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from adapters.errors import UserError
from adapters.files import atomic_path
from sim.environments import make_environment
from sim.scores import (
    Column,
    Section,
    World,
    comparisons,
    grid_position,
    interval,
    paired_difference,
    scores_with_best,
    statement,
    world_title,
)

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = ("#5b6b82", "#8cc3e8", "#d9641e", "#2f9e77")
HEAT = colormaps["YlGnBu"]
# What a robot is, by its environment, for a reader who has not seen it.
ROBOTS = {
    "halfcheetah": "runs in a plane on a back and a front leg, each with a thigh, a shin and a foot",
    "hopper": "hops in a plane on one leg",
    "walker2d": "walks in a plane on two legs",
    "ant": "walks in space on four legs, each with a hip and an ankle",
    "cheetah-run": "runs in a plane on a back and a front leg, each with a thigh, a shin and a foot",
    "walker-walk": "walks in a plane on two legs, each with a thigh, a leg and a foot",
    "quadruped-walk": "walks in space on four legs, and feels forces at its toes",
}


def figure(path: Path, sections: Sequence[Section]) -> None:
    """Draw one PNG: for each section the heat maps of mass x damping, and bars with intervals for the other worlds.

    Raises:
        UserError: the place cannot be written.
    """
    rows = [_rows(section) for section in sections]
    top = _top(sections)
    heights = [0.7 + 3.9 * len(row) for row in rows]
    whole = Figure(figsize=(13.5, sum(heights)), dpi=130, layout="constrained")
    FigureCanvasAgg(whole)
    parts = whole.subfigures(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
    for section, row, part in zip(sections, rows, parts, strict=True):
        part.suptitle(f"{section.title.upper()}: {section.about}", fontsize=15, fontweight="bold", wrap=True)
        for draw, place in zip(row, part.subfigures(len(row), 1, squeeze=False)[:, 0], strict=True):
            draw(place, top)
    with atomic_path(Path(path)) as draft:
        whole.savefig(draft, format="png")


def _rows(section: Section) -> list[Callable[[SubFigure, float], None]]:
    """What draws each row of a section: one for each suite, as heat maps where it is a grid."""
    first = section.columns[0]
    rows: list[Callable[[SubFigure, float], None]] = []
    for suite in first.suites():
        worlds = first.worlds(suite)
        is_grid = all(grid_position(first.cells[0][world]) for world in worlds)
        rows.append(functools.partial(_draw_grid if is_grid else _draw_bars, section, worlds))
    return rows


def _draw_grid(section: Section, worlds: Sequence[World], place: SubFigure, top: float) -> None:
    """One heat map for each column, all on the same colour scale."""
    positions = [grid_position(section.columns[0].cells[0][world]) or (0.0, 0.0) for world in worlds]
    masses, dampings = (sorted(set(axis)) for axis in zip(*positions, strict=True))
    axes = place.subplots(1, len(section.columns), squeeze=False)[0]
    for column, axis in zip(section.columns, axes, strict=True):
        shown = np.full((len(masses), len(dampings)), np.nan)
        for world, (mass, damping) in zip(worlds, positions, strict=True):
            shown[masses.index(mass), dampings.index(damping)] = column.score([world], section.yardstick)
        image = axis.imshow(shown, cmap=HEAT, vmin=0, vmax=top, origin="lower", aspect="auto")
        for (row, place_in_row), score in np.ndenumerate(shown):
            if not np.isnan(score):
                colour = _shade(score, top)[1]
                axis.text(place_in_row, row, f"{score:.2f}", ha="center", va="center", color=colour, fontsize=11.5)
        if 1 in masses and 1 in dampings:
            corner = dampings.index(1) - 0.5, masses.index(1) - 0.5
            axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#d9641e", linewidth=3, clip_on=False))
        axis.set_title(column.title, fontsize=13)
        axis.set_xticks(range(len(dampings)), [f"{value:g}" for value in dampings])
        axis.set_yticks(range(len(masses)), [f"{value:g}" for value in masses])
        axis.set_xlabel("joint damping, times the original")
        if axis is axes[0]:
            axis.set_ylabel("mass, times the original")
    place.colorbar(image, ax=list(axes), label=f"score (1 = return {section.yardstick:,.0f})", pad=0.01)
    place.suptitle("Score by mass and joint damping (mean over episodes and seeds; framed: original)", fontsize=12)


def _draw_bars(section: Section, worlds: Sequence[World], place: SubFigure, top: float) -> None:
    """Bars with intervals, one panel for each time at which the worlds change."""
    cells = section.columns[0].cells[0]
    starts = sorted({cells[world]["perturbation"].get("at_step", 0) for world in worlds})
    axes = place.subplots(1, len(starts), sharey=True, squeeze=False)[0]
    for start, axis in zip(starts, axes, strict=True):
        here = [world for world in worlds if cells[world]["perturbation"].get("at_step", 0) == start]
        groups = {_bar_label(cells[world]): [world] for world in here} | {f"all {len(here)}": here}
        _draw_panel(axis, section, groups)
        since = f"from step {start} on" if start else "from the start of the episode"
        axis.set_title(f"{here[0].suite.replace('-', ' ').capitalize()} {since}", fontsize=13)
        axis.set_xlabel("dead motor" if all(_failed(cells[world]) for world in here) else "changed world")
    axes[0].set_ylabel(f"score (1 = return {section.yardstick:,.0f})")
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


def _shade(score: float, top: float) -> tuple[str, str]:
    """The background of a score, and the text colour that can be read on it."""
    red, green, blue, _ = HEAT(min(max(score / top, 0.0), 1.0))
    # Relative luminance (WCAG 2): black and white have the same contrast at 0.18.
    light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}", "#111111" if light else "#ffffff"


def write_report(
    path: Path, sections: Sequence[Section], figure_png: Path, details: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write one HTML file that needs nothing else: no network, no script, the figure within it.

    Args:
        path: the file to write.
        sections: the sets of results, the first one first.
        figure_png: what `figure` wrote.
        details: by section title, each part optional: `world_models`, for each training seed what `surefoot train`
            measured (holdout_mse, horizon_rmse by horizon); `provenance`, from a label to a text, a number, a list or
            a dict, where `rows` of `data set` are the recorded steps; `commands`, the lines that repeat the section.

    Raises:
        UserError: the figure cannot be read, the report cannot be written, a section's columns do not fit, or their
            environment is not known.
    """
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = jinja.get_template("report.html.j2").render(
        sections=[_view(section, details.get(section.title, {}), _top(sections)) for section in sections],
        yardstick=sections[0].yardstick,
        robot=_robot_view(sections[0], details.get(sections[0].title, {})),
        figure=base64.b64encode(_read(figure_png)).decode(),
    )
    with atomic_path(Path(path)) as draft:
        draft.write_text(text, encoding="utf-8")


def _read(png: Path) -> bytes:
    try:
        return Path(png).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the figure {png} ({error.strerror}); draw it first.") from error


def _top(sections: Sequence[Section]) -> float:
    """The upper end of the colour scale that all sections share: the best score of any world, and at least 1."""
    scores = (
        column.score([world], section.yardstick)
        for section in sections
        for column in section.columns
        for world in column.worlds()
    )
    return max(1.0, *scores)


def _scopes(section: Section) -> dict[str, list[World]]:
    """The sets of worlds that are summed up: every suite, then all together."""
    first = section.columns[0]
    scopes = {suite: first.worlds(suite) for suite in first.suites()}
    return scopes if len(scopes) == 1 else scopes | {"all worlds": first.worlds()}


def _robot_view(section: Section, details: Mapping[str, Any]) -> dict[str, Any]:
    """What the text says of the robot, its task and its data, which all sections share."""
    report = section.columns[0].reports[0]
    environment = make_environment(report["env"])
    return {
        "name": environment.task_id,
        "about": ROBOTS.get(environment.name),
        "observations": environment.obs_dim,
        "motors": environment.action_names,
        "control_dt": environment.control_dt,
        "bonus": environment.config.healthy_reward,
        "steps": report["steps"],
        "rows": details.get("provenance", {}).get("data set", {}).get("rows"),
        "suites": section.columns[0].suites(),
    }


def _view(section: Section, details: Mapping[str, Any], top: float) -> dict[str, Any]:
    """What the template shows of one section."""
    return {
        "title": section.title,
        "about": section.about,
        "columns": [column.title for column in section.columns],
        "summary": _summary_view(section),
        "comparisons": _comparison_view(section),
        "tables": _table_view(section, top),
        "failures": _failure_view(section),
        "world_models": details.get("world_models", []),
        "provenance": details.get("provenance", {}),
        "commands": details.get("commands", []),
    }


def _summary_view(section: Section) -> list[dict[str, Any]]:
    """For each set of worlds, each column's interval, with its place on a common scale in per cent."""
    scopes = _scopes(section)
    intervals = {
        scope: [interval(column, worlds, section.yardstick) for column in section.columns]
        for scope, worlds in scopes.items()
    }
    longest = max(1.0, *(np.nanmax([each.point, each.high]) for row in intervals.values() for each in row))

    def per_cent(score: float) -> float:
        return float(np.clip(score / longest, 0, 1)) * 100

    return [
        {
            "scope": scope,
            "over": row[0].over,
            "bars": [
                {
                    "title": column.title,
                    "colour": COLOURS[index % len(COLOURS)],
                    "text": f"{each.point:.2f}"
                    + ("" if math.isnan(each.low) else f" ({each.low:.2f} to {each.high:.2f})"),
                    "width": per_cent(each.point),
                    "from": per_cent(np.nan_to_num(each.low, nan=each.point)),
                    "to": per_cent(np.nan_to_num(each.high, nan=each.point)),
                }
                for index, (column, each) in enumerate(zip(section.columns, row, strict=True))
            ],
        }
        for scope, row in intervals.items()
    ]


def _comparison_view(section: Section) -> list[dict[str, Any]]:
    """For each comparison, what it shows over each set of worlds."""
    shown = []
    for question, a, b in comparisons(section.columns):
        answers = []
        for scope, worlds in _scopes(section).items():
            difference = paired_difference(a, b, worlds, section.yardstick)
            answers.append((scope, difference.verdict, statement(difference, a.title, b.title)))
        shown.append({"question": question, "answers": answers})
    return shown


def _table_view(section: Section, top: float) -> list[dict[str, Any]]:
    """The score table, coloured: for each suite its worlds and their mean."""

    def row(label: str, worlds: Sequence[World]) -> dict[str, Any]:
        scores = scores_with_best(section.columns, worlds, section.yardstick)
        cells = [{"text": f"{score:.2f}", "shade": _shade(score, top), "best": best} for score, best in scores]
        return {"label": label, "cells": cells}

    first = section.columns[0]
    return [
        {
            "scope": scope,
            # The last scope holds the same worlds again: its mean is enough.
            "rows": [row(world_title(first.cells[0][world]), [world]) for world in worlds if scope == world.suite],
            "mean": row("mean", worlds),
        }
        for scope, worlds in _scopes(section).items()
    ]


def _failure_view(section: Section) -> dict[str, Any] | None:
    """For the worlds that change mid-run: how soon the context moved, and the return after the change."""
    first = section.columns[0]
    worlds = [world for world in first.worlds() if "return_after_change" in first.cells[0][world]]
    if not worlds:
        return None
    inferred = next((column for column in section.columns if column.context == "inferred"), None)

    def steps(world: World) -> list[int | None]:
        return [cells[world].get("steps_to_90_percent") for cells in inferred.cells] if inferred else []

    def after(column: Column, chosen: Iterable[World]) -> float:
        return float(np.mean([cells[world]["return_after_change"] for world in chosen for cells in column.cells]))

    every = [value for world in worlds for value in steps(world)]
    moved = [value for value in every if value is not None]
    return {
        "rows": [
            {
                "label": world.name,
                "steps": steps(world),
                "after": [after(column, [world]) for column in section.columns],
            }
            for world in worlds
        ],
        "mean": [after(column, worlds) for column in section.columns],
        "median": float(np.median(moved)) if moved else None,
        "moved": len(moved),
        "runs": len(every),
    }
