"""A progress bar with rate and time left, for every long piece of work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

# Seconds between two lines where the output is no terminal: a log should show that the work goes on, and no more.
LINE_EVERY = 30.0

MoveBar = Callable[..., None]
"""`move(completed, note="", total=None)`: the work done so far, in the bar's units, and a note to show beside it."""


class RateColumn(ProgressColumn):
    """Units done a second."""

    def render(self, task: Task) -> Text:
        """Return the rate as text."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s")


@contextlib.contextmanager
def progress_bar(title: str, total: int | None = None, unit: str = "steps") -> Iterator[MoveBar]:
    """Show one long piece of work; yields the function that moves its bar.

    The bar appears with the first move, so that a mistake found before is answered by its one line alone. Where the
    output is no terminal, a line every 30 s stands in for it.

    Args:
        title: what is being done.
        total: the whole work, in `unit`s; None where the first move tells it.
        unit: what is counted.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=total, unit=unit, note="", visible=False)
        printed = time.monotonic()

        def move(completed: int, note: str = "", total: int | None = None) -> None:
            nonlocal printed
            progress.update(task, completed=completed, total=total, note=note, visible=True)
            if not progress.console.is_terminal and time.monotonic() - printed >= LINE_EVERY:
                printed = time.monotonic()
                progress.console.print(describe(progress.tasks[0]))

        yield move


def describe(task: Task) -> str:
    """One line about a piece of work under way: how far, how fast, how long still, and its note."""
    parts = [f"{task.description}: {task.completed:,.0f}" + (f" of {task.total:,.0f}" if task.total else "")]
    parts[0] += f" {task.fields['unit']}"
    if task.speed:
        parts.append(f"{task.speed:,.0f} {task.fields['unit']}/s")
    if task.time_remaining is not None:
        parts.append(f"{task.time_remaining:,.0f} s left")
    return ", ".join([*parts, task.fields["note"]] if task.fields["note"] else parts)
