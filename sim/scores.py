"""What the validation reports show: scores by changed world, their intervals, and the differences between columns."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy import stats  # type: ignore[import-untyped]

from adapters.errors import UserError
from sim.validate import interquartile_mean


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
    """A figure with its 95 % interval.

    Attributes:
        point: the figure.
        low: lower limit, NaN where there is nothing to take it from.
        high: upper limit, likewise.
        over: what the interval is taken over: `training seeds`, `episodes` or `nothing`.
    """

    point: float
    low: float
    high: float
    over: str


class Difference(NamedTuple):
    """The mean difference of two columns' scores with its interval, and the difference within each training seed."""

    interval: Interval
    by_seed: list[float]

    @property
    def verdict(self) -> str:
        """`gain` where the interval lies above zero, `loss` where it lies below, else `inconclusive`."""
        if self.interval.low > 0:
            return "gain"
        return "loss" if self.interval.high < 0 else "inconclusive"


def interval(column: Column, worlds: Sequence[World], yardstick: float, samples: int = 2000, seed: int = 0) -> Interval:
    """Interquartile mean of a column's scores over training seeds and worlds, with a stratified bootstrap interval.

    Every world is a stratum: its training seeds are drawn anew, with replacement, apart from those of other worlds
    (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice", section 4). The interval covers the
    chance of the draw within each world; it does not cover that one policy stands behind all worlds of a seed, so it
    is narrower than the spread of other trainings and does not serve to compare columns (`paired_difference` does).
    With one training seed its episodes are drawn instead, and the interval says nothing about another training.

    Args:
        column: what was measured.
        worlds: the worlds to take together.
        yardstick: the return that scores 1.
        samples: bootstrap samples.
        seed: of the bootstrap.
    """
    return _bootstrap(column.returns(worlds) / yardstick, interquartile_mean, samples, seed)


def paired_difference(
    a: Column, b: Column, worlds: Sequence[World], yardstick: float, samples: int = 2000, seed: int = 0
) -> Difference:
    """Mean of a's score minus b's, paired by world and training seed, with an interval.

    One policy stands behind all worlds of a training seed, so the seeds are the only independent draws. With n >= 2 of
    them the interval is Student's: mean +- t(0.975, n - 1) s / sqrt(n), where s is the sample standard deviation of the
    seeds' mean differences. It covers another set of trainings, over the same worlds. With one seed it is a bootstrap
    over episodes within each world, paired since validation starts them alike in every column, and says nothing about
    another training.

    Args:
        a: the column to subtract from.
        b: the column to subtract.
        worlds: the worlds to take together.
        yardstick: the return that scores 1.
        samples: bootstrap samples, with one training seed.
        seed: of the bootstrap.

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
    by_seed = difference.mean((1, 2))
    shown = _bootstrap(difference, np.mean, samples, seed) if len(by_seed) == 1 else _student(by_seed)
    return Difference(shown, by_seed.tolist())


def _student(values: np.ndarray) -> Interval:
    """Student's t interval of the mean of `(seeds,)`, two of them or more."""
    mean = float(values.mean())
    reach = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach, "training seeds")


def _bootstrap(scores: np.ndarray, statistic: Callable[..., Any], samples: int, seed: int) -> Interval:
    """Percentile interval of a statistic (of values, along an axis), from scores `(seeds, worlds, episodes)`."""
    by_seed = len(scores) > 1
    units = scores.mean(2) if by_seed else scores[0].T
    point = float(statistic(scores.mean(2)))
    if len(units) == 1:
        return Interval(point, math.nan, math.nan, "nothing")
    picks = np.random.default_rng(seed).integers(len(units), size=(samples, *units.shape))
    drawn = units[picks, np.arange(units.shape[1])]
    values = statistic(drawn.reshape(samples, -1) if by_seed else drawn.mean(1), axis=-1)
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(point, float(low), float(high), "training seeds" if by_seed else "episodes")


def statement(difference: Difference, a: str, b: str) -> str:
    """Say in one or two sentences what a difference shows, and no more than its interval carries."""
    point, low, high, over = difference.interval
    if math.isnan(low):
        return f"{a} minus {b}: {point:+.3f}. One episode of one training seed gives no interval: nothing is shown."
    span = f"{point:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    text = {
        "gain": f"{a} scored higher than {b}: {span}.",
        "loss": f"{a} scored lower than {b}: {span}.",
        "inconclusive": f"No difference shown between {a} and {b}: {span}.",
    }[difference.verdict]
    if over == "episodes":
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
    return [
        Text(f"{score:.2f}", "bold" if best else "") for score, best in scores_with_best(columns, worlds, yardstick)
    ]


def scores_with_best(columns: Sequence[Column], worlds: Sequence[World], yardstick: float) -> list[tuple[float, bool]]:
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
