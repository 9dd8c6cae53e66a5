"""What the validation reports show: scores by changed world, in columns, and the columns worth comparing."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from adapters.errors import UserError
from sim.wording import is_original


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


class Pair(NamedTuple):
    """Two columns worth comparing: the difference a - b answers the question."""

    question: str
    a: Column
    b: Column

    @property
    def title(self) -> str:
        """The difference in short."""
        return f"{self.a.title} \N{MINUS SIGN} {self.b.title}"

    def score(self, worlds: Sequence[World], yardstick: float) -> float:
        """Mean score of a over the worlds, less that of b."""
        return self.a.score(worlds, yardstick) - self.b.score(worlds, yardstick)


@dataclass(frozen=True)
class Section:
    """One set of results in the report.

    Attributes:
        title: its label, for example "live" or "full run".
        about: what it comes from, as a phrase without a full stop.
        columns: the columns of its tables, over the same worlds.
        yardstick: the return that scores 1; 1 itself where the environment has none, and scores are returns.
        pairs: the differences that it shows.
    """

    title: str
    about: str
    columns: list[Column]
    yardstick: float
    pairs: list[Pair]

    @property
    def worlds(self) -> dict[World, dict[str, Any]]:
        """Every world with the cell that describes it."""
        return self.columns[0].cells[0]

    @property
    def score_label(self) -> str:
        """What its numbers are, for an axis."""
        return "return" if self.yardstick == 1 else f"score (1 = return {self.yardstick:,.0f})"

    def text(self, score: float, sign: bool = False) -> str:
        """Write a score as a person reads it, or a difference of two, which has a sign."""
        text = f"{score:{'+' if sign else ''}{',.0f' if self.yardstick == 1 else '.2f'}}"
        return text if any(digit in text for digit in "123456789") else text.lstrip("+-")

    def scopes(self) -> dict[str, list[World]]:
        """The sets of worlds that are summed up: every suite, then all together where there are several."""
        first = self.columns[0]
        scopes = {suite: first.worlds(suite) for suite in first.suites()}
        return scopes if len(scopes) == 1 else scopes | {"all worlds": first.worlds()}


def comparisons(columns: Sequence[Column]) -> list[Pair]:
    """The pairs worth comparing: what adaptation changes, other bundles without it, and a perfect context."""

    def bundles(column: Column) -> list[str]:
        return [report["bundle"] for report in column.reports]

    def of(context: str) -> list[Column]:
        return [column for column in columns if column.context == context]

    pairs = []
    for ours in of("inferred"):
        adapted = [column for column in of("nominal") if bundles(column) == bundles(ours)]
        others = [column for column in of("nominal") if bundles(column) != bundles(ours)]
        best = [column for column in of("oracle") if bundles(column) == bundles(ours)]
        pairs += [Pair("What adaptation gained or lost", ours, other) for other in adapted]
        pairs += [Pair(f"Against {other.title}", ours, other) for other in others]
        pairs += [Pair("What a perfect context would change", other, ours) for other in best]
    return pairs


def report_table(report: dict[str, Any]) -> Table:
    """Lay a report out for the terminal: a row for each world, a column for each context."""
    contexts = list(report["summary"])
    yardstick = report["yardstick_return"]
    shown = Table(title=f"{report['env']}, {report['episodes']} episodes of {report['steps']} steps: return (score)")
    shown.add_column("world")
    for context in contexts:
        shown.add_column(context, justify="right")

    def text(value: float) -> str:
        return f"{value:.0f}" + (f" ({value / yardstick:.2f})" if yardstick else "")

    cells = {(cell["suite"], cell["name"], cell["context"]): cell["return_mean"] for cell in report["cells"]}
    for suite in report["summary"][contexts[0]]["suites"]:
        for name in dict.fromkeys(world for of, world, _ in cells if of == suite):
            shown.add_row(name, *(text(cells[suite, name, context]) for context in contexts))
        shown.add_section()
        for label, key in (("mean", "return_mean"), ("interquartile mean", "return_iqm")):
            values = [report["summary"][context]["suites"][suite][key] for context in contexts]
            shown.add_row(f"[bold]{suite}: {label}", *(f"[bold]{text(value)}" for value in values))
        shown.add_section()
    captions = []
    if yardstick:
        captions.append(f"score = return / {yardstick:.0f}, the return of the data's best behaviour policy")
    if d4rl := report.get("d4rl"):
        scores = ", ".join(f"{context} {score:.1f}" for context, score in d4rl["scores"].items())
        captions.append(f"D4RL score at the original dynamics: {scores} = {d4rl['note']}")
    shown.caption = "\n".join(captions) or None
    return shown


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


def world_title(cell: Mapping[str, Any]) -> str:
    """A world's name, marked where nothing in it is changed."""
    return f"{cell['name']} (original)" if is_original(cell["perturbation"]) else str(cell["name"])
