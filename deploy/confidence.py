"""How far a robot is from the demonstrations that its policy was held to, as their prior tells it.

The prior is a Gaussian process over the demonstrator's commands (N-PPAC, Rudner, Lu et al. 2021), whose standard
deviation grows with the distance from the demonstrations. Between its value next to them and its value far away lies
the confidence, 1 to 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploy.spec import PriorSpec

PredictPrior = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""The bundle's prior: obs -> mean and standard deviation of the demonstrator's command, in command units."""


def confidence(std: np.ndarray, spec: PriorSpec) -> np.ndarray:
    """Return how near the demonstrations are, 1 to 0, `(...)`; 0 where a number is not finite.

    Args:
        std: the prior's standard deviation, `(..., act_dim)` in command units.
        spec: what it is near the demonstrations and far from them.
    """
    share = (spec.far - np.asarray(std, dtype=np.float64).mean(-1)) / (spec.far - spec.near)
    return np.where(np.isfinite(share), np.clip(share, 0.0, 1.0), 0.0)
