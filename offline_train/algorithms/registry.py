"""The offline algorithms by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from offline_train.algorithms.augwm import AugWm
from offline_train.algorithms.augwm_actuators import ActuatorAugWm
from offline_train.algorithms.augwm_mabe import MabeAugWm
from offline_train.algorithms.awac import Awac
from offline_train.algorithms.awbc import Awbc
from offline_train.algorithms.base import Learner
from offline_train.algorithms.bc import Bc
from offline_train.algorithms.brac import Brac
from offline_train.algorithms.combo import Combo
from offline_train.algorithms.cql import Cql
from offline_train.algorithms.edac import Edac
from offline_train.algorithms.iql import Iql
from offline_train.algorithms.mabe import Mabe
from offline_train.algorithms.model_free import ModelFree, ModelFreeConfig
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.morel import Morel
from offline_train.algorithms.rma import Rma
from offline_train.algorithms.td3_bc import Td3Bc
from offline_train.models.ensemble import DynamicsEnsemble, TerminationRule

MODEL_BASED: dict[str, Callable[..., Mopo]] = {
    "mopo": Mopo,
    "mbpo": Mopo,
    "morel": Morel,
    "mabe": Mabe,
    "combo": Combo,
    "augwm": AugWm,
    "augwm-actuators": ActuatorAugWm,
    "augwm-mabe": MabeAugWm,
    "rma": Rma,
}


def make_algorithm(
    settings: MopoConfig, real: Tensor, model: DynamicsEnsemble, terminated: TerminationRule, seed: int
) -> Mopo:
    """The algorithm that the settings are of."""
    return MODEL_BASED[settings.name](settings, real, model, terminated, seed)


LEARNERS: dict[str, Callable[..., Learner]] = {
    "bc": Bc,
    "td3-bc": Td3Bc,
    "iql": Iql,
    "awac": Awac,
    "awbc": Awbc,
    "cql": Cql,
    "edac": Edac,
    "sac-n": Edac,
    "brac-v": Brac,
}


def make_model_free(settings: ModelFreeConfig, log: Tensor, obs_dim: int, act_dim: int, seed: int) -> ModelFree:
    """The model-free algorithm that the settings are of."""
    return ModelFree(settings, LEARNERS[settings.name], log, obs_dim, act_dim, seed)
