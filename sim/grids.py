"""Suites that are grids: every world multiplies the same two quantities, and every pair of values is there once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.scores import World
from sim.wording import QUANTITIES, quantity


@dataclass(frozen=True)
class Grid:
    """A full grid of multipliers.

    Attributes:
        row_quantity: what the rows multiply, for example "mass".
        column_quantity: what the columns multiply.
        rows: multipliers of the rows, rising.
        columns: multipliers of the columns, rising.
        worlds: the world of every (row, column).
    """

    row_quantity: str
    column_quantity: str
    rows: list[float]
    columns: list[float]
    worlds: dict[tuple[float, float], World]


def find_grid(cells: Mapping[World, Mapping[str, Any]]) -> Grid | None:
    """Return the grid that the worlds of a suite make by their own values, or None where they make none.

    Args:
        cells: the suite's cells, of one context.
    """
    factors = {world: _factors(cell["perturbation"]) for world, cell in cells.items()}
    keys = next(iter(factors.values())).keys()
    if len(keys) != 2 or any(each.keys() != keys for each in factors.values()):
        return None
    row_key, column_key = keys
    worlds = {(each[row_key], each[column_key]): world for world, each in factors.items()}
    rows, columns = (sorted(set(values)) for values in zip(*worlds, strict=True))
    if not len(cells) == len(worlds) == len(rows) * len(columns) or min(len(rows), len(columns)) < 2:
        return None
    return Grid(quantity(*row_key), quantity(*column_key), rows, columns, worlds)


def _factors(perturbation: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """The multipliers of a world by (key, pattern); none where it changes anything else, or with time."""
    changes = {key: value for key, value in perturbation.items() if key != "name"}
    if not changes.keys() <= QUANTITIES.keys():
        return {}
    return {(key, pattern): factor for key, value in changes.items() for pattern, factor in value.items()}
