"""Learning curves: seeds on common steps, and the table at every tenth of the shortest."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from offline_train.learning_curves import Curves, align, curves_table


def printed(figure: str, curves: dict[str, Curves]) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(curves_table("tiny", figure, curves))
    return console.export_text()


def test_seeds_are_put_on_the_steps_of_the_first_as_far_as_all_go() -> None:
    steps: list[Sequence[float]] = [[10, 20, 30], [5, 25]]
    found = align(steps, [[1.0, 2.0, 3.0], [0.0, 4.0]])
    np.testing.assert_array_equal(found.steps, [10, 20])
    # From 0 at step 5 to 4 at step 25: 1 at step 10, 3 at step 20.
    np.testing.assert_array_equal(found.values, [[1.0, 2.0], [1.0, 3.0]])


def test_the_table_has_mean_and_range_at_every_tenth_of_the_shortest() -> None:
    tens = np.arange(10.0, 110.0, 10.0)
    text = printed(
        "return", {"long": Curves(tens, np.array([tens, tens + 20])), "short": Curves(tens[:5], tens[None, :5] * 0 + 7)}
    )
    # At 10 steps 10 and 30, at 100 steps 100 and 120.
    assert "20 (10 to 30)" in text and "110 (100 to 120)" in text
    # The shorter run ends half way, and nothing stands there for it beyond; its tenths are 5 steps long.
    assert text.count("7 (7 to 7)") == 9  # of 10, before its first evaluation there is nothing


def test_a_share_of_successes_has_two_digits() -> None:
    assert "0.25 (0.00 to 0.50)" in printed("success", {"one": Curves(np.array([10.0]), np.array([[0.0], [0.5]]))})
