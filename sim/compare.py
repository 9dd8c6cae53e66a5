"""Several bundles side by side: what may be compared, under which names, and the numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import UserError
from adapters.files import read_json
from deploy.bundle import Bundle
from sim.environments import make_environment
from sim.intervals import Interval, interval, paired_difference
from sim.perturb import load_suite
from sim.scores import Column, Pair, Section, World, comparisons

REPORT = "validation.json"
# What has to be in a report, and in each of its cells, to compare it.
REPORT_KEYS = {"bundle", "env", "episodes", "steps", "seeds", "yardstick_return", "cells"}
CELL_KEYS = {"suite", "name", "perturbation", "context", "returns", "falls"}


@dataclass(frozen=True)
class Source:
    """One thing to compare.

    Attributes:
        path: the bundle, or the file of the validation report.
        algorithm: what trained the bundle, empty where an older report does not tell.
        env: the environment.
        report: the validation report, or None where the bundle is still to be validated.
    """

    path: Path
    algorithm: str
    env: str
    report: dict[str, Any] | None

    @property
    def places(self) -> list[str]:
        """The folders that lead to it, the innermost last, without what every bundle or report is called."""
        path = self.path.resolve()
        parts = path.parts[1:-1] if path.name == REPORT else path.parts[1:]
        return [re.sub(r"\.(bundle|json|onnx)$", "", part) for part in parts]


def open_sources(
    paths: Sequence[Path], suites: Sequence[str], episodes: int, steps: int, seed: int
) -> dict[str, Source]:
    """Find out what is to be compared, under which names, before any of it is validated.

    Args:
        paths: bundles, validation reports, or folders with one.
        suites: of changed worlds, over which the bundles among them will be validated.
        episodes: in each world, likewise.
        steps: in an episode, likewise.
        seed: of the starts, likewise.

    Raises:
        UserError: a path is none of these or is given twice, there are fewer than two, or they were not run in the
            same worlds from the same starts.
    """
    if len(paths) < 2:
        raise UserError("compare takes two bundles or reports, or more, as in compare=[A,B].")
    found = [_read_source(path) for path in paths]
    sources = dict(zip(_names(found), found, strict=True))
    require_same({name: _planned(source, suites, episodes, steps, seed) for name, source in sources.items()})
    return sources


def _read_source(path: Path) -> Source:
    """Find out what a path is: a bundle, a validation report, or a folder with one.

    Raises:
        UserError: it is none of them, or not whole.
    """
    if path.suffix == ".onnx" or (path / "bundle.json").is_file():
        manifest = Bundle.load(path).manifest
        return Source(path, manifest.provenance.algorithm, manifest.env, None)
    file = path / REPORT if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} is neither a bundle nor a validation report; give a folder of one, or a {REPORT}.")
    report = read_json(file)
    if not (isinstance(report, dict) and report.keys() >= REPORT_KEYS and _all_have(report["cells"], CELL_KEYS)):
        raise UserError(f"{file} is not a validation report; give one that 'surefoot validate' wrote.")
    return Source(file, report.get("algorithm", ""), report["env"], report)


def _all_have(cells: Any, keys: set[str]) -> bool:
    return isinstance(cells, list) and all(isinstance(cell, dict) and cell.keys() >= keys for cell in cells)


def _names(sources: Sequence[Source]) -> list[str]:
    """Name each by its algorithm, where its folder does not tell that, and by as many folders as tell them apart.

    Raises:
        UserError: the same one is given twice.
    """
    for source in sources:
        if [other.path.resolve() for other in sources].count(source.path.resolve()) > 1:
            raise UserError(f"{source.path} is given twice; give each bundle or report once.")
    for depth in range(1, max(len(source.places) for source in sources) + 1):
        names = [_name(source, depth) for source in sources]
        if len(set(names)) == len(names):
            return names
    return [f"{_name(source, 1)}-{number}" for number, source in enumerate(sources, start=1)]


def _name(source: Source, depth: int) -> str:
    place = "/".join(source.places[-depth:])
    known = not source.algorithm or source.algorithm.lower() in place.lower()
    return place if known else f"{source.algorithm}-{place}"


def _planned(source: Source, suites: Sequence[str], episodes: int, steps: int, seed: int) -> dict[str, Any]:
    """What decides whether two validations can be compared, of one that is there or is still to be made."""
    if (report := source.report) is not None:
        worlds = {World(cell["suite"], cell["name"]): cell["perturbation"] for cell in report["cells"]}
        return {key: report[key] for key in ("env", "steps", "episodes", "seeds")} | {"worlds": worlds}
    environment = make_environment(source.env)
    worlds = {
        World(Path(suite).stem, world.name): world.model_dump(mode="json", exclude_defaults=True)
        for suite in suites
        for world in load_suite(suite, environment)
    }
    return {"env": source.env, "steps": steps, "episodes": episodes, "seeds": [seed], "worlds": worlds}


def require_same(plans: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare what was not run in the same worlds from the same starts.

    Args:
        plans: env, steps, episodes, seeds, and the description of every world, by name.

    Raises:
        UserError: one differs from the first.
    """
    (first, reference), *others = plans.items()
    for name, plan in others:
        if plan["env"] != reference["env"]:
            raise UserError(
                f"{first} is of {reference['env']} and {name} of {plan['env']}; compare bundles of one environment."
            )
        for key, setting in (("steps", "steps"), ("episodes", "episodes"), ("seeds", "seed")):
            if plan[key] != reference[key]:
                values = [str(of[key]).strip("[]") for of in (reference, plan)]
                raise UserError(
                    f"{first} has {setting} {values[0]} and {name} has {values[1]}; validate both with the same, for "
                    f"example {setting}={values[0]}."
                )
        _require_same_worlds(first, reference["worlds"], name, plan["worlds"])


def _require_same_worlds(a: str, ours: Mapping[World, Any], b: str, theirs: Mapping[World, Any]) -> None:
    """Refuse worlds of which one side has none, or that are not the same on both."""
    for has, mine, lacks, others in ((a, ours, b, theirs), (b, theirs, a, ours)):
        missing = next((world for world in mine if world not in others), None)
        if missing is not None:
            raise UserError(
                f"{has} has the world '{missing.name}' of suite '{missing.suite}' and {lacks} has not; validate both "
                "over the same suites (perturbations=)."
            )
    for world, change in ours.items():
        if change != theirs[world]:
            raise UserError(
                f"the world '{world.name}' of suite '{world.suite}' is another one in {a} than in {b}; validate both "
                "over the same file."
            )


def make_columns(report: dict[str, Any], name: str = "") -> list[Column]:
    """Return a column for each context of a report, called by the bundle's name too where that is given.

    A bundle with one context goes by its name alone.
    """
    contexts = list(dict.fromkeys(cell["context"] for cell in report["cells"]))
    return [
        Column(name if name and len(contexts) == 1 else f"{name} {context}".strip(), [report], context)
        for context in contexts
    ]


def make_section(title: str, reports: Mapping[str, dict[str, Any]]) -> Section:
    """Set reports, by the names of their bundles, side by side; one alone is known by its contexts."""
    first = next(iter(reports.values()))
    by_bundle = [make_columns(report, name if len(reports) > 1 else "") for name, report in reports.items()]
    pairs = [pair for columns in by_bundle for pair in comparisons(columns)]
    names = list(reports)
    for name, mine in zip(names[1:], by_bundle[1:], strict=True):
        pairs += [
            Pair(f"{name} against {names[0]}", column, _counterpart(column, mine, by_bundle[0])) for column in mine
        ]
    columns = [column for columns in by_bundle for column in columns]
    episodes = "one episode" if first["episodes"] == 1 else f"{first['episodes']} episodes"
    about = f"{len(columns[0].worlds())} changed worlds, {episodes} in each"
    yardstick = float(first["yardstick_return"] or 1.0)
    return Section(title, about, columns, yardstick, pairs)


def _counterpart(column: Column, siblings: Sequence[Column], first: Sequence[Column]) -> Column:
    """Return what of the first bundle a column is compared with: the same context, where both bundles adapt.

    Where one of them does not, it is what the first one does on a robot: inferred where it can, else nominal.
    """
    by_context = {each.context: each for each in first}
    on_robot = by_context.get("inferred", first[0])
    if len(siblings) == 1 or len(first) == 1:
        return on_robot
    return by_context.get(column.context, on_robot)


def numbers(section: Section, sources: Mapping[str, Source], reports: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What compare.json says: the figures of the page, with NaN as null."""
    first = section.columns[0].reports[0]
    return {
        "schema": 1,
        **{key: first[key] for key in ("env", "episodes", "steps", "seeds", "yardstick_return")},
        "bundles": [
            {"name": name, "path": str(source.path), "sha256": reports[name]["bundle"], "algorithm": source.algorithm}
            for name, source in sources.items()
        ],
        "scopes": [
            {
                "scope": scope,
                "scores": {
                    column.title: _numbers(interval(column, worlds, section.yardstick)) for column in section.columns
                },
                "differences": [
                    {
                        "a": a.title,
                        "b": b.title,
                        **_numbers(paired_difference(a, b, worlds, section.yardstick).interval),
                    }
                    for _, a, b in section.pairs
                ],
            }
            for scope, worlds in section.scopes().items()
        ],
        "worlds": [
            {
                **world._asdict(),
                "scores": {column.title: column.score([world], section.yardstick) for column in section.columns},
                "differences": {pair.title: pair.score([world], section.yardstick) for pair in section.pairs},
            }
            for world in section.worlds
        ],
    }


def _numbers(each: Interval) -> dict[str, Any]:
    """An interval as JSON holds it."""
    return {key: None if value != value else value for key, value in each._asdict().items()}
