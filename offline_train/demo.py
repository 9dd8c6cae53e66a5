"""`surefoot demo`: the whole job on HalfCheetah, one stage after another; each reads what the last one wrote."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from adapters.command import command
from adapters.errors import UserError
from adapters.files import read_json, read_jsonl, write_json
from adapters.progress import progress_bar
from deploy.bundle import Bundle, attach_validation
from offline_train.export import export
from sim.environments import make_environment
from sim.figure import figure
from sim.perturb import load_suite
from sim.report import write_demo
from sim.scores import Column, Section, comparisons, score_table
from sim.validate import CONTEXTS, validate

ALGORITHMS = ("mopo", "augwm")
STEPS = 1_000
FULL_RUN = Path(__file__).resolve().parent.parent / "results" / "halfcheetah-mixed"


class DemoConfig(BaseModel):
    """Settings of the demo; configs/demo.yaml says what each means."""

    model_config = ConfigDict(extra="forbid")

    output: Path
    seeds: list[int] = Field(min_length=1)
    updates: int = Field(ge=1)
    ensemble_steps: int = Field(ge=1)
    episodes: int = Field(ge=1)
    suites: list[str] = Field(min_length=1)
    processes: int = Field(ge=1)


def demo(config: DemoConfig) -> Path:
    """Run every stage; returns the report's path."""
    start = time.monotonic()
    runs = [(algorithm, seed) for seed in config.seeds for algorithm in ALGORITHMS]
    fit = {world_model_folder(config): world_model_command(config)}
    train_all(config, "world model", fit, config.ensemble_steps)
    policies = {run_folder(config, *run): policy_command(config, *run) for run in runs}
    train_all(config, "MOPO and AugWM", policies, config.updates)
    for algorithm, seed in runs:
        export_once(config, algorithm, seed)
        validate_once(config, algorithm, seed)
    return report(config, time.monotonic() - start)


def world_model_folder(config: DemoConfig) -> Path:
    """Where the world model lies that all policies are trained in."""
    return config.output / "world-model"


def run_folder(config: DemoConfig, algorithm: str, seed: int) -> Path:
    """Where the training run of one policy lies."""
    return config.output / f"{algorithm}-{seed}"


def bundle_path(config: DemoConfig, algorithm: str, seed: int) -> Path:
    """Where the bundle of one policy lies."""
    return config.output / f"{algorithm}-{seed}.bundle"


def world_model_command(config: DemoConfig) -> list[str]:
    """The command that fits the world model."""
    return [
        "train",
        "algorithm=none",
        f"seed={config.seeds[0]}",
        f"ensemble.max_steps={config.ensemble_steps}",
        f"output={world_model_folder(config)}",
        "threads=2",
        "resume=true",
    ]


def policy_command(config: DemoConfig, algorithm: str, seed: int) -> list[str]:
    """The command that trains a policy."""
    return [
        "train",
        f"algorithm={algorithm}",
        f"algorithm.updates={config.updates}",
        f"seed={seed}",
        f"ensemble.max_steps={config.ensemble_steps}",
        f"world_model={world_model_folder(config)}",
        f"output={run_folder(config, algorithm, seed)}",
        "resume=true",
    ]


def train_all(config: DemoConfig, title: str, work: dict[Path, list[str]], steps: int) -> None:
    """Run training commands, `processes` at a time, under one progress bar.

    Args:
        config: settings.
        title: what is trained.
        work: the command of every run, by its folder.
        steps: gradient steps of one run.

    Raises:
        UserError: one of them failed.
    """
    stop = threading.Event()
    with progress_bar(title, steps * len(work)) as move, ThreadPoolExecutor(config.processes) as pool:
        running = [pool.submit(run_command, folder, command, stop) for folder, command in work.items()]
        try:
            while wait(running, timeout=1.0, return_when=FIRST_EXCEPTION).not_done:
                move(sum(steps_done(folder) for folder in work))
                if any(run.done() and run.exception() for run in running):
                    break
        finally:
            stop.set()
        for run in running:
            run.result()
        move(steps * len(work))


def steps_done(folder: Path) -> int:
    """Gradient steps that a run has behind it, by its own log."""
    return max((line["step"] for line in read_jsonl(folder / "metrics.jsonl")), default=0)


def run_command(folder: Path, command: list[str], stop: threading.Event) -> None:
    """Run one command to its end, its output in `train.log` beside the run; end it early where `stop` is set.

    Raises:
        UserError: it failed; the message holds its last line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "surefoot", *command], stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if stop.wait(0.5):
                process.terminate()
                process.wait()
    if process.returncode:
        lines = (folder / "train.log").read_text().strip().splitlines() or ["it printed nothing"]
        raise UserError(f"'surefoot {' '.join(command)}' failed: {lines[-1]} (all of it: {folder / 'train.log'})")


def export_once(config: DemoConfig, algorithm: str, seed: int) -> None:
    """Export a run, unless its bundle is there."""
    bundle = bundle_path(config, algorithm, seed)
    if not bundle.is_dir():
        export(run_folder(config, algorithm, seed), bundle)


def validation_path(config: DemoConfig, algorithm: str, seed: int) -> Path:
    """Where the validation report of one bundle lies."""
    return config.output / "validation" / f"{algorithm}-{seed}.json"


def validate_once(config: DemoConfig, algorithm: str, seed: int) -> None:
    """Validate a bundle over the suites, unless the report is there and is of this bundle and these settings."""
    bundle, path = bundle_path(config, algorithm, seed), validation_path(config, algorithm, seed)
    if path.is_file() and is_current(read_json(path), bundle, config):
        return
    with progress_bar(f"validate {algorithm}, seed {seed}") as move:
        report = validate(
            bundle,
            config.suites,
            config.episodes,
            steps=STEPS,
            contexts=["nominal"] if algorithm == "mopo" else CONTEXTS,  # MOPO is the baseline that does not adapt
            threads=2,
            progress=lambda done, total: move(done, total=total),
        )
    write_json(path, report)
    attach_validation(bundle, report)


def is_current(report: dict[str, Any], bundle: Path, config: DemoConfig) -> bool:
    """Whether a validation report is of this bundle, these worlds and as many episodes."""
    environment = make_environment(report["env"])
    worlds = [world for suite in config.suites for world in load_suite(suite, environment)]
    wanted = [world.model_dump(mode="json", exclude_defaults=True) for world in worlds]
    found = [cell["perturbation"] for cell in report["cells"] if cell["context"] == "nominal"]
    known = (report["bundle"], report["episodes"], found)
    return known == (Bundle.load(bundle).sha256, config.episodes, wanted)


def columns(folder: Path, seeds: list[int]) -> list[Column]:
    """The report's columns from the validation reports under a folder."""
    reports = {
        algorithm: [read_json(folder / "validation" / f"{algorithm}-{seed}.json") for seed in seeds]
        for algorithm in ALGORITHMS
    }
    return [
        Column("MOPO", reports["mopo"], "nominal"),
        Column("AugWM nominal", reports["augwm"], "nominal"),
        Column("AugWM inferred", reports["augwm"], "inferred"),
        Column("oracle", reports["augwm"], "oracle"),
    ]


def section(folder: Path, title: str) -> tuple[Section, dict[str, Any]]:
    """One set of results as the report takes it, and what is known of how it was made."""
    record = read_json(folder / "demo.json")
    settings = record["config"]
    made_of = columns(folder, settings["seeds"])
    yardstick = made_of[0].reports[0]["yardstick_return"]
    count = len(settings["seeds"])
    about = (
        f"{count} training seed{'s' if count > 1 else ''}, {settings['updates']:,} updates of each policy, "
        f"{settings['episodes']} episodes in every world"
    )
    details = {
        "world_models": [read_json(folder / "world_model.json")],
        "provenance": {key: value for key, value in record.items() if key != "config"},
        "commands": [
            "surefoot demo "
            + " ".join(
                f"{name}={str(settings[name]).replace(' ', '')}"
                for name in ("seeds", "updates", "ensemble_steps", "suites")
            )
            + f" episodes={settings['episodes']}"
        ],
    }
    return Section(title, about, made_of, yardstick, comparisons(made_of)), details


def report(config: DemoConfig, seconds: float) -> Path:
    """Write the record, the figure and the page, and print the table; returns the page's path."""
    record_once(config, seconds)
    made = [section(config.output, "this run")]
    if FULL_RUN.is_dir() and config.output.resolve() != FULL_RUN:
        made.append(section(FULL_RUN, "full run"))
    sections = [part for part, _ in made]
    picture, page = config.output / "report.png", config.output / "report.html"
    figure(picture, sections)
    write_demo(page, sections, {part.title: details for part, details in made})
    console = Console()
    for part in sections:
        console.print(score_table(part.columns, part.yardstick, title=f"{part.title}: {part.about}"))
    return page


def record_once(config: DemoConfig, seconds: float) -> None:
    """Keep what the results are a function of, and the time that they took when they were made."""
    write_json(config.output / "world_model.json", read_json(world_model_folder(config) / "world_model.json"))
    path, settings = config.output / "demo.json", config.model_dump(mode="json", exclude={"output", "processes"})
    if path.is_file() and read_json(path)["config"] == settings:
        return
    run = read_json(run_folder(config, ALGORITHMS[-1], config.seeds[0]) / "run.json")
    write_json(
        path,
        {
            "config": settings,
            "wall time of the call that finished it": f"{seconds / 60:.0f} minutes",
            "data set": run["dataset"],
            "commit": run["commit"],
            "versions": run["versions"],
            "algorithms": {
                name: read_json(run_folder(config, name, config.seeds[0]) / "run.json")["config"]["algorithm"]
                for name in ALGORITHMS
            },
        },
    )


@command("demo")
def main(config: DictConfig) -> None:
    """The command line's entry."""
    page = demo(DemoConfig.model_validate(OmegaConf.to_container(config, resolve=True)))
    print(f"open {page} in a browser; the figure alone is {page.with_suffix('.png')}")
