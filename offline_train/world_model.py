"""The world model of a run: fitted to its log, or taken from an earlier run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from adapters.errors import UserError
from adapters.files import read_json, write_json
from adapters.progress import progress_bar
from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.data import Data
from offline_train.metrics import MetricsLog
from offline_train.models.ensemble import DynamicsEnsemble
from offline_train.models.fit import EnsembleConfig, EnsembleTrainer, fit_data, holdout_error, set_normalisers
from offline_train.models.rollout import HORIZONS, horizon_error
from offline_train.replay import Batch
from offline_train.settings import TrainConfig


def train_world_model(
    config: TrainConfig, data: Data, folder: Path, earlier: DynamicsEnsemble | None = None
) -> DynamicsEnsemble:
    """Fit the ensemble, or take up a fit, and write it with its errors under `folder`.

    Args:
        config: settings of the run.
        data: what it is fitted to.
        folder: where it is written.
        earlier: the world model of a similar robot, which is corrected in place, with the normalisers that it has; a
            member that gets no better on the held-out data stays as it was. None for a model from scratch.
    """
    model = new_model(config.ensemble, data) if earlier is None else earlier
    final, part = folder / "world_model.safetensors", folder / "world_model.part.safetensors"
    if config.resume and final.is_file():
        model.load_state_dict(load_checkpoint(final))
        return model
    train = Batch.unpack(data.learned(), data.dataset.obs_dim, data.dataset.act_dim)
    holdout = data.batch(data.holdout)
    if earlier is None:
        set_normalisers(model, train.obs, train.action, train.next_obs, train.reward)
    trainer = EnsembleTrainer(
        model,
        fit_data(model, train.obs, train.action, train.next_obs, train.reward),
        fit_data(model, holdout.obs, holdout.action, holdout.next_obs, holdout.reward),
        config.ensemble,
        torch.Generator(data.device).manual_seed(config.seed),
    )
    if earlier is not None:
        trainer.end_epoch()
    if config.resume and part.is_file():
        trainer.load_state_dict(load_checkpoint(part))
    with (
        MetricsLog(folder, "world_model", trainer.steps) as log,
        progress_bar("world model", config.ensemble.max_steps) as move,
    ):

        def report(step: int, figures: dict[str, float]) -> None:
            log.write(step, figures)
            move(step, f"hold-out error {figures['best_holdout_mse']:.4f}")
            save_checkpoint(part, trainer.state_dict())

        move(trainer.steps)
        trainer.run(report)
    errors = world_model_errors(model, data)
    write_json(folder / "world_model.json", errors | {"steps": trainer.steps})
    save_checkpoint(final, model.state_dict())
    part.unlink(missing_ok=True)
    return model


def new_model(config: EnsembleConfig, data: Data, seed: int = 0) -> DynamicsEnsemble:
    """An unfitted ensemble for the data."""
    generator = torch.Generator().manual_seed(seed)
    return DynamicsEnsemble(
        data.dataset.obs_dim,
        data.dataset.act_dim,
        generator,
        members=config.members,
        elites=config.elites,
        hidden=config.hidden,
    ).to(data.device)


def world_model_errors(model: DynamicsEnsemble, data: Data) -> dict[str, Any]:
    """Held-out error of the ensemble, and its drift over rollout horizons, as JSON.

    `holdout_mse` is the members' mean squared error per normalised dimension of (change of state, reward);
    `elites_mse` that of the elites' averaged prediction of the change of state; `horizon_rmse` is in standard
    deviations of the observations.
    """
    holdout = data.batch(data.holdout)
    fit = fit_data(model, holdout.obs, holdout.action, holdout.next_obs, holdout.reward)
    members = holdout_error(model, fit)
    with torch.no_grad():
        change, _ = model.mean_change(holdout.obs, holdout.action)
    scaled = (change - (holdout.next_obs - holdout.obs)) / model.target_std[:-1]
    windows = [
        rows.start + offset
        for rows in data.holdout.episode_slices()
        for offset in range(0, rows.stop - rows.start - max(HORIZONS), 50)
    ]
    span = torch.arange(max(HORIZONS), device=holdout.obs.device)
    index = torch.tensor(windows, dtype=torch.long, device=holdout.obs.device)[:, None] + span
    obs = torch.cat([holdout.obs[index], holdout.next_obs[index[:, -1:]]], dim=1)
    drift = horizon_error(model, obs, holdout.action[index]) if windows else {}
    names = [*data.dataset.metadata.observation_names, "reward"]
    return {
        "holdout_episodes": len(data.holdout.episode_slices()),
        "holdout_mse": float(members.mean()),
        "elites_mse": float(scaled.square().mean()),
        "holdout_mse_by_dimension": dict(zip(names, members.mean(0).tolist(), strict=True)),
        "horizon_rmse": {str(horizon): error for horizon, error in drift.items()},
    }


def take_world_model(earlier: Path, data: Data, folder: Path) -> DynamicsEnsemble:
    """Copy the world model of an earlier run into this run's folder and return it.

    Raises:
        UserError: there is none, or it was fitted to another log; what was drawn from a log counts as that log.
    """
    model = load_world_model(earlier, data)
    for name in ("world_model.safetensors", "world_model.json"):
        shutil.copyfile(earlier / name, folder / name)
    return model


def with_ensemble(config: TrainConfig) -> TrainConfig:
    """Return the settings with the ensemble's own, where the world model of an earlier run is taken."""
    if config.world_model is None:
        return config
    earlier = read_json(config.world_model / "run.json")["config"]["ensemble"]
    return config.model_copy(update={"ensemble": EnsembleConfig(**earlier)})


def load_world_model(folder: Path, data: Data) -> DynamicsEnsemble:
    """Read the world model of an earlier run.

    Raises:
        UserError: there is none, or it was fitted to another log; what was drawn from a log counts as that log.
    """
    record = read_json(folder / "run.json")
    if record["dataset"]["sha256"] != data.dataset.metadata.sha256:
        raise UserError(f"the world model in {folder} was learned from other data; train one from this data set.")
    model = new_model(EnsembleConfig(**record["config"]["ensemble"]), data)
    model.load_state_dict(load_checkpoint(folder / "world_model.safetensors"))
    return model
