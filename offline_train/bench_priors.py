"""The pathology of KL-regularised learning, shown: what every prior says near its demonstrations and far from them.

`surefoot bench name=priors` fits each prior to 14 of the 15 HalfCheetah demonstrations and asks it on the last one,
half way between two demonstrated states, and further and further away. Beside the standard deviation stands the
gradient of the divergence of a policy that goes on doing what was demonstrated: (mu - mu0) / s0^2, which explodes where
s0 collapses.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from pydantic import TypeAdapter
from rich.table import Table
from torch import Tensor

import configs
from adapters.datasets import load_dataset
from adapters.files import atomic_path
from adapters.progress import MoveBar
from offline_train.algorithms.nppac import PriorTold, gaussian_divergence
from offline_train.priors.base import Prior, log_density
from offline_train.priors.fit import FITS, AnyPriorConfig, fit_prior
from sim.charts import COLOURS

DATASET = "halfcheetah-demos"
# How far a state is moved, in standard deviations of the observations.
DISTANCES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
ROWS, POLICY_STD = 500, 0.1


def shipped_prior(name: str, effort: float) -> AnyPriorConfig:
    """The settings of configs/prior/NAME.yaml, its steps times the effort."""
    folder = Path(configs.__path__[0]) / "prior"
    settings: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))  # type: ignore[assignment]
    for base in settings.pop("defaults", []):
        settings = OmegaConf.to_container(OmegaConf.load(folder / f"{base}.yaml")) | settings  # type: ignore[operator, assignment]
    settings["steps"] = max(round(settings["steps"] * effort), 1)
    return TypeAdapter[Any](AnyPriorConfig).validate_python(settings)


def states(obs: Tensor, held_out: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """States to ask at, `(ROWS, obs_dim)` each, by name: `distance D` are held-out states moved so far at random."""
    first, second = (torch.randint(len(obs), (ROWS,), generator=generator) for _ in range(2))
    base = held_out[torch.randint(len(held_out), (ROWS,), generator=generator)]
    away = torch.randn(base.shape, generator=generator)
    away = away / away.norm(dim=1, keepdim=True) * obs.std(0) * obs.shape[1] ** 0.5
    moved = {f"distance {distance:g}": base + distance * away for distance in DISTANCES}
    return {"demonstrated": obs[first], "interpolated": 0.5 * (obs[first] + obs[second]), **moved}


def divergence_gradient(prior: Prior, obs: Tensor, mean: Tensor) -> float:
    """Mean norm of the gradient by the policy's mean of KL( N(mean, POLICY_STD^2) || prior )."""
    mean = mean.clone().requires_grad_(True)
    log_std = torch.full_like(mean, np.log(POLICY_STD))
    gaussian_divergence(mean, log_std, PriorTold(*prior.predict_all(obs))).sum().backward()
    assert mean.grad is not None
    return float(mean.grad.norm(dim=1).mean())


def bench_priors(effort: float, move: MoveBar) -> list[dict[str, Any]]:
    """Fit every prior and ask it; one line of the report each.

    Args:
        effort: share of the usual steps of each fit.
        move: told how many priors are done.
    """
    settings = OmegaConf.load(Path(configs.__path__[0]) / "dataset" / f"{DATASET}.yaml")
    dataset = load_dataset(settings.path, settings.env)
    last = dataset.episode_slices()[-1]
    obs, action = (torch.from_numpy(values) for values in (dataset.observations, dataset.actions))
    asked = states(obs[: last.start], obs[last], torch.Generator().manual_seed(0))
    generator, rows = torch.Generator().manual_seed(0), []
    # The action that was demonstrated where each moved state started from; drawn as in `states`.
    for _ in range(2):
        torch.randint(last.start, (ROWS,), generator=generator)
    doing = action[last][torch.randint(last.stop - last.start, (ROWS,), generator=generator)]
    for place, name in enumerate(FITS):
        move(place, name)
        start = time.perf_counter()
        prior = fit_prior(
            shipped_prior(name, effort), obs[: last.start], action[: last.start], 0, lambda step, note: None
        )
        spent = time.perf_counter() - start
        mean, std = prior.predict_all(obs[last])
        deviation = {where: float(prior.predict_all(there)[1].mean()) for where, there in asked.items()}
        moved = {where: there for where, there in asked.items() if where.startswith("distance")}
        rows.append(
            {
                "name": name,
                "fit_seconds": spent,
                "log_likelihood": float(log_density(action[last], mean, std).mean()),
                "rmse": float((mean - action[last]).square().mean().sqrt()),
                "deviation": deviation,
                "far_to_near": deviation[f"distance {DISTANCES[-1]:g}"] / deviation["demonstrated"],
                "gradient": {where: divergence_gradient(prior, there, doing) for where, there in moved.items()},
            }
        )
    return rows


def prior_table(report: dict[str, Any]) -> Table:
    """Lay the priors out for the terminal."""
    far = f"distance {DISTANCES[-1]:g}"
    table = Table(
        title="what each prior says of the action",
        caption="std: mean predictive standard deviation, noise included; moved: held-out states moved by 16 standard "
        "deviations of the observations; ratio: moved to demonstrated; log-likelihood of a held-out demonstration's "
        "actions, 6 numbers each; gradient: of the divergence by the policy's mean, held-out and moved",
        caption_justify="left",
    )
    table.add_column("prior")
    for title in (
        "std demonstrated",
        "held out",
        "half way",
        "moved",
        "ratio",
        "log-lik.",
        "gradient",
        "moved",
        "fit, s",
    ):
        table.add_column(title, justify="right")
    for row in report["rows"]:
        std, gradient = row["deviation"], row["gradient"]
        stds = (std[where] for where in ("demonstrated", "distance 0", "interpolated", far))
        table.add_row(
            row["name"],
            *(f"{value:.3f}" for value in stds),
            f"{row['far_to_near']:.2f}",
            f"{row['log_likelihood']:.2f}",
            f"{gradient['distance 0']:.3g}",
            f"{gradient[far]:.3g}",
            f"{row['fit_seconds']:.0f}",
        )
    return table


def prior_figure(report: dict[str, Any], path: Path) -> None:
    """Draw standard deviation and gradient against the distance from the demonstrations, a line for each prior.

    Raises:
        UserError: the place cannot be written.
    """
    whole = Figure(figsize=(11, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(whole)
    for axis, figure, label in zip(
        whole.subplots(1, 2),
        ("deviation", "gradient"),
        ("predictive standard deviation of the action", "gradient of the divergence by the policy's mean"),
        strict=True,
    ):
        for index, row in enumerate(report["rows"]):
            parametric = row["name"] in ("mle", "ensemble", "mc-dropout")
            values = [row[figure][f"distance {distance:g}"] for distance in DISTANCES]
            colour = COLOURS[index % len(COLOURS)]
            axis.plot(DISTANCES, values, "--o" if parametric else "-o", color=colour, label=row["name"], markersize=4)
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set_yscale("log")
        axis.set_xlabel("distance of the state from held-out demonstrations, standard deviations")
        axis.set_title(label, fontsize=11)
        axis.grid(color="#dddddd", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    whole.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    with atomic_path(path) as draft:
        whole.savefig(draft, format="png")
