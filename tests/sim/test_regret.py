"""Regret against policies that were trained in the changed worlds themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.errors import UserError
from adapters.files import read_json, write_json
from deploy.bundle import Bundle, write_bundle
from sim.regret import compute, main, read_bundles
from sim.validate import validate

SUITE = """
- {name: light, body_mass: {"*": 0.5}}
- {name: weak, actuator_gain: {bthigh: 0.0}}
- {name: heavy, body_mass: {"*": 1.5}}
"""
LIGHT = {"name": "light", "body_mass": {"*": 0.5}}
WEAK = {"name": "weak", "actuator_gain": {"bthigh": 0.0}}

MakeBundle = Callable[..., Path]


@pytest.fixture
def trained_in(make_bundle: MakeBundle, tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle into `bundles/` that says in which world it was trained."""

    def make(perturbation: dict[str, Any] | None, name: str = "") -> Path:
        tiny = make_bundle(context=False)
        manifest = Bundle.load(tiny).manifest
        config = {"suite": "folder/suite.yaml", "world": (perturbation or LIGHT)["name"], "perturbation": perturbation}
        provenance = manifest.provenance.model_copy(update={"config": config})
        path = tmp_path / "bundles" / f"{name or config['world']}.bundle"
        with np.load(tiny / "golden.npz") as golden:
            write_bundle(
                path,
                policy=(tiny / "policy.onnx").read_bytes(),
                spec=manifest.model_copy(update={"provenance": provenance}),
                golden=dict(golden),
            )
        return path

    return make


@pytest.fixture
def own_report(make_bundle: MakeBundle, tmp_path: Path) -> dict[str, Any]:
    """What validation says of the same policy in the worlds; a score of 1 is a return of 100."""
    (tmp_path / "suite.yaml").write_text(SUITE)
    report = validate(make_bundle(context=False), [tmp_path / "suite.yaml"], episodes=3, seed=5, steps=40)
    return report | {"yardstick_return": 100.0}


def lowered(report: dict[str, Any], *by: float) -> dict[str, Any]:
    """The report with less return in its worlds, one number for each."""
    changed = copy.deepcopy(report)
    for cell, less in zip(changed["cells"], by, strict=True):
        cell["returns"] = [value - less for value in cell["returns"]]
    return changed


@pytest.fixture
def folders(trained_in: Callable[..., Path], own_report: dict[str, Any], tmp_path: Path) -> tuple[Path, Path]:
    """Policies trained in two of three worlds, and reports of a method with three seeds and of one with one."""
    for world, name in ((WEAK, "a"), (LIGHT, "b")):
        trained_in(world, name)
    for seed, less in enumerate((0.0, 10.0, 20.0)):
        write_json(tmp_path / "reports" / f"ours-{seed}.json", lowered(own_report, less, less + 20.0, 999.0))
    write_json(tmp_path / "reports" / "same-0.json", own_report)
    return tmp_path / "bundles", tmp_path / "reports"


def test_bundles_run_as_validation_runs_them(folders: tuple[Path, Path], own_report: dict[str, Any]) -> None:
    bound = compute(folders[0], [folders[1]]).columns[0]
    validated = {cell["name"]: cell["returns"] for cell in own_report["cells"]}
    assert {world.name: cell["returns"] for world, cell in bound.cells[0].items()} == {
        name: validated[name] for name in ("light", "weak")
    }
    assert len(set(validated["light"])) == 3


def test_regret_is_what_the_reports_lack(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    bundles, reports = folders
    assert main([str(bundles), str(reports)]) == 0
    numbers = read_json(bundles / "regret.json")
    # In units of 100: 0, 0.1 and 0.2 in the light world, 0.2 more in the weak one; 0.1, 0.2 and 0.3 on average.
    # Standard deviation 0.1, t(0.975, 2) = 4.303: 0.2 +- 4.303 x 0.1 / sqrt(3) = 0.248.
    light, weak = (world["regret"]["ours nominal"] for world in numbers["worlds"])
    assert (light["point"], weak["point"]) == (pytest.approx(0.1), pytest.approx(0.3))
    (scope,) = numbers["scopes"]
    ours, same = scope["regret"]["ours nominal"], scope["regret"]["same nominal"]
    assert ours["by_seed"] == pytest.approx([0.1, 0.2, 0.3]) and ours["over"] == "training seeds"
    assert (ours["low"], ours["high"]) == (pytest.approx(-0.0484, abs=1e-4), pytest.approx(0.4484, abs=1e-4))
    # A policy has no regret against itself, whatever the episode.
    assert (same["point"], same["low"], same["high"], same["over"]) == (0, 0, 0, "episodes")
    # Three seeds and one cannot be paired.
    assert scope["differences"] == []
    # The worlds come in the order of the reports, whatever the bundles are called.
    assert [(world["name"], world["bundle"]) for world in numbers["worlds"]] == [
        (world, Bundle.load(bundles / f"{name}.bundle").sha256) for world, name in (("light", "b"), ("weak", "a"))
    ]
    row = next(line for line in capsys.readouterr().out.splitlines() if "suite: mean" in line)
    assert "+0.200 (-0.048 to +0.448)" in row and "+0.000 (+0.000 to +0.000)" in row


def test_a_world_may_be_in_another_suite_too(folders: tuple[Path, Path], own_report: dict[str, Any]) -> None:
    renamed = copy.deepcopy(own_report)
    for cell in renamed["cells"]:
        cell["suite"] = "larger-suite"
    elsewhere = folders[1].parent / "elsewhere"
    write_json(elsewhere / "ours-0.json", renamed)
    columns = [compute(folders[0], [place]).columns[0] for place in (folders[1], elsewhere)]
    assert [world.suite for column in columns for world in column.worlds()] == ["suite"] * 2 + ["larger-suite"] * 2
    (here,), (there,) = ([report["cells"] for report in column.reports] for column in columns)
    assert [cell["returns"] for cell in here] == [cell["returns"] for cell in there]


def test_less_regret_is_a_difference_below_zero(
    folders: tuple[Path, Path], own_report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(folders[1] / "worse-0.json", lowered(own_report, 30.0, 50.0, 0.0))
    assert main([str(each) for each in folders]) == 0
    # The only pair with as many seeds: 0 against 0.3 and 0.5 of regret, the same in every episode.
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " - " in line and "nominal" in line)
    assert "worse nominal - same nominal" in line and "+0.400 (+0.400 to +0.400); +0.400" in line


def test_columns_of_several_folders_are_told_apart(folders: tuple[Path, Path], own_report: dict[str, Any]) -> None:
    other = folders[1].parent / "other" / "validation"
    write_json(other / "same-0.json", own_report)
    titles = [column.title for column in compute(folders[0], [folders[1], other]).columns[1:]]
    here = folders[1].parent.name
    assert titles == [f"{here} ours nominal", f"{here} same nominal", "other same nominal"]


def test_bundles_that_do_not_say_one_world_are_refused(trained_in: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no bundles"):
        read_bundles(tmp_path)
    first = trained_in(LIGHT)
    trained_in(LIGHT, "again")
    with pytest.raises(UserError, match=rf"again.bundle and {first} were trained in the same world"):
        read_bundles(tmp_path / "bundles")
    trained_in(None, "again")
    with pytest.raises(UserError, match=r"again.bundle was not trained in a changed world"):
        read_bundles(tmp_path / "bundles")


def test_reports_that_do_not_fit_are_refused(folders: tuple[Path, Path], own_report: dict[str, Any]) -> None:
    bundles, reports = folders
    write_json(reports / "z-0.json", own_report | {"seeds": [6]})
    with pytest.raises(UserError, match=r"'z nominal' has seeds \[6\] and 'ours nominal' has \[5\]"):
        compute(bundles, [reports])
    write_json(reports / "z-0.json", own_report | {"env": "walker2d"})
    with pytest.raises(UserError, match="'z nominal' has env walker2d and 'ours nominal' has halfcheetah"):
        compute(bundles, [reports])
    write_json(reports.parent / "walker2d" / "z-0.json", own_report | {"env": "walker2d"})
    with pytest.raises(UserError, match=r"a.bundle is of halfcheetah and 'z nominal' of walker2d"):
        compute(bundles, [reports.parent / "walker2d"])
    other = copy.deepcopy(own_report)
    other["cells"][1]["perturbation"] = WEAK | {"actuator_gain": {"bthigh": 0.1}}
    write_json(reports / "z-0.json", other)
    with pytest.raises(UserError, match="the world 'weak' of suite 'suite' is another one in 'z nominal'"):
        compute(bundles, [reports])
    few = own_report | {"cells": own_report["cells"][:1]}
    write_json(reports.parent / "few" / "z-0.json", few)
    with pytest.raises(UserError, match="has all worlds that the bundles were trained in, for example 'weak'"):
        compute(bundles, [reports.parent / "few"])


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 3
