"""The fidelity of synthetic transitions as a picture: distance from the log against error in the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adapters.files import atomic_path
from sim.charts import COLOURS

SHOWN = 2_000
LEAST_ERROR = 1e-9


def fidelity_figure(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw one PNG: a panel for each data set, all on the same axes, and the scores over all of them.

    Args:
        path: where it is written.
        rows: what `fidelity.compare` returns.

    Raises:
        UserError: the place cannot be written.
    """
    across = min(len(rows), 4)
    down = -(-len(rows) // across)
    whole = Figure(figsize=(3.6 * across, 3.4 * down + 0.8), dpi=120, layout="constrained")
    FigureCanvasAgg(whole)
    axes = whole.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, row, colour in zip(axes, rows, np.resize(COLOURS, len(rows)), strict=False):
        distance = np.maximum(row["distance"][:SHOWN], 1e-3)
        error = np.maximum(row["error"][:SHOWN], LEAST_ERROR)
        axis.scatter(distance, error, s=3, alpha=0.35, color=colour, linewidths=0)
        axis.plot(np.median(distance), np.median(error), "k+", markersize=11, markeredgewidth=1.6)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(True, alpha=0.25)
        axis.set_title(
            f"{row['name']}\nmarginal {row['marginal']:.3f}, correlation {row['correlation']:.3f}", fontsize=9
        )
    for axis in axes[len(rows) :]:
        axis.set_visible(False)
    whole.supxlabel("distance to the nearest transition of the log, in its standard deviations", fontsize=10)
    whole.supylabel("mean squared error against the simulator", fontsize=10)
    whole.suptitle(f"Synthetic transitions, {SHOWN:,} of each; cross: medians", fontsize=11)
    with atomic_path(path) as draft:
        whole.savefig(draft, format="png")
