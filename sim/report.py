"""The pages that a person opens at the end: one HTML file each, which needs neither a network nor another file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from adapters.files import atomic_path
from sim.charts import Scale, bars, difference_scale, heat_maps, interval_text, line_charts, score_scale
from sim.environments import make_environment
from sim.intervals import interval, paired_difference, statement
from sim.scores import Column, Pair, Section, World, scores_with_best
from sim.strip import Strip
from sim.traces import Trace
from sim.wording import world_words

TEMPLATES = Path(__file__).parent / "templates"
# How many changes of a world a page names at once; pointing at it shows the others.
MOST_CHANGES = 3
# What a robot is, by its name, for a reader who has not seen it.
ROBOTS = {
    "halfcheetah": "runs in a plane on a back and a front leg, each with a thigh, a shin and a foot",
    "halfcheetah-jump": "runs and jumps in a plane on a back and a front leg, each with a thigh, a shin and a foot",
    "hopper": "hops in a plane on one leg",
    "walker2d": "walks in a plane on two legs",
    "ant": "walks in space on four legs, each with a hip and an ankle",
    "cheetah-run": "runs in a plane on a back and a front leg, each with a thigh, a shin and a foot",
    "walker-walk": "walks in a plane on two legs, each with a thigh, a leg and a foot",
    "quadruped-walk": "walks in space on four legs, and feels forces at its toes",
}


def write_page(
    path: Path,
    section: Section,
    facts: Mapping[str, Any],
    command: str,
    traces: Mapping[str, Mapping[World, Trace]] | None = None,
    context_names: Sequence[str] = (),
    strip: Strip | str = "",
) -> None:
    """Write the page of `surefoot validate`, of one bundle or of several side by side.

    Args:
        path: the file to write.
        section: the scores; its title is the page's heading.
        facts: what the numbers are a function of, by a label.
        command: what repeats them.
        traces: by context, for the worlds that change in mid-episode.
        context_names: what each number of the context stands for.
        strip: pictures of one world, or a sentence that says why there are none; empty where none are due.

    Raises:
        UserError: the page cannot be written, the columns do not fit, or their environment is not known.
    """
    _write(
        path,
        "validation.html.j2",
        section=_view(section, score_scale([section])) | {"numbers": _number_view(section)},
        robot=_robot_view(section),
        yardstick=section.yardstick,
        facts=facts,
        command=command,
        traces=_trace_view(section, traces or {}, context_names),
        strip=_strip_view(section, strip) if isinstance(strip, Strip) else None,
        no_strip=strip if isinstance(strip, str) else "",
    )


def write_demo(path: Path, sections: Sequence[Section], details: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the page of `surefoot demo`, where MOPO and AugWM are trained from one log.

    Args:
        path: the file to write.
        sections: the sets of results, the first one first.
        details: by section title, each part optional: `world_models`, for each training seed what `surefoot train`
            measured (holdout_mse, horizon_rmse by horizon); `provenance`, from a label to a text, a number, a list or
            a dict, where `rows` of `data set` are the recorded steps; `commands`, the lines that repeat the section.

    Raises:
        UserError: the page cannot be written, a section's columns do not fit, or their environment is not known.
    """
    scale = score_scale(sections)
    known = [details.get(section.title, {}) for section in sections]
    _write(
        path,
        "demo.html.j2",
        sections=[
            _view(section, scale)
            | {"comparisons": _comparison_view(section)}
            | {key: of.get(key, {}) for key in ("world_models", "provenance", "commands")}
            for section, of in zip(sections, known, strict=True)
        ],
        yardstick=sections[0].yardstick,
        robot=_robot_view(sections[0]) | {"rows": known[0].get("provenance", {}).get("data set", {}).get("rows")},
    )


def _write(path: Path, template: str, **content: Any) -> None:
    """Fill in a template."""
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = jinja.get_template(template).render(**content)
    with atomic_path(Path(path)) as draft:
        draft.write_text(text, encoding="utf-8")


def _robot_view(section: Section) -> dict[str, Any]:
    """What the text says of the robot and its task."""
    report = section.columns[0].reports[0]
    environment = make_environment(report["env"])
    return {
        "name": environment.task_id,
        "about": ROBOTS.get(environment.robot),
        "observations": environment.obs_dim,
        "motors": environment.action_names,
        "control_dt": environment.control_dt,
        "bonus": environment.config.healthy_reward,
        "steps": report["steps"],
        "suites": section.columns[0].suites(),
    }


def _view(section: Section, scores: Scale) -> dict[str, Any]:
    """What the templates show of one section."""
    differences = difference_scale(section, scores)
    return {
        "title": section.title,
        "about": section.about,
        "columns": [column.title for column in section.columns],
        "pairs": [pair.title for pair in section.pairs],
        "scales": {"scores": _legend(section, scores), "differences": _legend(section, differences, sign=True)},
        "bars": bars(section),
        "heat_maps": heat_maps(section, scores, differences),
        "tables": _table_view(section, scores, differences),
        "failures": _failure_view(section),
    }


def _legend(section: Section, scale: Scale, sign: bool = False) -> dict[str, Any]:
    """The ends of a scale and the colours between them."""
    ends = (section.text(end, sign) for end in (scale.low, scale.high))
    return {"ends": list(ends), "stops": ", ".join(scale.stops())}


def _comparison_view(section: Section) -> list[dict[str, Any]]:
    """For each comparison, what it shows over each set of worlds."""
    shown = []
    for question, a, b in section.pairs:
        answers = []
        for scope, worlds in section.scopes().items():
            difference = paired_difference(a, b, worlds, section.yardstick)
            answers.append((scope, difference.verdict, statement(difference, a.title, b.title)))
        shown.append({"question": question, "answers": answers})
    return shown


def _number_view(section: Section) -> dict[str, Any]:
    """Over each set of worlds the interval of every column, and that of every paired difference with its verdict."""
    scopes = section.scopes()

    def score(column: Column, worlds: Sequence[World]) -> tuple[float, str, str]:
        each = interval(column, worlds, section.yardstick)
        return each.point, interval_text(each, section), ""

    def change(pair: Pair, worlds: Sequence[World]) -> tuple[float, str, str]:
        found = paired_difference(pair.a, pair.b, worlds, section.yardstick)
        return found.interval.point, interval_text(found.interval, section, sign=True), found.verdict

    return {
        "scopes": list(scopes),
        "scores": [(column.title, [score(column, worlds) for worlds in scopes.values()]) for column in section.columns],
        "differences": [(pair.title, [change(pair, worlds) for worlds in scopes.values()]) for pair in section.pairs],
    }


def _name_view(section: Section, world: World) -> dict[str, str]:
    """A world in words, in more of them, and as its suite calls it."""
    perturbation = section.worlds[world]["perturbation"]
    return {
        "words": world_words(perturbation, MOST_CHANGES),
        "all_words": world_words(perturbation),
        "name": world.name,
    }


def _table_view(section: Section, scores: Scale, differences: Scale) -> list[dict[str, Any]]:
    """The score table, coloured: for each suite its worlds and their mean."""

    def cell(value: float, scale: Scale, best: bool = False, sign: bool = False) -> dict[str, Any]:
        return {"value": value, "text": section.text(value, sign), "shade": scale.shade(value), "best": best}

    def cells(worlds: Sequence[World]) -> list[dict[str, Any]]:
        found = scores_with_best(section.columns, worlds, section.yardstick)
        changes = [pair.score(worlds, section.yardstick) for pair in section.pairs]
        return [cell(score, scores, best) for score, best in found] + [
            cell(change, differences, sign=True) for change in changes
        ]

    return [
        {
            "scope": scope,
            # The last scope holds the same worlds again: its mean is enough.
            "rows": [
                {"world": _name_view(section, world), "cells": cells([world])}
                for world in worlds
                if scope == world.suite
            ],
            "mean": cells(worlds),
        }
        for scope, worlds in section.scopes().items()
    ]


def _failure_view(section: Section) -> dict[str, Any] | None:
    """For the worlds that change mid-run: how soon the context moved, and the return after the change."""
    worlds = [world for world, cell in section.worlds.items() if "return_after_change" in cell]
    if not worlds:
        return None
    adapted = [column for column in section.columns if column.context == "inferred"]

    def steps(column: Column, world: World) -> list[int | None]:
        return [cells[world].get("steps_to_90_percent") for cells in column.cells]

    def after(column: Column, chosen: Iterable[World]) -> float:
        return float(np.mean([cells[world]["return_after_change"] for world in chosen for cells in column.cells]))

    every = [value for column in adapted for world in worlds for value in steps(column, world)]
    moved = [value for value in every if value is not None]
    return {
        "adapted": [column.title for column in adapted],
        "rows": [
            {
                "world": _name_view(section, world),
                "steps": [steps(column, world) for column in adapted],
                "after": [after(column, [world]) for column in section.columns],
            }
            for world in worlds
        ],
        "mean": [after(column, worlds) for column in section.columns],
        "median": float(np.median(moved)) if moved else None,
        "moved": len(moved),
        "runs": len(every),
    }


def _trace_view(
    section: Section, traces: Mapping[str, Mapping[World, Trace]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The line charts of each world that changes in mid-episode."""
    worlds = next(iter(traces.values()), {})
    return [
        {
            "world": _name_view(section, world),
            "charts": line_charts({context: of[world] for context, of in traces.items()}, names),
        }
        for world in worlds
    ]


def _strip_view(section: Section, strip: Strip) -> dict[str, Any]:
    """The pictures with a caption each."""
    dt = make_environment(section.columns[0].reports[0]["env"]).control_dt
    first = strip.steps[0]
    return {
        "world": _name_view(section, strip.world),
        "same": len({tuple(totals) for _, _, totals in strip.rows}) == 1,
        "changes": "return_after_change" in section.worlds[strip.world],
        "times": [f"step {step:,} (+{(step - first) * dt:.1f} s)" for step in strip.steps],
        "rows": [
            (title, list(zip(pictures, map(_total, totals), strict=True))) for title, pictures, totals in strip.rows
        ],
    }


def _total(value: float) -> str:
    return "ended" if math.isnan(value) else f"{value:,.0f}"
