"""`surefoot bench`: speeds beside others', estimators and penalties compared, and how a running stack takes faults."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console, RenderableType
from rich.table import Table

from adapters.command import command
from adapters.errors import UserError
from adapters.files import write_json
from adapters.progress import MoveBar, progress_bar
from deploy.bundle import Bundle
from offline_train.bench_algorithms import Budget, Comparison, Log, algorithms_figure, algorithms_table, compare
from offline_train.bench_cases import SPEED_CAPTION, SPEED_CASES, Case, Work, speed_cases, untrained_bundle
from offline_train.bench_diffusion import DIFFUSION_CAPTION, DIFFUSION_CASES, diffusion_cases
from offline_train.bench_priors import bench_priors, prior_figure, prior_table
from offline_train.bench_study import Grid, Study, run_study, study_figure, study_tables
from offline_train.calibration import calibrate, calibration_figure, calibration_table
from offline_train.priors.fit import FITS
from sim.context_sweep import sweep, variants_for
from sim.context_sweep import table as context_table
from sim.endurance import Endurance, at_rate, endurance_table, endure
from sim.fault_injection import FAULTS, RATE, fault_table, inject_all
from sim.fault_rig import Transport

SCHEMA = 1
WARM_UP = 0.1
SEEDS = [0, 1, 2]


class Benchmark(NamedTuple):
    """Cases, how many they are, and what the table says below itself.

    Attributes:
        cases: makes them, one after another, in an empty folder.
        total: how many there are.
        caption: what the lines of the table mean.
    """

    cases: Callable[[Path], Iterator[Case]]
    total: int
    caption: str


BENCHMARKS = {
    "speed": Benchmark(speed_cases, SPEED_CASES, SPEED_CAPTION),
    "diffusion": Benchmark(diffusion_cases, DIFFUSION_CASES, DIFFUSION_CAPTION),
}


class BenchConfig(BaseModel):
    """Settings; configs/bench.yaml says what each means."""

    model_config = ConfigDict(extra="forbid")

    name: str
    json_file: Path | None = Field(alias="json")
    effort: float = Field(gt=0, le=10)
    bundle: Path | None
    suites: list[str] = Field(min_length=1)
    episodes: int = Field(ge=1)
    transport: Literal["ros2", "lcm", "both"] | None
    hz: float = Field(gt=0, le=1000)
    minutes: float = Field(gt=0, allow_inf_nan=False)
    benchmark: Log
    budget: Budget
    study: Study | None = None
    algorithms: list[str] | None
    seeds: list[int] | None = Field(min_length=1)
    workers: int = Field(ge=1)
    output: Path | None
    run: Path | list[Path] | None
    starts: int = Field(ge=2)
    members: int | None = Field(ge=1)


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure every case of a benchmark and return the figures as JSON.

    Raises:
        UserError: there is no such benchmark.
    """
    if config.name not in BENCHMARKS:
        raise UserError(f"there is no benchmark '{config.name}'; choose one of {', '.join(REPORTS)}.")
    torch.set_num_threads(1)
    benchmark = BENCHMARKS[config.name]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, progress_bar("bench", benchmark.total, "cases") as move:
        for case in benchmark.cases(Path(folder)):
            move(len(rows), case.name)
            rows.append(measure(case, config.effort))
        move(len(rows))
    return {"schema": SCHEMA, "name": config.name, "threads": 1, "machine": machine(), "rows": rows}


def machine() -> dict[str, Any]:
    """What the figures depend on, without naming the machine."""
    packages = ("torch", "numpy", "mujoco", "onnxruntime")
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def measure(case: Case, effort: float = 1.0) -> dict[str, Any]:
    """Measure a case and its plain counterpart, and return their line of the report.

    They take turns, so that another program on the machine slows either as much. A latency is the time of one call,
    a speed that of a whole repeat.
    """
    sides = {"ours": case.ours, "plain": case.plain}
    for work in sides.values():
        work(WARM_UP * effort)
    figures = _latencies(sides, case, effort) if case.latency else _speeds(sides, case, effort)
    return {"name": case.name, **figures, "peer": None if case.peer is None else case.peer._asdict()}


def _speeds(sides: dict[str, Work], case: Case, effort: float) -> dict[str, Any]:
    """Units a second: the best repeat and the median."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(case.repeats):
        for name, work in sides.items():
            start = time.perf_counter()
            units = work(effort)
            found[name].append(units / (time.perf_counter() - start))
    best = {name: max(speeds) for name, speeds in found.items()}
    median = {name: statistics.median(speeds) for name, speeds in found.items()}
    return {"unit": f"{case.unit}/s", "best": best, "median": median, "ratio": best["ours"] / best["plain"]}


def _latencies(sides: dict[str, Work], case: Case, effort: float) -> dict[str, Any]:
    """Microseconds of one call: the median and the 99th percentile."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(max(round(case.repeats * effort), 2)):
        for name, work in sides.items():
            start = time.perf_counter_ns()
            work(0.0)
            spent[name].append((time.perf_counter_ns() - start) / 1e3)
    p50, p99 = ({name: float(np.percentile(times, q)) for name, times in spent.items()} for q in (50, 99))
    return {"unit": "us", "p50": p50, "p99": p99, "ratio": p50["plain"] / p50["ours"]}


def context_sweep(config: BenchConfig) -> dict[str, Any]:
    """Compare context estimators and their settings on one bundle and return the figures as JSON.

    Raises:
        UserError: no bundle is given, or its policy reads no context.
    """
    if config.bundle is None:
        raise UserError("name=context compares estimators on a policy; give the bundle of one, bundle=PATH.")
    bundle = Bundle.load(config.bundle)
    variants = variants_for(bundle)
    with progress_bar("context sweep", len(variants), "variants") as move:
        move(0)
        rows = sweep(bundle, config.suites, config.episodes, 0, variants, threads=2, progress=move)
    return {
        "schema": SCHEMA,
        "name": "context",
        "bundle": bundle.sha256,
        "suites": config.suites,
        "episodes": config.episodes,
        "rows": rows,
    }


def fault_injection(config: BenchConfig) -> dict[str, Any]:
    """Put every fault into a stack over real transports and return what the robot got as JSON."""
    both: tuple[Transport, ...] = ("ros2", "lcm")
    transports = [transport for transport in both if config.transport in (None, "both", transport)]
    total = sum(transport in fault.transports for transport in transports for fault in FAULTS)
    with progress_bar("faults", total, "faults") as move:
        rows = inject_all(transports, move)
    return {"schema": SCHEMA, "name": "faults", "hz": RATE, "machine": machine(), "rows": [asdict(row) for row in rows]}


def endurance(config: BenchConfig) -> dict[str, Any]:
    """Keep a controller of full size at a rate and return how well that went as JSON.

    Raises:
        UserError: that transport has no node to run in, or the node does not start.
    """
    if config.transport not in (None, "ros2"):
        raise UserError(f"name=rate has no transport={config.transport}; give ros2, or none to run in process alone.")
    places = [False, True] if config.transport == "ros2" else [False]
    seconds, rows = 60.0 * config.minutes, list[Endurance]()
    steps = round(seconds * config.hz)
    with tempfile.TemporaryDirectory() as folder, progress_bar("rate", len(places) * steps, "steps") as move:
        original = untrained_bundle("augwm", Path(folder))
        bundle = at_rate(original, Path(folder) / "rate.bundle", config.hz)
        for through_ros2 in places:
            moved = partial(_move_on, move, len(rows) * steps)
            rows.append(endure(bundle, seconds, Path(folder) / f"logs{len(rows)}", through_ros2, moved))
    figures = {"hz": config.hz, "minutes": config.minutes, "machine": machine()}
    return {"schema": SCHEMA, "name": "rate", **figures, "rows": [asdict(row) for row in rows]}


def calibration(config: BenchConfig) -> dict[str, Any]:
    """Compare every uncertainty penalty with the true error of a world model and return the figures as JSON.

    With a file for the figures a picture of them is drawn beside it.

    Raises:
        UserError: no run is given, or it has no world model.
    """
    if config.run is None:
        raise UserError("name=calibration rolls the policy of a run out in its world model; give one, run=FOLDER.")
    torch.set_num_threads(1)
    runs = config.run if isinstance(config.run, list) else [config.run]
    with progress_bar("calibration", len(runs), "runs") as move:
        move(0)
        figures = calibrate(runs, config.starts, config.members, 0, move)
    given = config.model_dump(mode="json", include={"run", "starts", "members"})
    arguments = [f"{key}={_as_given(value)}" for key, value in given.items() if value is not None]
    report = {
        "schema": SCHEMA,
        "name": "calibration",
        "config": given | {"seed": 0},
        "command": f"surefoot bench name=calibration {' '.join(arguments)}",
        "machine": machine(),
        **figures,
    }
    if config.json_file is not None:
        calibration_figure(report, config.json_file.with_suffix(".png"))
    return report


def _as_given(value: Any) -> str:
    """A setting as the command line takes it."""
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)


def priors(config: BenchConfig) -> dict[str, Any]:
    """Fit every prior to demonstrations and return what it says near them and far from them as JSON.

    Beside the JSON, where one is asked for, goes the picture, NAME.png.
    """
    torch.set_num_threads(1)
    with progress_bar("priors", len(FITS), "priors") as move:
        rows = bench_priors(config.effort, move)
    report = {"schema": SCHEMA, "name": "priors", "effort": config.effort, "machine": machine(), "rows": rows}
    if config.json_file is not None:
        prior_figure(report, config.json_file.with_suffix(".png"))
    return report


def _move_on(move: MoveBar, before: int, done: int) -> None:
    move(before + done)


def offline_algorithms(config: BenchConfig) -> dict[str, Any]:
    """Train every offline algorithm on one log, as far as that is not done, and return the table as JSON.

    With a file for the figures a picture of them is drawn beside it.
    """
    names = config.algorithms or [*config.budget.algorithms]
    folder = (config.output or Path("outputs/algorithms")) / f"{config.benchmark.name}-{config.budget.name}"
    comparison = Comparison(config.benchmark, config.budget, names, config.seeds or SEEDS, folder)
    with progress_bar("algorithms", unit="trainings") as move:
        figures = compare(comparison, config.workers, move)
    report = {"schema": SCHEMA, "name": "algorithms", "machine": machine(), **figures}
    if config.json_file is not None:
        algorithms_figure(report, config.json_file.with_suffix(".png"))
    return report


def study(config: BenchConfig) -> dict[str, Any]:
    """Run a study, as far as that is not done, and return its figures as JSON.

    With a file for the figures their curves are drawn beside it.

    Raises:
        UserError: no study is chosen.
    """
    if config.study is None:
        raise UserError("name=study runs a file of configs/study; choose one, study=NAME.")
    folder = (config.output or Path("outputs/studies")) / config.study.name
    grid = Grid(config.study, config.seeds or config.study.seeds, folder)
    with progress_bar(config.study.name, unit="commands") as move:
        figures = run_study(grid, config.workers, move)
    report = {"schema": SCHEMA, "name": "study", "machine": machine(), **figures}
    if config.json_file is not None:
        study_figure(report, config.json_file.with_suffix(".png"))
    return report


def speed_table(report: dict[str, Any]) -> Table:
    """Lay the speeds out for the terminal."""
    table = Table(title="Speeds on one thread", caption=BENCHMARKS[report["name"]].caption, caption_justify="left")
    table.add_column("work")
    for title in ("Surefoot", "plain", "ratio", "peer"):
        table.add_column(title, justify="right")
    for row in report["rows"]:
        first, second = ("p50", "p99") if row["unit"] == "us" else ("best", "median")
        cells = [f"{row[first][side]:,.0f} ({row[second][side]:,.0f})" for side in ("ours", "plain")]
        peer = row["peer"]
        published = "" if peer is None else f"{peer['name']} {peer['speed']:,}"
        table.add_row(f"{row['name']}, {row['unit']}", *cells, f"{row['ratio']:.1f}x", published)
    return table


REPORTS: dict[str, tuple[Callable[[BenchConfig], dict[str, Any]], Callable[[dict[str, Any]], RenderableType]]] = {
    "speed": (bench, speed_table),
    "diffusion": (bench, speed_table),
    "context": (context_sweep, lambda report: context_table(report["rows"])),
    "faults": (fault_injection, lambda report: fault_table(report["rows"])),
    "rate": (endurance, endurance_table),
    "algorithms": (offline_algorithms, algorithms_table),
    "calibration": (calibration, calibration_table),
    "priors": (priors, prior_table),
    "study": (study, study_tables),
}
"""What each name makes and how it is shown."""


@command("bench")
def main(config: DictConfig) -> None:
    """The command line's entry."""
    settings = BenchConfig.model_validate(OmegaConf.to_container(config, resolve=True))
    # An unknown name is for `bench` to refuse.
    make, table = REPORTS.get(settings.name, REPORTS["speed"])
    report = make(settings)
    if settings.json_file is not None:
        write_json(settings.json_file, report)
    Console().print(table(report))
