"""The fidelity of synthetic transitions as pictures: by transition, and by how many steps the sampler takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from adapters.files import atomic_path
from offline_train.diffusion.edm import SamplerConfig
from sim.charts import COLOURS

SHOWN = 2_000
# Errors and distances below these are shown as these.
LEAST_ERROR, LEAST_DISTANCE = 1e-6, 1e-2


def fidelity_figure(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw one PNG: distance from the log against error in the simulator, a panel for each data set.

    Args:
        path: where it is written.
        rows: what `fidelity.compare` returns.

    Raises:
        UserError: the place cannot be written.
    """
    across = min(len(rows), 3)
    down = -(-len(rows) // across)
    whole = Figure(figsize=(4.2 * across, 3.3 * down + 0.9), dpi=110, layout="constrained")
    axes = whole.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, row, colour in zip(axes, rows, np.resize(COLOURS, len(rows)), strict=False):
        distance = np.maximum(row["distance"][:SHOWN], LEAST_DISTANCE)
        error = np.maximum(row["error"][:SHOWN], LEAST_ERROR)
        axis.scatter(distance, error, s=4, alpha=0.35, color=colour, linewidths=0)
        axis.plot(np.median(distance), np.median(error), "k+", markersize=12, markeredgewidth=1.8)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.tick_params(labelbottom=True)
        # Over less than a decade they would be printed across each other.
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(True, alpha=0.25)
        scores = f"marginal {row['marginal']:.3f}, correlation {row['correlation']:.3f}"
        axis.set_title(f"{row['name']}\n{scores}", fontsize=10)
    for axis in axes[len(rows) :]:
        axis.set_visible(False)
    whole.supxlabel("distance to the nearest transition of the log, in its standard deviations", fontsize=10)
    whole.supylabel(f"mean squared error against the simulator (below {LEAST_ERROR:g} shown as that)", fontsize=10)
    whole.suptitle(f"{SHOWN:,} transitions of each; cross: medians", fontsize=11)
    _save(whole, path)


def steps_figure(path: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """Draw one PNG of the scores against the network evaluations of a row, where models were sampled in several ways.

    Args:
        path: where it is written.
        rows: what `fidelity.compare` returns.

    Returns:
        Whether there was anything to draw.

    Raises:
        UserError: the place cannot be written.
    """
    lines: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for row in rows:
        sampler = ((row["made_by"] or {}).get("config", {}).get("method") or {}).get("sampler")
        if sampler is not None:
            config = SamplerConfig.model_validate(sampler)
            kind = f"{config.solver}, {'stochastic' if config.churn else 'deterministic'}"
            lines[kind].append((config.evaluations, row))
    if len({(kind, evaluations) for kind, points in lines.items() for evaluations, _ in points}) < 3:
        return False
    whole = Figure(figsize=(12.0, 3.8), dpi=110, layout="constrained")
    for axis, name in zip(whole.subplots(1, 3), ("marginal", "correlation", "error"), strict=True):
        for (kind, points), colour in zip(sorted(lines.items()), COLOURS, strict=False):
            points = sorted(points, key=lambda point: point[0])
            values = [float(np.median(row[name])) for _, row in points]
            axis.plot([x for x, _ in points], values, "o-", color=colour, label=kind)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.grid(True, alpha=0.25)
        axis.set_title("error against the simulator, median" if name == "error" else f"{name} score", fontsize=11)
        axis.set_xlabel("network evaluations of a transition")
        axis.legend()
    _save(whole, path)
    return True


def _save(whole: Figure, path: Path) -> None:
    FigureCanvasAgg(whole)
    with atomic_path(path) as draft:
        whole.savefig(draft, format="png")
