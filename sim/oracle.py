"""The upper bound of context inference: the true scaling, read from a copy of the true simulator."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sim.plant import BatchedPlant
