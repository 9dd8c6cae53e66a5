"""Returns of finished training runs, over seeds: `python -m offline_train.returns FOLDER...`.

Offline runs make a table of what they learned from by algorithm; each figure is the mean of a run's last evaluations,
over the seeds with its 95 % interval. Runs in the simulator make one of the return after so many control steps.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from adapters.command import module_command
from adapters.errors import UserError
from adapters.files import read_json, read_jsonl
from sim.intervals import mean_interval

# Evaluations at the end of an offline run that are averaged.
LAST = 5
SHARES = (0.1, 0.25, 0.5, 1.0)


class Returns(NamedTuple):
    """What a run reached.

    Attributes:
        algorithm: its name, and its networks where they are no usual ones.
        learned_from: the log in words, or the environment for a run in the simulator.
        online: whether it is one.
        seed: of the run.
        steps: gradient steps, in the simulator control steps, at which it was evaluated.
        values: the returns there.
    """

    algorithm: str
    learned_from: str
    online: bool
    seed: int
    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        """The mean of the last evaluations."""
        return float(self.values[-LAST:].mean())


def read_returns(folder: Path) -> Returns:
    """Read what a run left.

    Raises:
        UserError: it is no run, or was never evaluated in the simulator.
    """
    record = read_json(folder / "run.json")
    config = record["config"]
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if line.get("return") is not None]
    if not lines:
        raise UserError(f"{folder} has no evaluations in the simulator; train with evaluation_episodes above 0.")
    steps = np.array([line["step"] for line in lines])
    settings, online = config["algorithm"], config["dataset"]["path"] is None
    if online:
        acted = settings["steps_per_update"] * -(-steps // settings.get("updates_per_step", 1))
        steps = settings["random_steps"] + acted
    values = np.array([line["return"] for line in lines])
    return Returns(_algorithm(settings), _learned_from(record), online, config["seed"], steps, values)


def _algorithm(settings: Mapping[str, Any]) -> str:
    """The algorithm in words: its name, its networks where TD3+BC and IQL have larger ones, REDQ's critics and pace."""
    name, hidden = settings["name"], settings.get("hidden")
    if hidden is not None and hidden != [256, 256]:
        return f"{name} {len(hidden)}x{hidden[0]}"
    if "policy_delay" in settings and "critics" in settings:
        return f"{name}, {settings['critics']} critics, {settings['updates_per_step']} updates a step"
    return str(name)


def _learned_from(record: Mapping[str, Any]) -> str:
    """The log in words: its name, how many rows of it, and what was drawn from a model of it."""
    dataset, config = record["dataset"], record["config"]["dataset"]
    if config["path"] is None:
        return str(dataset["env"])
    words = f"{config['name']}, {dataset['rows']:,} rows"
    if (synthetic := dataset.get("synthetic")) is None:
        return f"{words}: real"
    made_by = synthetic["made_by"]["config"]
    condition = made_by.get("condition")
    asked = f" ({condition['name']} {condition['low']:g} to {condition['high']:g})" if condition else ""
    real = f", {config['real_fraction']:.0%} real" if config["real_fraction"] else ""
    return f"{words}: {made_by['method']['name']}{asked}, {synthetic['rows']:,}{real}"


def interval(values: Sequence[float]) -> str:
    """Mean over seeds and Student's 95 % interval of it, in words; the mean alone for one seed."""
    found = mean_interval(np.array(values))
    span = "one seed" if len(values) < 2 else f"{found.low:,.0f} to {found.high:,.0f}"
    return f"{found.point:,.0f} ({span})"


def offline_table(runs: Sequence[Returns]) -> Table:
    """What was learned from by algorithm: mean returns of the last evaluations over seeds."""
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        cells[run.learned_from, run.algorithm].append(run.last)
    algorithms = sorted({algorithm for _, algorithm in cells})
    table = Table("learned from", *algorithms, title="mean return of the last evaluations, 95 % over seeds")
    for source in dict.fromkeys(run.learned_from for run in runs):
        found = [cells.get((source, algorithm)) for algorithm in algorithms]
        table.add_row(source, *("" if values is None else interval(values) for values in found))
    return table


def online_table(runs: Sequence[Returns]) -> Table:
    """The return after shares of the control steps, over seeds; of each run the evaluation nearest to that step."""
    table = Table("environment, algorithm", "control steps", *(f"after {share:.0%}" for share in SHARES))
    groups: dict[tuple[str, str], list[Returns]] = defaultdict(list)
    for run in runs:
        groups[run.learned_from, run.algorithm].append(run)
    for (environment, algorithm), group in groups.items():
        whole = max(int(run.steps[-1]) for run in group)
        found = [[float(run.values[np.abs(run.steps - share * whole).argmin()]) for run in group] for share in SHARES]
        table.add_row(f"{environment}, {algorithm}", f"{whole:,}", *map(interval, found))
    return table


@module_command
def main(words: list[str]) -> None:
    """Print the tables."""
    console = Console(width=160, highlight=False)
    if not words:
        raise UserError("give the folders of finished runs, as in python -m offline_train.returns outputs/td3-bc-*.")
    runs = [read_returns(Path(folder)) for folder in words]
    for kind, table in ((False, offline_table), (True, online_table)):
        chosen = [run for run in runs if run.online == kind]
        if chosen:
            console.print(table(chosen))


if __name__ == "__main__":
    sys.exit(main())
