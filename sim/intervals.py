"""What the scores show: intervals of columns, of their paired differences, and the sentence that says no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from adapters.errors import UserError
from sim.scores import Column, World


class Interval(NamedTuple):
    """A figure with its 95 % interval.

    Attributes:
        point: the figure.
        low: lower limit, NaN where there is nothing to take it from.
        high: upper limit, likewise.
        over: what the interval is taken over: `training seeds`, `episodes` or `nothing`.
    """

    point: float
    low: float
    high: float
    over: str


class Difference(NamedTuple):
    """The mean difference of two columns' scores with its interval, and the difference within each training seed."""

    interval: Interval
    by_seed: list[float]

    @property
    def verdict(self) -> str:
        """`gain` where the interval lies above zero, `loss` where it lies below, else `inconclusive`."""
        if self.interval.low > 0:
            return "gain"
        return "loss" if self.interval.high < 0 else "inconclusive"


def interquartile_mean(values: np.ndarray, axis: int | None = None) -> Any:
    """Return the mean of the middle half: a quarter of the values, rounded down, is left out at either end.

    Args:
        values: of any shape.
        axis: the axis to go along; None takes all values together, and returns one number.
    """
    ordered = np.sort(values, axis)
    along = 0 if axis is None else axis
    count = ordered.shape[along]
    return ordered.take(range(count // 4, count - count // 4), along).mean(along)


def interval(column: Column, worlds: Sequence[World], yardstick: float, samples: int = 2000, seed: int = 0) -> Interval:
    """Interquartile mean of a column's scores over training seeds and worlds, with a stratified bootstrap interval.

    Every world is a stratum: its training seeds are drawn anew, with replacement, apart from those of other worlds
    (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice", section 4). The interval covers the
    chance of the draw within each world; it does not cover that one policy stands behind all worlds of a seed, so it
    is narrower than the spread of other trainings and does not serve to compare columns (`paired_difference` does).
    With one training seed its episodes are drawn instead, and the interval says nothing about another training.

    Args:
        column: what was measured.
        worlds: the worlds to take together.
        yardstick: the return that scores 1.
        samples: bootstrap samples.
        seed: of the bootstrap.
    """
    return _bootstrap(column.returns(worlds) / yardstick, interquartile_mean, samples, seed)


def paired_difference(
    a: Column, b: Column, worlds: Sequence[World], yardstick: float, samples: int = 2000, seed: int = 0
) -> Difference:
    """Mean of a's score minus b's, paired by world and training seed, with an interval.

    One policy stands behind all worlds of a training seed, so the seeds are the only independent draws. With n >= 2 of
    them the interval is Student's: mean +- t(0.975, n - 1) s / sqrt(n), where s is the sample standard deviation of the
    seeds' mean differences. It covers another set of trainings, over the same worlds. With one seed it is a bootstrap
    over episodes within each world, paired since validation starts them alike in every column, and says nothing about
    another training.

    Args:
        a: the column to subtract from.
        b: the column to subtract.
        worlds: the worlds to take together.
        yardstick: the return that scores 1.
        samples: bootstrap samples, with one training seed.
        seed: of the bootstrap.

    Raises:
        UserError: the columns differ in their number of seeds or episodes.
    """
    ours, theirs = a.returns(worlds) / yardstick, b.returns(worlds) / yardstick
    if ours.shape != theirs.shape:
        raise UserError(
            f"'{a.title}' has (seeds, worlds, episodes) {ours.shape} and '{b.title}' {theirs.shape}; "
            "they can be paired only if both have the same."
        )
    difference = ours - theirs
    by_seed = difference.mean((1, 2))
    shown = _bootstrap(difference, np.mean, samples, seed) if len(by_seed) == 1 else mean_interval(by_seed)
    return Difference(shown, by_seed.tolist())


def mean_interval(values: np.ndarray) -> Interval:
    """Mean of one figure a training seed, `(seeds,)`, with Student's t interval; none of one seed alone."""
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan, "nothing")
    reach = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach, "training seeds")


def _bootstrap(scores: np.ndarray, statistic: Callable[..., Any], samples: int, seed: int) -> Interval:
    """Percentile interval of a statistic (of values, along an axis), from scores `(seeds, worlds, episodes)`."""
    by_seed = len(scores) > 1
    units = scores.mean(2) if by_seed else scores[0].T
    point = float(statistic(scores.mean(2)))
    if len(units) == 1:
        return Interval(point, math.nan, math.nan, "nothing")
    picks = np.random.default_rng(seed).integers(len(units), size=(samples, *units.shape))
    drawn = units[picks, np.arange(units.shape[1])]
    values = statistic(drawn.reshape(samples, -1) if by_seed else drawn.mean(1), axis=-1)
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(point, float(low), float(high), "training seeds" if by_seed else "episodes")


def statement(difference: Difference, a: str, b: str) -> str:
    """Say in one or two sentences what a difference shows, and no more than its interval carries."""
    point, low, high, over = difference.interval
    if math.isnan(low):
        return f"{a} minus {b}: {point:+.3f}. One episode of one training seed gives no interval: nothing is shown."
    span = f"{point:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    text = {
        "gain": f"{a} scored higher than {b}: {span}.",
        "loss": f"{a} scored lower than {b}: {span}.",
        "inconclusive": f"No difference shown between {a} and {b}: {span}.",
    }[difference.verdict]
    if over == "episodes":
        return f"{text} One training seed: another training may come out otherwise."
    return f"{text} By training seed: {', '.join(f'{value:+.3f}' for value in difference.by_seed)}."
