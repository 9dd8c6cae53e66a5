"""What a person sees at the end: the score table, the intervals, the figure and the HTML report."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from rich.table import Table
from rich.text import Text

from adapters.errors import UserError
from adapters.files import atomic_path

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = ("#5b6b82", "#8cc3e8", "#d9641e", "#2f9e77")
HEAT = colormaps["YlGnBu"]


class World(NamedTuple):
    """One changed world, by its suite's name and its own."""

    suite: str
    name: str


@dataclass(frozen=True)
class Column:
    """One algorithm under one context, over one or more training seeds.

    Attributes:
        title: heading of the column.
        reports: validation reports (sim/validate.py), one for each training seed, in the order of the seeds.
        context: nominal, inferred or oracle.

    Raises:
        UserError: there is no report, or none of its cells is of this context.
    """

    title: str
    reports: list[dict[str, Any]]
    context: str

    def __post_init__(self) -> None:
        if not self.reports:
            raise UserError(f"column '{self.title}' has no validation report; give it one for each training seed.")
        if not all(self.cells):
            raise UserError(
                f"column '{self.title}': a report has no context '{self.context}'; validate the bundle with it."
            )

    @functools.cached_property
    def cells(self) -> list[dict[World, dict[str, Any]]]:
        """Every report's cells of this context, by world."""
        return [
            {World(cell["suite"], cell["name"]): cell for cell in report["cells"] if cell["context"] == self.context}
            for report in self.reports
        ]

    def worlds(self, suite: str | None = None) -> list[World]:
        """The worlds of one suite, or of all, in the report's order."""
        return [world for world in self.cells[0] if suite in (None, world.suite)]

    def suites(self) -> list[str]:
        """The suites, in the report's order."""
        return list(dict.fromkeys(world.suite for world in self.cells[0]))

    def returns(self, worlds: Sequence[World]) -> np.ndarray:
        """Undiscounted returns `(seeds, worlds, episodes)`.

        Raises:
            UserError: a report lacks one of the worlds, or the reports differ in their number of episodes.
        """
        for world in worlds:
            if any(world not in cells for cells in self.cells):
                raise UserError(
                    f"column '{self.title}' has no world '{world.name}' of suite '{world.suite}' in every report; "
                    "validate all bundles over the same suites."
                )
        returns = [[cells[world]["returns"] for world in worlds] for cells in self.cells]
        if len({len(episodes) for seed in returns for episodes in seed}) != 1:
            raise UserError(
                f"column '{self.title}': its reports differ in episodes; validate all of them with the same."
            )
        return np.asarray(returns, dtype=float)

    def score(self, worlds: Sequence[World], yardstick: float) -> float:
        """Mean return over worlds, episodes and seeds, divided by the yardstick."""
        return float(self.returns(worlds).mean()) / yardstick


@dataclass(frozen=True)
class Section:
    """One set of results in the report.

    Attributes:
        title: its label, for example "live" or "full run".
        about: what it comes from, as a phrase without a full stop.
        columns: the columns of its tables, over the same worlds.
        yardstick: the return that scores 1.
    """

    title: str
    about: str
    columns: list[Column]
    yardstick: float


class Interval(NamedTuple):
    """A figure with its bootstrap 95 % interval; the limits are NaN where there was nothing to resample."""

    point: float
    low: float
    high: float
    resampled: str


class Difference(NamedTuple):
    """The mean difference of two columns' scores with its interval, and the difference within each training seed."""

    interval: Interval
    by_seed: list[float]

    @property
    def verdict(self) -> str:
        """`gain` or `loss` where the interval and every training seed lie on one side of zero, else `inconclusive`.

        One policy stands behind all worlds of a seed, which the bootstrap within worlds does not see: its interval
        alone would claim too much. The 95 % interval of a bootstrap over two or three whole seeds is their range,
        so for these the condition on the seeds is that bootstrap.
        """
        if min(self.interval.low, *self.by_seed) > 0:
            return "gain"
        return "loss" if max(self.interval.high, *self.by_seed) < 0 else "inconclusive"


def interval(column: Column, worlds: Sequence[World], yardstick: float, samples: int = 2000, seed: int = 0) -> Interval:
    """Interquartile mean of a column's scores over training seeds and worlds, with a stratified bootstrap interval.

    Every world is a stratum: its training seeds are drawn anew, with replacement, apart from those of other worlds
    (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice", section 4). With one training seed its
    episodes are drawn instead, and the interval says nothing about another training.

    Args:
        column: what was measured.
        worlds: the worlds to take together.
        yardstick: the return that scores 1.
        samples: bootstrap samples.
        seed: of the bootstrap.
    """
    return _bootstrap(column.returns(worlds) / yardstick, _interquartile_mean, samples, seed)


def paired_difference(
    a: Column, b: Column, worlds: Sequence[World], yardstick: float, samples: int = 2000, seed: int = 0
) -> Difference:
    """Mean of a's score minus b's, paired by world and training seed, with a stratified bootstrap interval.

    With one training seed the pairs are episodes: validation starts them alike in every column.

    Raises:
        UserError: the columns differ in their number of seeds or episodes.
    """
    ours, theirs = a.returns(worlds) / yardstick, b.returns(worlds) / yardstick
    if ours.shape != theirs.shape:
        raise UserError(
            f"'{a.title}' has (seeds, worlds, episodes) {ours.shape} and '{b.title}' {theirs.shape}; "
            "they can be paired only if both have the same."
        )
    difference = ours - theirs
    return Difference(
        _bootstrap(difference, lambda scores: scores.mean((-2, -1)), samples, seed), difference.mean((1, 2)).tolist()
    )


def _bootstrap(scores: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], samples: int, seed: int) -> Interval:
    """Percentile interval of a statistic of `(..., seeds, worlds)`, from scores `(seeds, worlds, episodes)`."""
    by_seed = len(scores) > 1
    units = scores.mean(2) if by_seed else scores[0].T
    point = float(statistic(scores.mean(2)))
    if len(units) == 1:
        return Interval(point, math.nan, math.nan, "nothing")
    picks = np.random.default_rng(seed).integers(len(units), size=(samples, *units.shape))
    drawn = units[picks, np.arange(units.shape[1])]
    values = statistic(drawn if by_seed else drawn.mean(1, keepdims=True))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(point, float(low), float(high), "training seeds" if by_seed else "episodes")


def _interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """What `sim.validate.interquartile_mean` is, over `(..., seeds, worlds)`: a quarter is left out at either end."""
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1))
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def statement(difference: Difference, a: str, b: str) -> str:
    """Say in one or two sentences what a difference shows, and no more than its interval carries."""
    point, low, high, resampled = difference.interval
    if math.isnan(low):
        return f"{a} minus {b}: {point:+.3f}. One episode of one training seed gives no interval: nothing is shown."
    span = f"{point:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    text = {
        "gain": f"{a} scored higher than {b}: {span}.",
        "loss": f"{a} scored lower than {b}: {span}.",
        "inconclusive": f"No difference shown between {a} and {b}: {span}.",
    }[difference.verdict]
    if resampled == "episodes":
        return f"{text} One training seed: another training may come out otherwise."
    return f"{text} By training seed: {', '.join(f'{value:+.3f}' for value in difference.by_seed)}."


def comparisons(columns: Sequence[Column]) -> list[tuple[str, Column, Column]]:
    """The pairs worth comparing: a question, and the two columns whose difference answers it."""

    def bundles(column: Column) -> list[str]:
        return [report["bundle"] for report in column.reports]

    def of(context: str) -> list[Column]:
        return [column for column in columns if column.context == context]

    pairs = []
    for ours in of("inferred"):
        adapted = [column for column in of("nominal") if bundles(column) == bundles(ours)]
        others = [column for column in of("nominal") if bundles(column) != bundles(ours)]
        best = [column for column in of("oracle") if bundles(column) == bundles(ours)]
        pairs += [("What adaptation gained or lost", ours, other) for other in adapted]
        pairs += [(f"Against {other.title}", ours, other) for other in others]
        pairs += [("What a perfect context would change", other, ours) for other in best]
    return pairs


def score_table(columns: Sequence[Column], yardstick: float, title: str = "score over changed worlds") -> Table:
    """Lay the scores out for the terminal: a row for each changed world, with means by suite and in all.

    The best of the columns that a robot can have, which the oracle is not, is bold.
    """
    table = Table(title=title, caption=f"score = mean return / {yardstick:,.0f}; bold = best without the oracle")
    table.add_column("changed world", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right")
    for suite in columns[0].suites():
        worlds = columns[0].worlds(suite)
        for world in worlds:
            table.add_row(world_title(columns[0].cells[0][world]), *_score_texts(columns, [world], yardstick))
        table.add_section()
        table.add_row(Text(f"{suite}: mean", "italic"), *_score_texts(columns, worlds, yardstick))
        table.add_section()
    table.add_row(Text("all: mean", "italic"), *_score_texts(columns, columns[0].worlds(), yardstick))
    return table


def _score_texts(columns: Sequence[Column], worlds: Sequence[World], yardstick: float) -> list[Text]:
    return [Text(f"{score:.2f}", "bold" if best else "") for score, best in _scores(columns, worlds, yardstick)]


def _scores(columns: Sequence[Column], worlds: Sequence[World], yardstick: float) -> list[tuple[float, bool]]:
    """Each column's score, and whether it is the best of those that are not the oracle's."""
    scores = [column.score(worlds, yardstick) for column in columns]
    real = [column.context != "oracle" for column in columns]
    best = max((score for score, is_real in zip(scores, real, strict=True) if is_real), default=math.nan)
    return [(score, is_real and score == best) for score, is_real in zip(scores, real, strict=True)]


def grid_position(cell: Mapping[str, Any]) -> tuple[float, float] | None:
    """The multipliers of (mass, damping) where a cell is a point of the mass x damping grid, else None."""
    change = {key: value for key, value in cell["perturbation"].items() if key != "name"}
    if set(change) == {"body_mass", "dof_damping"} and all(set(value) == {"*"} for value in change.values()):
        return change["body_mass"]["*"], change["dof_damping"]["*"]
    return None


def world_title(cell: Mapping[str, Any]) -> str:
    """A world's name, marked where nothing in it is changed."""
    return f"{cell['name']} (original)" if grid_position(cell) == (1, 1) else str(cell["name"])


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
    resampled = interval(section.columns[0], worlds[:1], section.yardstick, samples=1).resampled
    place.suptitle(
        f"Score by changed world (bar: interquartile mean; line: 95 % interval over {resampled})", fontsize=12
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
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
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
            a dict; `commands`, the lines that repeat the section.

    Raises:
        UserError: the figure cannot be read, the report cannot be written, or a section's columns do not fit.
    """
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = jinja.get_template("report.html.j2").render(
        sections=[_view(section, details.get(section.title, {}), _top(sections)) for section in sections],
        yardstick=sections[0].yardstick,
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
            "resampled": row[0].resampled,
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
        scores = _scores(section.columns, worlds, section.yardstick)
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
