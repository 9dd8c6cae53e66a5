"""A progress bar with rate and time left, for every long piece of work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

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

    The bar appears with the first move, so that a mistake found before is answered by its one line alone.

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

        def move(completed: int, note: str = "", total: int | None = None) -> None:
            progress.update(task, completed=completed, total=total, note=note, visible=True)

        yield move
