"""`surefoot bench name=study`: several ways to train, compared over seeds, as a file of configs/study lays them out.

A study is a grid: every value of every factor adds its settings to those that all trainings share. Each command runs in
a process of its own and once, so that an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.console import Group, RenderableType
from rich.table import Table
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]

from adapters.progress import MoveBar
from offline_train.commands import Piece, run_all
from offline_train.learning_curves import Curves, align, curves_table, draw
from offline_train.metrics import evaluations
from sim.intervals import mean_interval

PLACE = re.compile(r"<(\w+)>")
# Share of a training whose evaluations, the last ones, are averaged.
LAST = 0.1

CAPTION = (
    "mean of the deterministic policy's evaluations in the last tenth of the training, with Student's 95 % interval "
    "over training seeds\nminutes: of a training, evaluations included, without the fit of a prior and pretraining"
)


class Study(BaseModel):
    """A file of configs/study.

    `<folder>`, `<seed>` and `<FACTOR>` in commands and settings stand for the study's folder, the training seed and the
    factor's value.

    Attributes:
        name: by which it is chosen.
        title: what is compared, in words.
        seeds: of the trainings.
        prepare: what is made first, in this order: words after `surefoot` by the name of the output in the study's
            folder. One that names factors or the seed is made for every value of them.
        train: settings that all trainings share.
        factors: by name the values, and what settings each adds.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    title: str
    seeds: list[int] = Field(min_length=1)
    prepare: dict[str, list[str]]
    train: list[str]
    factors: dict[str, dict[str, list[str]]] = Field(min_length=1)

    @model_validator(mode="after")
    def _places_are_known_and_told_apart(self) -> Study:
        settings = itertools.chain(*(values.values() for values in self.factors.values()))
        everything = " ".join(itertools.chain(self.train, *settings, self.prepare, *self.prepare.values()))
        known = {"folder", "seed", *self.factors}
        if unknown := {*PLACE.findall(everything)} - known:
            raise ValueError(f"<{min(unknown)}> is none of {', '.join(sorted(known))}")
        for name, command in self.prepare.items():
            if unnamed := {*PLACE.findall(" ".join(command))} - {"folder", *PLACE.findall(name)}:
                raise ValueError(f"prepare.{name} differs by <{min(unnamed)}>; its name has to, too")
        return self


@dataclass(frozen=True)
class Grid:
    """A study in a folder.

    Attributes:
        study: what is compared.
        seeds: of the trainings.
        folder: for everything that is made.
    """

    study: Study
    seeds: Sequence[int]
    folder: Path

    @property
    def cells(self) -> list[dict[str, str]]:
        """The value of every factor, by name, for each row of the table."""
        return [*self._values([*self.study.factors])]

    def _values(self, names: Sequence[str]) -> Iterator[dict[str, str]]:
        values_of = {name: [*values] for name, values in self.study.factors.items()}
        values_of["seed"] = [str(seed) for seed in self.seeds]
        for values in itertools.product(*(values_of[name] for name in names)):
            yield dict(zip(names, values, strict=True))

    def prepared(self, name: str) -> list[Piece]:
        """The commands of one line of `prepare`."""
        named = dict.fromkeys(PLACE.findall(name))
        return [self._piece(name, self.study.prepare[name], places) for places in self._values([*named])]

    def training(self, cell: Mapping[str, str], seed: int) -> Piece:
        """The training of a cell with a seed."""
        chosen = itertools.chain(*(self.study.factors[name][value] for name, value in cell.items()))
        words = ["train", *self.study.train, *chosen, f"seed={seed}"]
        return self._piece("-".join([*cell.values(), str(seed)]), words, {**cell, "seed": str(seed)})

    def _piece(self, name: str, words: Sequence[str], places: Mapping[str, str]) -> Piece:
        known = {"folder": str(self.folder), **places}

        def filled(text: str) -> str:
            return PLACE.sub(lambda place: known[place[1]], text)

        output = self.folder / filled(name)
        return Piece(output, [*map(filled, words), f"output={output}"])


def run_study(grid: Grid, workers: int, move: MoveBar) -> dict[str, Any]:
    """Run what is not done, and return the figures as JSON.

    Args:
        grid: the study, its seeds and its folder.
        workers: commands side by side.
        move: moves a progress bar that counts commands.

    Raises:
        UserError: a command fails, or a training was never evaluated or has diverged.
    """
    stages = [grid.prepared(name) for name in grid.study.prepare]
    stages.append([grid.training(cell, seed) for seed in grid.seeds for cell in grid.cells])
    move(0, total=sum(map(len, stages)))
    done = 0
    for stage in stages:
        run_all(stage, workers, move, done)
        done += len(stage)
    return {
        "study": grid.study.name,
        "title": grid.study.title,
        "factors": [*grid.study.factors],
        "seeds": [*grid.seeds],
        "prepare": [" ".join(["surefoot", *piece.words]) for stage in stages[:-1] for piece in stage],
        "rows": [row_figures(grid, cell) for cell in grid.cells],
    }


def row_figures(grid: Grid, cell: Mapping[str, str]) -> dict[str, Any]:
    """What the trainings of a cell reached, seed by seed."""
    pieces = [grid.training(cell, seed) for seed in grid.seeds]
    lines = [evaluations(piece.output) for piece in pieces]
    online, figure = "control_steps" in lines[0][0], "success" if "success" in lines[0][0] else "return"
    return {
        **cell,
        "updates": lines[0][-1]["step"],
        "counted": "control steps" if online else "updates",
        "figure": figure,
        "last": [mean_of_last(each, figure) for each in lines],
        "minutes": [minutes(piece.output) for piece in pieces],
        "steps": [[line["control_steps" if online else "step"] for line in each] for each in lines],
        "minutes_then": [
            minutes_at(piece.output, [line["step"] for line in each]) for piece, each in zip(pieces, lines, strict=True)
        ],
        "values": [[line[figure] for line in each] for each in lines],
        "command": " ".join(["surefoot", *pieces[0].words]),
    }


def mean_of_last(lines: Sequence[Mapping[str, Any]], figure: str) -> float:
    """Mean figure of the evaluations in the last tenth of a training."""
    whole = lines[-1]["step"]
    return float(np.mean([line[figure] for line in lines if line["step"] > (1 - LAST) * whole]))


def minutes(run: Path) -> float:
    """Wall time between the first and the last figures of a run, which a break does not add to."""
    return max((passed for passed, _ in _clocked(run)), default=0.0)


def minutes_at(run: Path, steps: Sequence[int]) -> list[float]:
    """Wall time until the returns at `steps`, counted as `minutes` counts it."""
    known = {
        event.step: passed
        for passed, event in _clocked(run)
        if any(value.tag == "policy/return" for value in event.summary.value)
    }
    # A run that was killed may have lost the last minutes of what it told TensorBoard, or all of it.
    if not known:
        return [minutes(run)] * len(steps)
    return [float(each) for each in np.interp(steps, sorted(known), [known[step] for step in sorted(known)])]


def _clocked(run: Path) -> Iterator[tuple[float, Any]]:
    """What a run told TensorBoard, each with the minutes of work until then."""
    # A call that was killed at once leaves an empty file.
    calls = [[*EventFileLoader(str(file)).Load()] for file in (run / "tensorboard").glob("events.*")]
    seconds = 0.0
    for call in sorted(filter(None, calls), key=lambda events: events[0].wall_time):
        began = call[0].wall_time
        for event in call:
            yield (seconds + event.wall_time - began) / 60, event
        seconds += call[-1].wall_time - began


def study_tables(report: dict[str, Any]) -> RenderableType:
    """Lay out for the terminal what was reached last, and for trainings in the simulator the way there."""
    rows = report["rows"]
    figure = rows[0]["figure"]
    ways = [curves_table(title, figure, curves) for title, curves in panels(report).items()]
    return Group(last_table(report), *(ways if rows[0]["counted"] == "control steps" else []))


def last_table(report: dict[str, Any]) -> Table:
    """What was reached last, with Student's intervals over training seeds."""
    rows, factors = report["rows"], report["factors"]
    form = "{:.2f}" if rows[0]["figure"] == "success" else "{:,.0f}"
    table = Table(title=report["title"], caption=CAPTION, caption_justify="left")
    for name in factors:
        table.add_column(name)
    for title in ("updates", rows[0]["figure"], "by seed", "minutes"):
        table.add_column(title, justify="right")
    for row in rows:
        found = mean_interval(np.array(row["last"]))
        span = "" if math.isnan(found.low) else f" ({form.format(found.low)} to {form.format(found.high)})"
        reached = [form.format(found.point) + span, ", ".join(map(form.format, row["last"]))]
        cells = [*(row[name] for name in factors), f"{row['updates']:,}", *reached]
        table.add_row(*cells, f"{np.mean(row['minutes']):.1f}")
    return table


def study_figure(report: dict[str, Any], path: Path) -> None:
    """Draw the curves of a study, for trainings in the simulator against wall time too.

    Raises:
        UserError: the place cannot be written.
    """
    first = report["rows"][0]
    along = {first["counted"]: panels(report)}
    if first["counted"] == "control steps":
        along["minutes, evaluations included, pretraining not"] = panels(report, "minutes_then")
    draw(along, first["figure"], path)


def panels(report: dict[str, Any], steps: str = "steps") -> dict[str, dict[str, Curves]]:
    """The curves of the last factor's values, by name, for every choice of the other factors.

    Args:
        report: figures of a study.
        steps: what the figure is laid against, `steps` or `minutes_then`.
    """
    *others, last = report["factors"]
    found: dict[str, dict[str, Curves]] = {}
    for row in report["rows"]:
        title = ", ".join(row[name] for name in others) or report["title"]
        found.setdefault(title, {})[row[last]] = align(row[steps], row["values"])
    return found
