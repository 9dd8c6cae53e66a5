"""Every prior by its name: fitting, saving and loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.priors.base import Prior, Report
from offline_train.priors.deep_gp import DeepGpConfig, DeepGpPrior, fit_deep_gp
from offline_train.priors.dropout import DropoutConfig, DropoutPrior, fit_dropout
from offline_train.priors.ensemble import EnsembleConfig, EnsemblePrior, fit_ensemble
from offline_train.priors.exact_gp import ExactGpConfig, fit_exact_gp
from offline_train.priors.gp_posterior import GpPosterior
from offline_train.priors.sparse_gp import SparseGpConfig, fit_sparse_gp

AnyPriorConfig = Annotated[
    ExactGpConfig | SparseGpConfig | DeepGpConfig | EnsembleConfig | DropoutConfig, Field(discriminator="name")
]

FITS: dict[str, Callable[..., Prior]] = {
    "exact-gp": fit_exact_gp,
    "sparse-gp": fit_sparse_gp,
    "deep-gp": fit_deep_gp,
    "mle": fit_ensemble,
    "ensemble": fit_ensemble,
    "mc-dropout": fit_dropout,
}


def fit_prior(config: AnyPriorConfig, obs: Tensor, action: Tensor, seed: int, report: Report) -> Prior:
    """Fit the prior that the settings are of.

    Args:
        config: settings.
        obs: states of the demonstrations, `(rows, obs_dim)`.
        action: what was done in them, `(rows, act_dim)` in [-1, 1].
        seed: of everything that is random here.
        report: told of every step.

    Raises:
        ValueError: there are not as many actions as states.
    """
    if len(obs) != len(action):
        raise ValueError(f"there are {len(obs)} states and {len(action)} actions")
    return FITS[config.name](config, obs, action, torch.Generator().manual_seed(seed), report)


def save_prior(path: Path, config: AnyPriorConfig, prior: Prior) -> None:
    """Write a prior with its settings.

    Raises:
        UserError: the place cannot be written.
    """
    sizes = {"obs_dim": prior.obs_dim, "act_dim": prior.act_dim}
    save_checkpoint(path, {"config": config.model_dump(mode="json"), **sizes, "tensors": prior.state_dict()})


def load_prior(path: Path) -> tuple[AnyPriorConfig, Prior]:
    """Read a prior and its settings.

    Raises:
        UserError: there is no whole checkpoint.
    """
    state = load_checkpoint(path)
    config = TypeAdapter[Any](AnyPriorConfig).validate_python(state["config"])
    return config, _restored(config, state["obs_dim"], state["act_dim"], state["tensors"])


def _restored(config: AnyPriorConfig, obs_dim: int, act_dim: int, tensors: dict[str, Tensor]) -> Prior:
    if isinstance(config, (ExactGpConfig, SparseGpConfig)):
        return GpPosterior(tensors)
    if isinstance(config, DeepGpConfig):
        return DeepGpPrior(tensors)
    kind = DropoutPrior if isinstance(config, DropoutConfig) else EnsemblePrior
    prior = kind(obs_dim, act_dim, config, torch.Generator())  # type: ignore[arg-type]  # each has its own settings
    prior.load_state_dict(tensors)
    return prior.requires_grad_(False)
