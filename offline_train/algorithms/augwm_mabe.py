"""AugWM in action space, held to what the log does: the rollouts of augwm_actuators.py on MABE's learner (mabe.py).

Where a robot falls as soon as it leaves what its log knows, MOPO does not learn to walk in as many updates as
HalfCheetah needs, and AugWM, which goes on from MOPO, does not either. MABE does, since its policy stays near a prior
cloned from the log. The policy here stays near the same prior and reads the gains besides; the prior reads none, so
how far a policy may go from it to make up for a weak motor is what the divergence's target says.
"""

from __future__ import annotations

from typing import Literal

from offline_train.algorithms.augwm_actuators import ActuatorAugWm, ActuatorAugWmConfig
from offline_train.algorithms.mabe import Mabe, MabeConfig


class MabeAugWmConfig(ActuatorAugWmConfig, MabeConfig):
    """The settings of both."""

    name: Literal["augwm-mabe"] = "augwm-mabe"  # type: ignore[assignment]


class MabeAugWm(ActuatorAugWm, Mabe):
    """MABE in world models whose actuators deliver more or less; takes what `Mopo` takes."""

    config: MabeAugWmConfig
