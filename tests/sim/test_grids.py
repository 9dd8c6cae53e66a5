"""A grid is found by the values of its worlds, whatever they are called, and only where it is whole."""

from __future__ import annotations

from typing import Any

import pytest

from sim.grids import Grid, find_grid
from sim.perturb import load_suite
from sim.scores import World


def _find(worlds: list[dict[str, Any]]) -> Grid | None:
    return find_grid({World("s", world["name"]): {"perturbation": world} for world in worlds})


def _shipped(suite: str) -> list[dict[str, Any]]:
    return [world.model_dump(mode="json", exclude_defaults=True) for world in load_suite(suite)]


@pytest.mark.parametrize(
    ("suite", "values"),
    [
        ("mass-damping", [0.5, 0.75, 1.0, 1.25, 1.5]),
        ("mass-damping-49", [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]),
    ],
)
def test_shipped_grids(suite: str, values: list[float]) -> None:
    worlds = _shipped(suite)
    # The order of the worlds does not matter.
    grid = _find(worlds[::-1])
    assert grid is not None
    assert (grid.row_quantity, grid.column_quantity) == ("mass", "joint damping")
    assert grid.rows == grid.columns == values
    assert grid.worlds[0.5, 1.25] == World("s", "mass-0.5-damping-1.25")
    assert len(grid.worlds) == len(values) ** 2


def test_axes_are_the_quantities_that_the_worlds_name() -> None:
    worlds = [
        {"name": f"{n}", "geom_friction": {"*": a}, "actuator_gain": {"bfoot": b}}
        for n, (a, b) in enumerate([(1.0, 0.5), (2.0, 0.5), (1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (3.0, 0.5)])
    ]
    grid = _find(worlds)
    assert grid is not None
    assert (grid.row_quantity, grid.rows) == ("friction", [1.0, 2.0, 3.0])
    assert (grid.column_quantity, grid.columns) == ("motor strength of bfoot", [0.0, 0.5])
    assert grid.worlds[3.0, 0.0] == World("s", "4")


def test_what_is_no_grid() -> None:
    worlds = _shipped("mass-damping")
    assert _find(worlds) is not None
    assert _find(worlds[1:]) is None
    assert _find([*worlds, worlds[0] | {"name": "again"}]) is None
    assert _find([*worlds[1:], worlds[0] | {"at_step": 5}]) is None
    assert _find([*worlds[1:], worlds[0] | {"gravity": 0.5}]) is None
    assert _find(worlds[:5]) is None
    assert _find(_shipped("joint-failure")) is None
    assert _find([{"name": "original"}]) is None
