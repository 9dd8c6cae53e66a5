"""The network, its channels, and how numbers travel: by name, so that no order has to be agreed on."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Any

import lcm
import numpy as np

from adapters.errors import UserError

# Multicast with a time to live of 0 reaches the processes of this host alone. For the robot's network give another
# URL, such as udpm://239.255.76.67:7667?ttl=1: whoever is on that network can then command the robot. Every robot
# needs a port of its own.
URL = "udpm://239.255.76.67:7667?ttl=0"
OBSERVATION, COMMAND, ORDER = "SUREFOOT_OBSERVATION", "SUREFOOT_COMMAND", "SUREFOOT_ORDER"

NS = 1_000_000_000
"""Nanoseconds in a second."""
PERIODS = 3
"""Control periods of silence after which robot and runner give each other up, where nothing else is set."""


def connect(url: str = URL) -> lcm.LCM:
    """Join an LCM network.

    Raises:
        UserError: there is no such network here.
    """
    try:
        return lcm.LCM(url)
    except RuntimeError as error:
        raise UserError(f"there is no LCM network {url} on this host; give a URL such as {URL}.") from error


def handle(link: lcm.LCM, timeout: float) -> bool:
    """Let the subscriptions take one message, and return whether there was one within `timeout` s."""
    ready, _, _ = select.select([link.fileno()], [], [], max(timeout, 0.0))
    if ready:
        link.handle()
    return bool(ready)


def decode(kind: Any, data: bytes) -> Any | None:
    """Return the message in the bytes, None where they are none of that type."""
    try:
        return kind.decode(data)
    except Exception:  # anyone may send any bytes
        return None


def arrange(names: Sequence[str], values: Sequence[float], wanted: Sequence[str]) -> np.ndarray:
    """Return the values in the order of `wanted`; NaN, which every receiver refuses, where one is missing or twice."""
    by_name = dict(zip(names, values, strict=True))
    once = {name for name in by_name if names.count(name) == 1}
    return np.array([by_name[name] if name in once else np.nan for name in wanted])
