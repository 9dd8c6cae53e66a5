"""The settings that `surefoot tune` may choose, in Hydra's own words for a sweep, as distributions of Optuna."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from adapters.errors import UserError

Space = dict[str, BaseDistribution]


def read_space(overrides: list[str]) -> Space:
    """Read a search space.

    Args:
        overrides: one for each setting, `KEY=choice(A,B,...)`, `KEY=range(START,STOP[,STEP])` for the integers from
            START to below STOP, or `KEY=interval(LOW,HIGH)` for real numbers; the last two as `KEY=tag(log,...)` where
            they are to be looked for on a logarithmic scale.

    Returns:
        The distribution of every setting, by its key.

    Raises:
        UserError: one of them is none of these.
    """
    space = dict(_read(text) for text in overrides)
    if not space:
        raise UserError("the space is empty; give the settings to choose, space=['KEY=choice(A,B)',...].")
    return space


def _read(text: str) -> tuple[str, BaseDistribution]:
    """Read one setting: its key and its distribution."""
    try:
        override = OverridesParser.create().parse_override(text)
        return override.get_key_element(), _distribution(override)
    except (HydraException, TypeError, ValueError) as error:
        raise UserError(
            f"the space has '{text}' ({str(error).splitlines()[0]}); write KEY=choice(A,B), KEY=range(START,STOP) or "
            "KEY=interval(LOW,HIGH), the last two as KEY=tag(log,...) where you like."
        ) from error


def _distribution(override: Override) -> BaseDistribution:
    """The distribution that a sweep stands for; a choice keeps its values as an override writes them."""
    sweep: Any = override.value()
    if isinstance(sweep, ChoiceSweep):
        return CategoricalDistribution([*override.sweep_string_iterator()])
    if isinstance(sweep, RangeSweep) and isinstance(whole := sweep.range(), range) and whole:
        return IntDistribution(whole[0], whole[-1], log="log" in sweep.tags, step=whole.step)
    if isinstance(sweep, IntervalSweep):
        return FloatDistribution(float(sweep.start or 0), float(sweep.end or 0), log="log" in sweep.tags)
    raise ValueError("it leaves nothing to choose")


def as_overrides(settings: dict[str, Any]) -> list[str]:
    """Chosen settings as overrides; four digits of a real number are enough."""
    return [f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in settings.items()]
