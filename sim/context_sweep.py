"""Which estimator, with which settings, serves a policy best: every variant over the same worlds and starts.

The defaults in deploy/context/ come from this sweep (results/context-sweep.json); `surefoot bench name=context`
repeats it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from adapters.errors import UserError
from deploy.bundle import Bundle
from deploy.context import ContextEstimator, Health, make_estimator
from deploy.controller import Controller
from sim.environments import make_environment
from sim.perturb import load_suite
from sim.plant import BatchedPlant
from sim.rollout import EpisodeResult, run_episodes
from sim.validate import steps_to_90_percent

STEPS = 1_000


class Variant(NamedTuple):
    """One estimator with the settings that differ from its defaults; `fixed` is told `z` whatever happens.

    No name stands for the bundle's nominal context.
    """

    estimator: str
    settings: dict[str, Any]


# One setting at a time away from the defaults, since the settings act on different parts of an estimate.
SCALINGS = (
    Variant("", {}),
    *(Variant("fixed", {"z": z}) for z in (0.9, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3)),
    Variant("linear_forward", {}),
    Variant("linear_forward", {"warm_up": 100}),
    Variant("linear_forward", {"half_width": 0.1}),
    Variant("linear_forward", {"forgetting": 0.99}),
    Variant("linear_forward", {"smoothing": 0.0}),
    Variant("scale", {}),
    *(Variant("scale", {"forgetting": weight}) for weight in (0.98, 0.995)),
    *(Variant("scale", {"prior_std": std}) for std in (0.05, 0.1)),
    Variant("affine", {}),
    Variant("shared_scale", {}),
    *(Variant("shared_scale", {"forgetting": weight}) for weight in (0.98, 0.995)),
    *(Variant("shared_scale", {"min_explained": share}) for share in (0.1, 0.5)),
    *(Variant("shared_scale", {"most": most}) for most in (1.05, 1.15, 1.2)),
    *(Variant("shared_scale", {"least": least}) for least in (0.9, 0.95)),
)
GAINS = (
    Variant("", {}),
    *(Variant("fixed", {"z": z}) for z in (0.8, 0.9, 1.1, 1.2)),
    Variant("actuator_gain", {}),
    *(Variant("actuator_gain", {"forgetting": weight}) for weight in (0.95, 0.99)),
    *(Variant("actuator_gain", {"prior_std": std}) for std in (0.1, 1.0)),
    *(Variant("actuator_gain", {"min_explained": share}) for share in (0.0, 0.3)),
    Variant("actuator_gain", {"change": {"keep": 1.0}}),
)
VARIANTS = {"delta_scale": SCALINGS, "actuator_gain": GAINS}


def variants_for(bundle: Bundle) -> tuple[Variant, ...]:
    """Return what is compared for a policy: what gives the kind of context that it reads.

    Raises:
        UserError: it reads none.
    """
    if bundle.manifest.context is None:
        raise UserError(
            f"the policy of {bundle.path} reads no context, so there is no estimator to choose; give another."
        )
    return VARIANTS[bundle.manifest.context.kind]


class FixedContext:
    """Tells the policy the same `z` for every scaling or gain at every step, and no push.

    Args:
        z: the context.
        shape: `(n, context_dim)`.
        pushed: how many of its numbers, the first ones, are pushes.
    """

    needs_action = False

    def __init__(self, z: float, shape: tuple[int, ...], pushed: int = 0) -> None:
        self.z = np.full(shape, z)
        self.z[..., :pushed] = 0.0

    def reset(self) -> None:
        """Nothing is remembered, so nothing is forgotten."""

    def update(self, obs: np.ndarray, action: np.ndarray, next_obs: np.ndarray, valid: Any = None) -> None:
        """Nothing is learned from a transition."""

    def context(self, obs: np.ndarray, action: np.ndarray | None) -> np.ndarray:
        """Return z, whatever is observed."""
        return self.z

    def health(self) -> Health:
        """Return no residual and no confidence: nothing is estimated."""
        lanes = self.z.shape[:-1]
        return Health(np.zeros(lanes), np.zeros(lanes), np.zeros(lanes, bool))


def sweep(
    bundle: Bundle,
    suites: Sequence[str],
    episodes: int,
    seed: int,
    variants: Sequence[Variant],
    threads: int = 1,
    progress: Callable[[int], Any] | None = None,
) -> list[dict[str, Any]]:
    """Validate one policy under every variant.

    Args:
        bundle: the policy; it must read a context.
        suites: suites of changed worlds.
        episodes: episodes in every world.
        seed: of the starts.
        variants: what to compare.
        threads: how many share the episodes; the result does not depend on it.
        progress: called with the number of variants done.

    Returns:
        One row for each variant: estimator, settings, mean return at the original dynamics and over each suite, and
        how many steps the context took after a change mid-run.
    """
    environment = make_environment(bundle.manifest.env)
    worlds = [(suite, world) for suite in suites for world in load_suite(suite, environment)]
    original = [index for index, (_, world) in enumerate(worlds) if world.name == "mass-1-damping-1"]
    rows = []
    for done, variant in enumerate(variants):
        result = run_episodes(
            environment,
            [world for _, world in worlds],
            functools.partial(_controller, bundle, variant),
            episodes=episodes,
            seed=seed,
            steps=STEPS,
            threads=threads,
        )
        means = result.returns.mean(-1)
        row: dict[str, Any] = {"estimator": variant.estimator or "nominal", "settings": variant.settings}
        if original:
            row["original"] = float(means[original[0]])
        for suite in suites:
            row[suite] = float(np.mean([mean for mean, (of, _) in zip(means, worlds, strict=True) if of == suite]))
        row["steps to 90 %"] = _reaction(result, [world.change_steps for _, world in worlds])
        rows.append(row)
        if progress is not None:
            progress(done + 1)
    return rows


def _reaction(result: EpisodeResult, changes: Sequence[Sequence[int]]) -> float | None:
    """Median over the worlds that change mid-run of the steps until the context has moved 90 % of its way.

    A second change ends what is looked at. None where it moved, beyond its own noise, in none of them.
    """
    if result.context is None:
        return None
    steps = [
        steps_to_90_percent(whole.mean(0)[: at_steps[1] if len(at_steps) > 1 else None], at_steps[0])
        for trace, fell, at_steps in zip(result.context, result.falls, changes, strict=True)
        # Of an episode that ended early the rest is zeros.
        if at_steps and len(whole := trace[~fell])
    ]
    moved = [count for count in steps if count is not None]
    return float(np.median(moved)) if moved else None


def _controller(bundle: Bundle, variant: Variant, plant: BatchedPlant) -> Controller:
    batch = (len(plant),)
    if not variant.estimator:
        return Controller(bundle, context="nominal", batch=batch)
    return Controller(bundle, estimator=_estimator(bundle, variant, batch), batch=batch)


def _estimator(bundle: Bundle, variant: Variant, batch: tuple[int, ...]) -> ContextEstimator:
    context = bundle.manifest.context
    assert context is not None
    if variant.estimator == "fixed":
        return FixedContext(variant.settings["z"], (*batch, context.dim), len(context.pushed))
    return make_estimator(
        variant.estimator,
        predict_change=bundle.predict_change,
        pushed=context.pushed,
        low=np.array(context.low),
        high=np.array(context.high),
        nominal=np.array(context.nominal),
        act_dim=bundle.manifest.robot.act_dim,
        settings=variant.settings,
        batch=batch,
    )


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Lay the sweep out for the terminal: a row for each variant, mean returns."""
    shown = Table(title="Mean return by context estimator")
    places = [key for key in rows[0] if key not in ("estimator", "settings")]
    for column in ("estimator", "settings"):
        shown.add_column(column)
    for place in places:
        shown.add_column(place, justify="right")
    for row in rows:
        settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items()) or "defaults"
        shown.add_row(row["estimator"], settings, *(_shown(row[place]) for place in places))
    return shown


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
