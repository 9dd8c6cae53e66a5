"""What may stand side by side, under which names, and that compare.json says what the page says."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import UserError
from adapters.files import write_json
from sim.compare import make_section, open_sources
from sim.intervals import interval, paired_difference

CommandLine = Callable[..., Any]

WORLDS = """
- {name: original}
- {name: heavy, body_mass: {"*": 1.5}}
- {name: late, at_step: 30, actuator_gain: {bthigh: 0.0}}
"""


def _report(bundle: str, returns: Mapping[str, list[list[float]]], **changes: Any) -> dict[str, Any]:
    """A report of returns by world and episode, for each context."""
    cells = [
        {
            "suite": "s",
            "name": f"w{index}",
            "perturbation": {"name": f"w{index}", "gravity": 0.5 + index},
            "context": context,
            "returns": episodes,
            "falls": 0,
        }
        for context, worlds in returns.items()
        for index, episodes in enumerate(worlds)
    ]
    report = {"bundle": bundle, "env": "halfcheetah", "episodes": 2, "steps": 60, "seeds": [0], "cells": cells}
    return report | {"yardstick_return": 10.0} | changes


ADAPTS = {"nominal": [[1.0, 2.0], [3.0, 4.0]], "inferred": [[2.0, 3.0], [3.0, 4.0]]}
PLAIN = {"nominal": [[5.0, 5.0], [3.0, 1.0]]}


def _pairs(**reports: dict[str, Any]) -> list[str]:
    return [pair.title.replace("\N{MINUS SIGN}", "-") for pair in make_section("t", reports).pairs]


def _names(*paths: Path) -> list[str]:
    return list(open_sources(paths, [], 2, 60, 0))


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    for place, algorithm in (("a/policy", "augwm"), ("b/policy", "augwm"), ("mopo-0", "mopo"), ("best", "cql")):
        write_json(tmp_path / place / "validation.json", _report(place, PLAIN, algorithm=algorithm))
    write_json(tmp_path / "all" / "old-1.json", _report("old", PLAIN))
    a, b, mopo, best = (tmp_path / place for place in ("a/policy", "b/policy", "mopo-0", "best"))
    assert _names(a, mopo) == ["augwm-policy", "mopo-0"]
    assert _names(a, b) == ["augwm-a/policy", "augwm-b/policy"]
    assert _names(best / "validation.json", tmp_path / "all" / "old-1.json") == ["cql-best", "old-1"]


def test_a_bundle_and_the_report_in_it_are_two(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    write_json(tmp_path / "tiny" / "validation.json", _report("x", PLAIN, algorithm="tiny"))
    (tmp_path / "one.yaml").write_text("[{name: w0, gravity: 0.5}, {name: w1, gravity: 1.5}]")
    bundle = make_bundle()
    # Both are called tiny in the same folder, so that no longer name tells them apart.
    with pytest.raises(UserError, match=r"^tiny-1 has the world 'w0' of suite 'one' and tiny-2 has not"):
        open_sources([bundle, tmp_path / "tiny"], [str(tmp_path / "one.yaml")], 2, 60, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "hopper"}, "a is of halfcheetah and b of hopper; compare bundles of one environment"),
        ({"steps": 500}, "a has steps 60 and b has 500; validate both with the same, for example steps=60"),
        ({"episodes": 3}, "a has episodes 2 and b has 3; .* episodes=2"),
        ({"seeds": [7]}, "a has seed 0 and b has 7; .* seed=0"),
    ],
)
def test_what_differs_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", _report("a", PLAIN))
    write_json(tmp_path / "b.json", _report("b", PLAIN, **change))
    with pytest.raises(UserError, match=message):
        _names(tmp_path / "a.json", tmp_path / "b.json")


def test_other_worlds_are_refused(tmp_path: Path) -> None:
    report = _report("a", PLAIN)
    write_json(tmp_path / "a.json", report)
    fewer, other, empty = (copy.deepcopy(report) for _ in range(3))
    del fewer["cells"][1]
    other["cells"][1]["perturbation"]["gravity"] = 2.0
    del empty["cells"][0]["returns"]
    for name, changed in (("fewer", fewer), ("other", other), ("empty", empty)):
        write_json(tmp_path / f"{name}.json", changed)
    with pytest.raises(UserError, match=r"a has the world 'w1' of suite 's' and fewer has not; .* same suites"):
        _names(tmp_path / "a.json", tmp_path / "fewer.json")
    with pytest.raises(UserError, match=r"a has the world 'w1' of suite 's' and fewer has not"):
        _names(tmp_path / "fewer.json", tmp_path / "a.json")
    with pytest.raises(UserError, match=r"'w1' of suite 's' is another one in a than in other; .* same file"):
        _names(tmp_path / "a.json", tmp_path / "other.json")
    with pytest.raises(UserError, match=r"empty\.json is not a validation report"):
        _names(tmp_path / "a.json", tmp_path / "empty.json")
    with pytest.raises(UserError, match=r"a\.json is given twice"):
        _names(tmp_path / "a.json", tmp_path / "." / "a.json")
    with pytest.raises(UserError, match="two bundles or reports"):
        _names(tmp_path / "a.json")


def test_every_bundle_is_compared_with_the_first() -> None:
    adapts, other, plain = _report("a", ADAPTS), _report("b", ADAPTS), _report("c", PLAIN)
    titles = [
        pair.title.replace("\N{MINUS SIGN}", "-")
        for pair in make_section("t", {"a": adapts, "b": other, "c": plain}).pairs
    ]
    assert titles == [
        # What adaptation does in each; then the same context, where both adapt; then what each does on a robot.
        "a inferred - a nominal",
        "b inferred - b nominal",
        "b nominal - a nominal",
        "b inferred - a inferred",
        "c - a inferred",
    ]
    assert _pairs(a=adapts, b=other, c=plain) == [
        # What adaptation does in each; then the same context, where both adapt; then what each does on a robot.
        "a inferred - a nominal",
        "b inferred - b nominal",
        "b nominal - a nominal",
        "b inferred - a inferred",
        "c - a inferred",
    ]
    assert _pairs(c=plain, a=adapts) == ["a inferred - a nominal", "a nominal - c", "a inferred - c"]
    alone = make_section("t", {"a": adapts})
    assert [column.title for column in alone.columns] == ["nominal", "inferred"]


def test_environment_without_a_yardstick_is_compared_by_returns() -> None:
    section = make_section("t", {"a": _report("a", PLAIN, yardstick_return=None)})
    assert (section.yardstick, section.score_label) == (1.0, "return")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["bundle=no.bundle", "compare=[a,b]"], "give bundle=PATH to validate one bundle, or compare=[A,B]"),
        (["compare=[a.bundle]"], "two bundles or reports"),
        (["compare=[a,b]", "attach=true"], "leave out attach"),
        (["compare=[a.bundle,b.bundle]"], "a.bundle is neither a bundle nor a validation report"),
    ],
)
def test_command_answers_a_mistake_and_leaves_nothing(
    command_line: CommandLine, tmp_path: Path, settings: list[str], message: str
) -> None:
    done = command_line("validate", *settings, f"output={tmp_path / 'out'}")
    assert done.code == 2 and message in done.err
    assert not (tmp_path / "out").exists()


def test_command_validates_bundles_and_reads_reports(
    make_bundle: Callable[..., Path], command_line: CommandLine, tmp_path: Path
) -> None:
    suite = tmp_path / "worlds.yaml"
    suite.write_text(WORLDS)
    settings = [f"perturbations={suite}", "episodes=2", "steps=60", "contexts=[nominal,inferred]", "threads=1"]
    make_bundle(context=False).rename(tmp_path / "plain.bundle")
    make_bundle().rename(tmp_path / "adapts.bundle")
    paths = [tmp_path / "adapts.bundle", tmp_path / "plain.bundle"]
    done = command_line("validate", f"compare=[{paths[0]},{paths[1]}]", *settings, f"output={tmp_path / 'first'}")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [
        "compare.json",
        "report.html",
        "tiny-adapts",
        "tiny-plain",
    ]
    reports = [tmp_path / "first" / f"tiny-{name}" for name in ("adapts", "plain")]
    columns = make_section(
        "t",
        {name: json.loads((path / "validation.json").read_text()) for name, path in zip("ab", reports, strict=True)},
    )
    said = json.loads((tmp_path / "first" / "compare.json").read_text())
    assert [bundle["name"] for bundle in said["bundles"]] == ["tiny-adapts", "tiny-plain"]
    (scope,) = said["scopes"]
    a, b = columns.columns[1], columns.columns[2]
    worlds = a.worlds()
    assert scope["scores"]["tiny-adapts inferred"] == interval(a, worlds, 4900.0)._asdict()
    last = scope["differences"][-1]
    assert (last["a"], last["b"]) == ("tiny-plain", "tiny-adapts inferred")
    assert last["point"] == paired_difference(b, a, worlds, 4900.0).interval.point
    assert [world["name"] for world in said["worlds"]] == ["original", "heavy", "late"]
    page = (tmp_path / "first" / "report.html").read_text()
    assert f"{scope['scores']['tiny-plain']['point']:.2f} (" in page
    assert f"surefoot validate compare=[{paths[0]},{paths[1]}] perturbations=[{suite}]" in page

    # The reports that were left there give the same numbers, and nothing is run again.
    again = command_line(
        "validate", f"compare=[{tmp_path / 'x'},{paths[1]}]", *settings, f"output={tmp_path / 'second'}"
    )
    assert again.code == 2 and "neither a bundle nor a validation report" in again.err
    (tmp_path / "x").mkdir()
    (reports[0] / "validation.json").rename(tmp_path / "x" / "validation.json")
    mixed = command_line(
        "validate", f"compare=[{tmp_path / 'x'},{paths[1]}]", *settings, f"output={tmp_path / 'second'}"
    )
    assert mixed.code == 0, mixed.err
    second = json.loads((tmp_path / "second" / "compare.json").read_text())
    assert [list(world["scores"].values()) for world in second["worlds"]] == [
        list(world["scores"].values()) for world in said["worlds"]
    ]
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == [
        "compare.json",
        "report.html",
        "tiny-plain",
    ]
    # Where nothing is run, the settings of a run are no part of what repeats it.
    read = [tmp_path / "x", tmp_path / "second" / "tiny-plain"]
    third = command_line("validate", f"compare=[{read[0]},{read[1]}]", f"output={tmp_path / 'third'}")
    assert third.code == 0, third.err
    page = (tmp_path / "third" / "report.html").read_text()
    assert f"surefoot validate compare=[{read[0]},{read[1]}] output={tmp_path / 'third'}" in page
