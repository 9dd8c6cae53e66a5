"""What `surefoot validate` leaves behind: the numbers and the page of one bundle, or of several side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.files import write_json
from deploy.bundle import Bundle
from sim.compare import REPORT, Source, make_section, numbers
from sim.perturb import Perturbation
from sim.report import write_page
from sim.scores import Section
from sim.strip import Strip, make_strip, telling_world
from sim.traces import Traces
from sim.video import NoGraphicsError


def write_validation(output: Path, bundle: Path, report: dict[str, Any], traces: Traces, command: str) -> None:
    """Write what is known of one bundle: validation.json, traces.npz and report.html.

    Args:
        output: the folder.
        bundle: where the bundle lies.
        report: its validation report.
        traces: what the validation kept of the worlds that change in mid-episode.
        command: what repeats it.

    Raises:
        UserError: the folder cannot be written.
    """
    write_json(output / REPORT, report)
    traces.write(output / "traces.npz")
    name = bundle.resolve().name.removesuffix(".bundle")
    section = make_section(f"{name} in changed worlds", {name: report})
    facts = {"bundle": _bundle_fact(bundle, report), "algorithm": report["algorithm"]} | _facts(report)
    loaded = Bundle.load(bundle)
    strip, names = _strip(loaded, report, section), loaded.manifest.context_names
    write_page(output / "report.html", section, facts, command, traces.by_context, names, strip)


def write_comparison(
    output: Path, sources: Mapping[str, Source], reports: Mapping[str, dict[str, Any]], command: str
) -> Section:
    """Write compare.json and report.html of several bundles, and return what they show.

    The folder also gets validation.json of each that was validated only now, in a folder of its own.

    Args:
        output: the folder.
        sources: where each comes from, by its name.
        reports: the validation report of each, by its name.
        command: what repeats it.

    Raises:
        UserError: the folder cannot be written.
    """
    for name, source in sources.items():
        if source.report is None:
            write_json(output / name / REPORT, reports[name])
    section = make_section(f"{', '.join(sources)} side by side", reports)
    write_json(output / "compare.json", numbers(section, sources, reports))
    facts = {name: _bundle_fact(source.path, reports[name]) for name, source in sources.items()}
    write_page(output / "report.html", section, facts | _facts(section.columns[0].reports[0]), command)
    return section


def _bundle_fact(path: Path, report: Mapping[str, Any]) -> str:
    return f"{path} (SHA-256 of the bundle: {report['bundle']})"


def _facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers are a function of, beside the bundles."""
    suites = list(dict.fromkeys(cell["suite"] for cell in report["cells"]))
    return {
        "environment": report["env"],
        "suites": suites,
        "episodes in every world": report["episodes"],
        "steps in an episode": report["steps"],
        "seed of the starts and of noise": report["seeds"],
    }


def _strip(bundle: Bundle, report: Mapping[str, Any], section: Section) -> Strip | str:
    """Pictures of the world that tells most of adaptation, or why there are none."""
    columns = {column.context: column for column in section.columns}
    if not {"nominal", "inferred"} <= columns.keys():
        return "There are no pictures: they show one world with and without adaptation, and only one of these was run."
    world = telling_world(columns["nominal"], columns["inferred"])
    change = Perturbation.model_validate(section.worlds[world]["perturbation"])
    try:
        return make_strip(bundle, world.suite, change, report["seeds"][0], report["steps"])
    except NoGraphicsError as error:
        return f"There are no pictures here: {error}"
