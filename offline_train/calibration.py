"""How well a model's uncertainty tells its error: every penalty beside the truth, where a policy goes in the model.

The protocol of Lu et al. 2022, "Revisiting Design Choices in Offline Model-Based RL" (arXiv 2110.04135): a policy is
rolled out in the world model from states of the log; the true simulator is put into every state that it visits, and
steps once under the same action; the error of the model is the mean squared difference of the next states over their
dimensions. A penalty is calibrated where it ranks these errors (Spearman) or is even proportional to them (Pearson).

Starts are states of held-out episodes, the same for all runs on one log. Rows of one rollout resemble one another, so
intervals come from drawing the starts anew, each with its whole rollout in every run (a cluster bootstrap).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from adapters.errors import UserError
from adapters.files import atomic_path
from offline_train.finished_run import Run
from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.models.penalties import PENALTIES, measure
from offline_train.models.rollout import HORIZONS
from sim.charts import COLOURS
from sim.environments import Environment, make_environment
from sim.oracle import true_step

RESAMPLES = 1_000
# The error of what was drawn, as published, and of the elites' mean, which has no noise in it.
ERRORS = ("drawn", "mean")
# What the others are compared with: the thesis of the paper is that nothing tells the error better.
YARDSTICK = "ensemble_std"
MEASURES = ("spearman", "pearson")


class Visits(NamedTuple):
    """The states that rollouts visited, one row each.

    Attributes:
        start: which rollout, `(rows,)`.
        step: how many steps into it, from 0, `(rows,)`.
        penalties: `(penalties, rows)`, in the order of `PENALTIES`.
        errors: `(errors, rows)`, in the order of `ERRORS`, squared and in the units of the observations.
        left_out: rows in which the simulator itself broke down at the state that the model had come to.
    """

    start: np.ndarray
    step: np.ndarray
    penalties: np.ndarray
    errors: np.ndarray
    left_out: int


@torch.no_grad()
def visit(
    model: DynamicsEnsemble,
    act: Callable[[Tensor], Tensor],
    starts: Tensor,
    environment: Environment,
    *,
    steps: int,
    seed: int,
) -> Visits:
    """Roll a policy out in the model and compare every step with the simulator's.

    Args:
        model: the world model.
        act: observations `(batch, obs_dim)` to actions `(batch, act_dim)` in [-1, 1].
        starts: first observations `(starts, obs_dim)`.
        environment: the truth.
        steps: length of a rollout that does not end before.
        seed: of the model's noise.
    """
    generator = torch.Generator().manual_seed(seed)
    obs, lanes = starts, np.arange(len(starts))
    rows: list[tuple[np.ndarray, ...]] = []
    left_out = 0
    for step in range(steps):
        action = act(obs)
        prediction = model.draw(obs, action, generator)
        next_obs = obs + prediction.drawn[:, :-1]
        penalties = np.stack([measure(name, prediction, generator).double().numpy() for name in PENALTIES])
        true, _, sound = true_step(environment, obs.numpy(), environment.commands(action.numpy()))
        predicted = np.stack([next_obs.numpy(), (obs + model.mean_change(obs, action)[0]).numpy()])
        errors = np.square(predicted - true).mean(-1)
        left_out += int((~sound).sum())
        rows.append((lanes[sound], np.full(int(sound.sum()), step), penalties[:, sound], errors[:, sound]))
        alive = ~np.asarray(environment.terminated(next_obs.numpy()))
        obs, lanes = next_obs[alive], lanes[alive]
        if not len(lanes):
            break
    start, at, penalty, error = (np.concatenate(part, -1) for part in zip(*rows, strict=True))
    return Visits(start, at, penalty, error, left_out)


def correlations(penalties: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Spearman's and Pearson's correlation of every penalty `(penalties, rows)` with every error `(errors, rows)`.

    Returns:
        `(measures, errors, penalties)`; 0 where one of the two is the same in all rows.
    """
    both = np.concatenate([errors, penalties])
    return np.stack([_correlate(values, len(errors)) for values in (stats.rankdata(both, axis=-1), both)])


def _correlate(values: np.ndarray, first: int) -> np.ndarray:
    """Pearson's correlation of the `first` rows with the others, `(first, others)`."""
    centred = values - values.mean(-1, keepdims=True)
    norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    return unit[:first] @ unit[first:].T


def resampled(visits: Visits, horizon: int, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """The correlations over the rows of the first `horizon` steps, and over as many draws of the starts.

    Returns:
        `(1 + resamples, measures, errors, penalties)`; the first are those of the rows as they are.
    """
    kept = np.flatnonzero(visits.step < horizon)
    order = kept[np.argsort(visits.start[kept], kind="stable")]
    starts, first = np.unique(visits.start[order], return_index=True)
    by_start = np.split(order, first[1:])
    draws = [np.arange(len(starts)), *generator.integers(len(starts), size=(resamples, len(starts)))]
    found = []
    for picked in draws:
        rows = np.concatenate([by_start[index] for index in picked])
        found.append(correlations(visits.penalties[:, rows], visits.errors[:, rows]))
    return np.stack(found)


def summary(drawn: np.ndarray, horizon: int) -> list[dict[str, Any]]:
    """Lay out what `resampled` gave: every correlation with its 95 % interval, and its lead over the yardstick's.

    Args:
        drawn: `(1 + resamples, measures, errors, penalties)`.
        horizon: of the rollouts.
    """
    lead = drawn - drawn[..., [[*PENALTIES].index(YARDSTICK)]]
    return [
        {
            "horizon": horizon,
            "error": error,
            "penalty": penalty,
            **{
                f"{name}{what}": _interval(values[:, row, column, place])
                for row, name in enumerate(MEASURES)
                for what, values in (("", drawn), ("_lead", lead))
            },
        }
        for column, error in enumerate(ERRORS)
        for place, penalty in enumerate(PENALTIES)
    ]


def _interval(values: np.ndarray) -> list[float]:
    """The figure and its 95 % percentile interval."""
    return [round(float(value), 5) for value in (values[0], *np.percentile(values[1:], [2.5, 97.5]))]


def first_members(model: DynamicsEnsemble, count: int) -> DynamicsEnsemble:
    """The ensemble that the first `count` members of a larger one are, all of them elites.

    Raises:
        UserError: it has not so many.
    """
    if not 0 < count <= model.members:
        raise UserError(f"members={count} cannot be taken of a world model of {model.members}.")
    smaller = copy.deepcopy(model)
    for module in [*smaller.layers, smaller.mean_head, smaller.log_variance_head]:
        module.weight, module.bias = (
            torch.nn.Parameter(values[:count], requires_grad=False) for values in (module.weight, module.bias)
        )
    smaller.members, smaller.elite_index = count, torch.arange(count)
    return smaller


def calibrate(
    runs: Sequence[Path], starts: int, members: int | None, seed: int, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Calibrate every penalty on runs and return the figures as JSON.

    Args:
        runs: folders of runs of a model-based algorithm.
        starts: rollouts of each.
        members: how many of each world model's members to keep, None for all.
        seed: of starts, noise and bootstrap.
        progress: called with the number of runs done.

    Raises:
        UserError: a run has no world model, or its observations do not tell the state.
    """
    rows, together = [], []
    for done, folder in enumerate(runs):
        run = Run(folder)
        if run.algorithm is None or run.data is None:
            raise UserError(f"{folder} was not trained in a world model; choose a run of mopo or its kin.")
        model = run.algorithm.model if members is None else first_members(run.algorithm.model, members)
        holdout = torch.from_numpy(run.data.holdout.observations).float()
        chosen = torch.randint(len(holdout), (starts,), generator=torch.Generator().manual_seed(seed))
        environment = make_environment(run.record["dataset"]["env"])
        visits = visit(model, run.algorithm.act_nominal, holdout[chosen], environment, steps=max(HORIZONS), seed=seed)
        drawn = {horizon: resampled(visits, horizon, np.random.default_rng(seed), RESAMPLES) for horizon in HORIZONS}
        together.append(drawn)
        rows.append(
            {
                "run": str(folder),
                "algorithm": run.config.algorithm.name,
                "dataset": run.config.dataset.name,
                "seed": run.config.seed,
                "members": model.members,
                "visited": len(visits.start),
                "left_out": visits.left_out,
                "rmse": {str(h): _rmse(visits, h) for h in HORIZONS},
                "correlations": [row for horizon in HORIZONS for row in summary(drawn[horizon], horizon)],
            }
        )
        progress(done + 1)
    mean = {horizon: np.mean([drawn[horizon] for drawn in together], 0) for horizon in HORIZONS}
    return {
        "resamples": RESAMPLES,
        "rows": rows,
        "mean": [row for horizon in HORIZONS for row in summary(mean[horizon], horizon)],
    }


def _rmse(visits: Visits, horizon: int) -> float:
    """Root mean squared error of what was drawn over the first steps, in the units of the observations."""
    return float(np.sqrt(visits.errors[0, visits.step < horizon].mean()))


def calibration_table(report: dict[str, Any]) -> Table:
    """Lay the means over the runs out for the terminal."""
    table = Table(
        title=f"Penalties and the model's error, mean over {len(report['rows'])} run(s)",
        caption="Over all states of rollouts of so many steps. * above and ' below ensemble_std: the 95 % interval of "
        "the difference, over starts, is without 0. json=FILE keeps every interval, and draws them.",
        caption_justify="left",
    )
    table.add_column("correlation")
    table.add_column("penalty")
    for horizon in HORIZONS:
        table.add_column(str(horizon), justify="right")
    for name in MEASURES:
        for penalty in PENALTIES:
            cells = [_cell(report, penalty, name, horizon) for horizon in HORIZONS]
            table.add_row(name, penalty, *cells, end_section=penalty == [*PENALTIES][-1])
    return table


def _found(report: dict[str, Any], penalty: str, horizon: int) -> dict[str, Any]:
    wanted = (penalty, horizon, ERRORS[0])
    return next(row for row in report["mean"] if (row["penalty"], row["horizon"], row["error"]) == wanted)


def _cell(report: dict[str, Any], penalty: str, name: str, horizon: int) -> str:
    row = _found(report, penalty, horizon)
    _, least, most = row[f"{name}_lead"]
    mark = "*" if least > 0 else "'" if most < 0 else " "
    return f"{row[name][0]:.2f}{mark}"


def calibration_figure(report: dict[str, Any], path: Path) -> None:
    """Draw the means over the runs by horizon, with their intervals, as a PNG.

    Raises:
        UserError: the place cannot be written.
    """
    figure = Figure(figsize=(13, 8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for axis, name in zip(panels, MEASURES, strict=True):
        for index, (penalty, colour) in enumerate(zip(PENALTIES, COLOURS, strict=False)):
            values = np.array([_found(report, penalty, horizon)[name] for horizon in HORIZONS]).T
            # Side by side, so that no interval hides another.
            places = np.arange(len(HORIZONS)) + 0.06 * (index - (len(PENALTIES) - 1) / 2)
            reach = np.abs(values[1:] - values[0])
            style = "--" if penalty.endswith("_sampled") else "-"
            axis.errorbar(
                places, values[0], reach, fmt=f"o{style}", color=colour, capsize=2, markersize=4, label=penalty
            )
        axis.axhline(0.0, color="#999999", linewidth=0.8)
        axis.set_xticks(range(len(HORIZONS)), [str(horizon) for horizon in HORIZONS])
        axis.set_xlabel("steps of the rollouts")
        axis.set_title(f"{name.capitalize()}'s correlation with the squared error of the next state")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png")
