"""Regret: what a method returns less than a policy that was trained in the changed world itself.

`python -m sim.regret BUNDLES REPORTS ...` prints the table of results/halfcheetah-regret/README.md and writes
BUNDLES/regret.json. BUNDLES holds one bundle for each changed world, trained there by `surefoot train algorithm=sac
perturbations=SUITE world=NAME`; REPORTS holds validation reports of the methods, named as `python -m sim.seeds` takes
them. Every bundle is run here in its own world, from the starts of the reports.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters.command import module_command
from adapters.errors import UserError
from adapters.files import write_json
from adapters.progress import progress_bar
from deploy.bundle import Bundle
from sim.environments import make_environment
from sim.intervals import Difference, paired_difference
from sim.perturb import Perturbation
from sim.rollout import run_episodes
from sim.scores import Column, Section, World, world_title
from sim.seeds import read_columns
from sim.validate import make_controller

RESULT = "regret.json"
# What a report and the run of a bundle have to have in common for their episodes to be the same.
CONDITIONS = ("env", "episodes", "steps", "seeds", "yardstick_return")


def read_bundles(folder: Path) -> dict[World, Bundle]:
    """Return the bundles of a folder by the changed world that each was trained in.

    Raises:
        UserError: there are none, one was trained in no changed world, or two in the same.
    """
    found: dict[World, Bundle] = {}
    for path in sorted(folder.glob("*.bundle")):
        bundle = Bundle.load(path)
        config = bundle.manifest.provenance.config
        if not config.get("perturbation"):
            raise UserError(f"{path} was not trained in a changed world; train it with perturbations=SUITE world=NAME.")
        world = World(Path(config["suite"]).stem, config["world"])
        if world in found:
            raise UserError(f"{found[world].path} and {path} were trained in the same world; leave one of them out.")
        found[world] = bundle
    if not found:
        raise UserError(f"{folder} holds no bundles; export runs of algorithm=sac into it.")
    return found


def named_as_reported(bundles: Mapping[World, Bundle], columns: Sequence[Column]) -> Mapping[World, Bundle]:
    """Call the bundles' worlds what the reports call them: the very same world may be in several suites.

    Args:
        bundles: by the world and suite that each was trained in.
        columns: reports of methods.

    Returns:
        The bundles by the worlds of the first column that has all of them; as they were where none has.
    """

    def find(world: World, cells: Mapping[World, Mapping[str, Any]]) -> World:
        change = bundles[world].manifest.provenance.config["perturbation"]
        same = (other for other, cell in cells.items() if cell["perturbation"] == change)
        return world if world in cells else next(same, world)

    for column in columns:
        named = {find(world, column.cells[0]): bundle for world, bundle in bundles.items()}
        if named.keys() <= set(column.worlds()):
            return named
    return bundles


def read_methods(folders: Sequence[Path], bundles: Mapping[World, Bundle]) -> list[Column]:
    """Return a column for each algorithm and context whose reports have all worlds of the bundles.

    Where there are several folders, a column is called by its folder too.

    Raises:
        UserError: a folder has no such reports, or their worlds or conditions are not all the same.
    """
    columns = []
    for folder in folders:
        found = [column for part in read_columns(folder).values() for column in part]
        whole = [column for column in found if bundles.keys() <= set(column.worlds())]
        if not whole:
            missing = next(world for column in found for world in bundles if world not in column.worlds())
            raise UserError(
                f"no report in {folder} has all worlds that the bundles were trained in, for example '{missing.name}' "
                f"of suite '{missing.suite}'; validate the methods over these suites."
            )
        place = f"{folder.resolve().parent.name} " if len(folders) > 1 else ""
        columns += [dataclasses.replace(column, title=place + column.title) for column in whole]
    for column in columns:
        _require_same(column, columns[0], bundles)
    return columns


def _require_same(column: Column, first: Column, bundles: Mapping[World, Bundle]) -> None:
    """Refuse reports from other starts, or of worlds that are not those of the bundles."""
    column.returns(list(bundles))  # refuses a seed that lacks a world
    for report, cells in zip(column.reports, column.cells, strict=True):
        for key in CONDITIONS:
            if report[key] != first.reports[0][key]:
                expected = first.reports[0][key]
                raise UserError(
                    f"'{column.title}' has {key} {report[key]} and '{first.title}' has {expected}; validate both with "
                    "the same."
                )
        for world, bundle in bundles.items():
            if bundle.manifest.env != report["env"]:
                raise UserError(
                    f"{bundle.path} is of {bundle.manifest.env} and '{column.title}' of {report['env']}; give bundles "
                    "and reports of one environment."
                )
            if cells[world]["perturbation"] != bundle.manifest.provenance.config["perturbation"]:
                raise UserError(
                    f"the world '{world.name}' of suite '{world.suite}' is another one in '{column.title}' than where "
                    f"{bundle.path} was trained; train and validate over the same file."
                )


def run_bundles(bundles: Mapping[World, Bundle], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Run every bundle in its own world, and return what a validation report would say of it.

    Args:
        bundles: by world.
        conditions: a validation report, whose starts, episodes and steps are taken.
    """
    environment = make_environment(conditions["env"])
    episodes, steps = conditions["episodes"], conditions["steps"]
    cells = []
    with progress_bar("policies trained in their worlds", len(bundles) * episodes * steps) as move:
        for count, (world, bundle) in enumerate(bundles.items(), start=1):
            perturbation = bundle.manifest.provenance.config["perturbation"]
            result = run_episodes(
                environment,
                [Perturbation.model_validate(perturbation)],
                functools.partial(make_controller, bundle, "nominal"),
                episodes=episodes,
                seed=conditions["seeds"][0],
                steps=steps,
            )
            returns = result.returns[0].tolist()
            about = {"perturbation": perturbation, "context": "nominal", "bundle": bundle.sha256}
            cells.append(world._asdict() | about | {"returns": returns})
            move(count * episodes * steps)
    return {key: conditions[key] for key in CONDITIONS} | {"cells": cells}


def regret(bound: Column, method: Column, worlds: Sequence[World], yardstick: float) -> Difference:
    """Mean score of the policies trained in the worlds themselves, minus that of the method, with an interval.

    (sum over worlds w of J_w(policy trained in w) - J_w(method)) / (worlds x yardstick), J being the mean return over
    the same starts. The interval is that of `paired_difference`: over the method's training seeds where there are
    several, else over episodes. The policies trained in the worlds are taken as they are: it does not cover how another
    training of theirs would come out, and where one was trained too short its world's regret is too small.

    Args:
        bound: the policies trained in the worlds, one report.
        method: the method, over one or more training seeds.
        worlds: the worlds to take together.
        yardstick: the return that scores 1.
    """
    same = dataclasses.replace(bound, reports=bound.reports * len(method.reports))
    return paired_difference(same, method, worlds, yardstick)


def comparable(methods: Sequence[Column]) -> list[tuple[Column, Column]]:
    """The pairs of methods whose regrets can be subtracted: a later one from an earlier one with as many seeds."""
    return [(a, b) for b, a in itertools.combinations(methods, 2) if len(a.reports) == len(b.reports)]


def regret_table(section: Section) -> Table:
    """Lay the regrets out for the terminal: a row for each world and for each set of them, then the differences.

    Args:
        section: the policies trained in the worlds as its first column, then the methods.
    """
    bound, *methods = section.columns
    table = Table(
        title=f"regret against a policy trained in the changed world: {section.about}",
        caption=f"regret = (return of the policy trained there - the method's) / {section.yardstick:,.0f}, with its "
        "95 % interval; below 0 the method returns more, and the policy is no bound",
    )
    table.add_column("changed world", no_wrap=True)
    for title in ("score of the policy trained there", *(f"regret of {column.title}" for column in methods)):
        table.add_column(title, justify="right")

    def row(title: str | Text, worlds: Sequence[World]) -> None:
        regrets = [_text(regret(bound, column, worlds, section.yardstick)) for column in methods]
        table.add_row(title, f"{bound.score(worlds, section.yardstick):.2f}", *regrets)

    scopes = section.scopes()
    for scope, worlds in scopes.items():
        for world in worlds:
            if scope == world.suite:
                row(world_title(section.worlds[world]), [world])
        table.add_section()
        row(Text(f"{scope}: mean", "italic"), worlds)
        table.add_section()
    return table


def difference_table(section: Section) -> Table:
    """Lay out, for each pair of methods, by how much the regret of the one is above that of the other."""
    table = Table(title="differences of mean regret, paired by world and training seed", caption="below 0: less regret")
    table.add_column("")
    for scope in section.scopes():
        table.add_column(scope)
    for a, b in comparable(section.columns[1:]):
        # The policy trained in the world is the same in both: regret a - regret b = score b - score a.
        found = [paired_difference(b, a, worlds, section.yardstick) for worlds in section.scopes().values()]
        table.add_row(f"{a.title} - {b.title}", *(_text(each, seeds=True) for each in found))
    return table


def _text(difference: Difference, seeds: bool = False) -> str:
    """A difference with its interval, and the difference within each training seed where that is asked for."""
    point, low, high, _ = difference.interval
    text = f"{point:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"{text}; {', '.join(f'{value:+.3f}' for value in difference.by_seed)}" if seeds else text


def numbers(section: Section) -> dict[str, Any]:
    """What regret.json says."""
    bound, *methods = section.columns
    (report,) = bound.reports

    def regrets(worlds: Sequence[World]) -> dict[str, Any]:
        score = bound.score(worlds, section.yardstick)
        found = {column.title: _numbers(regret(bound, column, worlds, section.yardstick)) for column in methods}
        return {"score_trained_there": score, "regret": found}

    return {
        "schema": 1,
        **{key: report[key] for key in CONDITIONS},
        "methods": {column.title: [each["bundle"] for each in column.reports] for column in methods},
        "worlds": [cell | regrets([world]) for world, cell in section.worlds.items()],
        "scopes": [
            {
                "scope": scope,
                **regrets(worlds),
                "differences": [
                    {"a": a.title, "b": b.title, **_numbers(paired_difference(b, a, worlds, section.yardstick))}
                    for a, b in comparable(methods)
                ],
            }
            for scope, worlds in section.scopes().items()
        ],
    }


def _numbers(difference: Difference) -> dict[str, Any]:
    """A difference as JSON holds it, with NaN as null."""
    found = {key: None if value != value else value for key, value in difference.interval._asdict().items()}
    return found | {"by_seed": difference.by_seed}


def compute(bundles_folder: Path, report_folders: Sequence[Path]) -> Section:
    """Run the bundles, and set them, as the first column, and the methods side by side."""
    parts = read_columns(report_folders[0]).values()
    bundles = named_as_reported(read_bundles(bundles_folder), [column for part in parts for column in part])
    methods = read_methods(report_folders, bundles)
    in_order = {world: bundles[world] for world in methods[0].worlds() if world in bundles}
    report = run_bundles(in_order, methods[0].reports[0])
    bound = Column("policy trained there", [report], "nominal")
    about = f"{report['env']}, {report['episodes']} episodes in each world"
    return Section("regret", about, [bound, *methods], float(report["yardstick_return"] or 1.0), [])


@module_command
def main(words: list[str]) -> None:
    """Print the tables and write the numbers."""
    given = [Path(word) for word in words]
    if len(given) < 2:
        raise UserError(
            "give a folder of bundles and one or more of reports, as in python -m sim.regret "
            "results/halfcheetah-regret results/halfcheetah-weakened/validation."
        )
    section = compute(given[0], given[1:])
    write_json(given[0] / RESULT, numbers(section))
    console = Console(width=200, highlight=False)
    console.print(regret_table(section))
    console.print(difference_table(section))


if __name__ == "__main__":
    sys.exit(main())
