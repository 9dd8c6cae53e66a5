"""`surefoot validate`: how a bundle does over changed dynamics, and the report of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from rich.console import Console
from rich.table import Table

from adapters.command import command
from adapters.errors import UserError
from adapters.progress import progress_bar
from deploy.bundle import Bundle, attach_validation
from deploy.controller import Controller
from deploy.signature import read_signing_key
from sim.compare import open_sources
from sim.environments import Environment, make_environment
from sim.intervals import interquartile_mean
from sim.oracle import make_oracle
from sim.pages import write_comparison, write_validation
from sim.perturb import Perturbation, load_suite
from sim.plant import BatchedPlant
from sim.rollout import EpisodeResult, run_episodes
from sim.scores import report_table, score_table
from sim.traces import Traces
from sim.wording import is_original

SCHEMA = 1
Context = Literal["nominal", "inferred", "oracle"]
CONTEXTS: tuple[Context, ...] = ("nominal", "inferred", "oracle")

# Control steps of an episode of D4RL's.
D4RL_STEPS = 1000
# Control steps within which a robot has to be back on its feet after a change.
REGAIN = 100
# Windows, in control steps, over which the context before and after a change is averaged.
BEFORE, AFTER = 50, 200
# A context that moves by less has not moved: it is kept in single precision.
STILL = 1e-4


def validate(
    bundle_path: Path,
    suites: Sequence[str | Path],
    episodes: int = 10,
    seed: int = 0,
    steps: int = 1000,
    contexts: Sequence[str] = CONTEXTS,
    threads: int = 1,
    progress: Callable[[int, int], Any] | None = None,
    watch: Callable[[Context, Sequence[tuple[str, Perturbation]], EpisodeResult], Any] | None = None,
) -> dict[str, Any]:
    """Run a bundle in every world of the suites, under every way to set its context.

    Args:
        bundle_path: the bundle's folder.
        suites: names of shipped suites, or YAML files.
        episodes: episodes in each world; their starts are the same for every world and context.
        seed: seed of the starts and of noise.
        steps: control steps in an episode.
        contexts: any of nominal, inferred and oracle; a bundle without a context has no oracle, and one that infers no
            delay and shows no caution either has nominal alone.
        threads: how many share the episodes; the result does not depend on it.
        progress: called with the control steps done so far, and with those of the whole run.
        watch: called for each context with the worlds, each with its suite's name, and all that happened in them.

    Returns:
        The validation report, as written to validation.json.

    Raises:
        UserError: the bundle does not fit its environment, or a suite, a world or a context is not known.
    """
    if min(episodes, steps, threads) < 1:
        raise UserError(f"episodes={episodes} steps={steps} threads={threads}: each must be at least 1.")
    bundle = Bundle.load(bundle_path)
    environment = _environment_of(bundle)
    chosen = _contexts_of(bundle, contexts)
    worlds = [(Path(suite).stem, world) for suite in suites for world in load_suite(suite, environment)]
    total = len(chosen) * len(worlds) * episodes * steps
    done = 0

    def stepped(lanes: int) -> None:
        nonlocal done
        done += lanes
        if progress is not None:
            progress(done, total)

    cells = []
    for context in chosen:
        result = run_episodes(
            environment,
            [world for _, world in worlds],
            functools.partial(make_controller, bundle, context),
            episodes=episodes,
            seed=seed,
            steps=steps,
            threads=threads,
            progress=stepped,
        )
        if watch is not None:
            watch(context, worlds, result)
        cells += [_cell(suite, world, context, result, index) for index, (suite, world) in enumerate(worlds)]
    return {
        "schema": SCHEMA,
        "bundle": bundle.sha256,
        "algorithm": bundle.manifest.provenance.algorithm,
        "env": environment.name,
        "episodes": episodes,
        "steps": steps,
        "seeds": [seed],
        "yardstick_return": environment.config.yardstick_return,
        "d4rl": _d4rl(environment, cells, steps),
        "cells": cells,
        "summary": {context: _summary(cells, context) for context in chosen},
    }


def _environment_of(bundle: Bundle) -> Environment:
    """Return the environment that a bundle was trained for, or refuse a bundle that does not fit it."""
    robot = bundle.manifest.robot
    environment = make_environment(bundle.manifest.env)
    for what, found, expected in (
        ("observation size", robot.obs_dim, environment.obs_dim),
        ("action size", robot.act_dim, environment.act_dim),
        ("control period in s", robot.control_dt, environment.control_dt),
    ):
        if not math.isclose(found, expected):
            raise UserError(
                f"{bundle.path}: the policy's {what} is {found}, and that of {environment.name} is {expected}; "
                "take a bundle that was made for this environment."
            )
    return environment


def _contexts_of(bundle: Bundle, contexts: Sequence[str]) -> list[Context]:
    """Return the contexts that make sense for a bundle, in the report's order."""
    if unknown := sorted(set(contexts) - set(CONTEXTS)):
        raise UserError(f"there is no context '{unknown[0]}'; choose from {', '.join(CONTEXTS)}.")
    if not contexts:
        raise UserError(f"contexts is empty; choose from {', '.join(CONTEXTS)}.")
    spec = bundle.manifest
    possible = CONTEXTS[: 1 + spec.adapts + (spec.context is not None)]
    return [context for context in possible if context in contexts] or ["nominal"]


def make_controller(bundle: Bundle, context: Context, plant: BatchedPlant) -> Controller:
    """Return the robot's own controller, one lane for each robot of the plant."""
    if context == "oracle":
        return Controller(bundle, estimator=make_oracle(plant, bundle), batch=(len(plant),))
    return Controller(bundle, context=context, batch=(len(plant),))


def _cell(suite: str, world: Perturbation, context: str, result: EpisodeResult, index: int) -> dict[str, Any]:
    """Describe what happened in one world under one context."""
    returns = result.returns[index]
    cell = {
        "name": world.name,
        "suite": suite,
        "perturbation": world.model_dump(mode="json", exclude_defaults=True),
        "context": context,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "returns": returns.tolist(),
        "length_mean": float(result.lengths[index].mean()),
        "falls": int(result.falls[index].sum()),
    }
    # From the change, or from the start; what a second change does is another matter.
    change, end = [*(world.change_steps or [0]), result.rewards.shape[-1]][:2]
    if end > change + REGAIN:
        cell["settled_reward"] = float(result.rewards[index, :, change + REGAIN : end].mean())
    if world.change_steps:
        cell["return_after_change"] = float(result.rewards[index, :, change:end].sum(-1).mean())
        if context == "inferred" and result.context is not None:
            whole = result.context[index][~result.falls[index], :end]
            cell["steps_to_90_percent"] = steps_to_90_percent(whole.mean(0), change) if len(whole) else None
    return cell


def steps_to_90_percent(trace: np.ndarray, at_step: int) -> int | None:
    """Count the steps after a change until the context has moved 90 % of its way.

    The way goes from the mean over the 50 steps before the change to the mean over the last 200 steps of the episode;
    what counts is the distance along that direction.

    Args:
        trace: `(steps, context_dim)`, the mean over a cell's whole episodes.
        at_step: the step of the change.

    Returns:
        Control steps from the change to the first step at 90 %, or None where the way is no longer than twice the
        standard deviation of the position within either window.
    """
    windows = trace[max(at_step - BEFORE, 0) : at_step], trace[max(at_step, len(trace) - AFTER) :]
    start, end = (window.mean(0) for window in windows)
    way = end - start
    length = float(np.linalg.norm(way))
    if length < STILL:
        return None
    noise = max(float((window @ way).std()) / length for window in windows)
    if length <= 2 * noise:
        return None
    share = (trace[at_step:] - start) @ way / length**2
    # A trace reaches 90 % somewhere: its last stretch is 100 % on average.
    return int(np.argmax(share >= 0.9))


def _summary(cells: list[dict[str, Any]], context: str) -> dict[str, Any]:
    """Sum one context up: over every suite, and over each."""
    mine = [cell for cell in cells if cell["context"] == context]
    suites = dict.fromkeys(cell["suite"] for cell in mine)
    return _aggregate(mine) | {
        "suites": {suite: _aggregate([cell for cell in mine if cell["suite"] == suite]) for suite in suites}
    }


def _d4rl(environment: Environment, cells: list[dict[str, Any]], steps: int) -> dict[str, Any] | None:
    """Return D4RL's scores at the original dynamics by context; None where the report has no such world or task."""
    reference = environment.config.d4rl
    originals = {cell["context"]: cell["return_mean"] for cell in cells if is_original(cell["perturbation"])}
    if reference is None or not originals or steps != D4RL_STEPS:
        return None
    scores = {context: reference.score(mean_return) for context, mean_return in originals.items()}
    return {"scores": scores, "note": environment.d4rl_note}


def _aggregate(cells: list[dict[str, Any]]) -> dict[str, float]:
    """Mean and interquartile mean of all returns of the cells."""
    returns = np.concatenate([cell["returns"] for cell in cells])
    return {"return_mean": float(returns.mean()), "return_iqm": interquartile_mean(returns)}


class Settings(BaseModel):
    """configs/validate.yaml, where the settings are explained."""

    model_config = ConfigDict(extra="forbid")

    bundle: Path | None
    compare: list[Path] | None
    suite: str | list[str]
    episodes: int
    steps: int
    seed: NonNegativeInt
    threads: int
    contexts: list[str]
    output: Path
    attach: bool
    signing_key: Path | None

    @property
    def suites(self) -> list[str]:
        """The suites, of which one may stand without brackets."""
        return [self.suite] if isinstance(self.suite, str) else self.suite


@command("validate")
def main(config: DictConfig) -> None:
    """Validate a bundle or compare several, write the numbers and the page, and print the table."""
    settings = Settings.model_validate(OmegaConf.to_container(config, throw_on_missing=True))
    if (settings.bundle is None) == (settings.compare is None):
        raise UserError("give bundle=PATH to validate one bundle, or compare=[A,B] to set several side by side.")
    if settings.compare is not None and (settings.attach or settings.signing_key):
        raise UserError("compare changes no bundle; leave out attach and signing_key, which go with bundle=PATH.")
    console = Console()
    console.print(_compare(settings, settings.compare) if settings.compare is not None else _validate_one(settings))
    console.print(f"written to {settings.output}; open report.html there in a browser", markup=False)


def _run(settings: Settings, bundle: Path, title: str, watch: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Validate one bundle under a progress bar."""
    with progress_bar(title) as move:
        return validate(
            bundle,
            settings.suites,
            episodes=settings.episodes,
            seed=settings.seed,
            steps=settings.steps,
            contexts=settings.contexts,
            threads=settings.threads,
            progress=lambda done, total: move(done, total=total),
            watch=watch,
        )


def _validate_one(settings: Settings) -> Table:
    """Validate one bundle, and return the table to print."""
    assert settings.bundle is not None
    key = read_signing_key(settings.signing_key) if settings.signing_key else None
    traces = Traces()
    report = _run(settings, settings.bundle, "validate", traces.add)
    write_validation(settings.output, settings.bundle, report, traces, _command(f"bundle={settings.bundle}", settings))
    if settings.attach:
        attach_validation(settings.bundle, report, key)
    return report_table(report)


def _compare(settings: Settings, paths: list[Path]) -> Table:
    """Validate what is a bundle, read what is a report, set all side by side, and return the table to print."""
    sources = open_sources(paths, settings.suites, settings.episodes, settings.steps, settings.seed)
    reports = {name: of.report or _run(settings, of.path, f"validate {name}") for name, of in sources.items()}
    runs = any(source.report is None for source in sources.values())
    command = _command(f"compare=[{','.join(map(str, paths))}]", settings, runs)
    section = write_comparison(settings.output, sources, reports, command)
    return score_table(section.columns, section.yardstick)


def _command(what: str, settings: Settings, runs: bool = True) -> str:
    """The command that repeats it; the settings of a run are left out where nothing is run."""
    lists = f"perturbations=[{','.join(settings.suites)}] contexts=[{','.join(settings.contexts)}]"
    run = f" {lists} episodes={settings.episodes} steps={settings.steps} seed={settings.seed}" if runs else ""
    return f"surefoot validate {what}{run} output={settings.output}"
