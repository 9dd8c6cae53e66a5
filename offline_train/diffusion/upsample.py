"""`surefoot upsample`: fit a model of whole transitions to a log, and draw a data set from it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from adapters.command import command
from adapters.datasets import TransitionDataset, save_npz
from adapters.errors import UserError
from adapters.files import atomic_path, read_bytes, read_json, write_json
from adapters.progress import progress_bar
from offline_train.checkpoint import load_checkpoint, save_checkpoint
from offline_train.data import DatasetConfig, open_log
from offline_train.diffusion.conditions import Condition, ConditionConfig, make_condition
from offline_train.diffusion.fit import Examples, FitConfig, ModelTrainer
from offline_train.diffusion.noise_baselines import noisy_rows
from offline_train.diffusion.scale import RowScale
from offline_train.diffusion.synther import Diffusion, DiffusionConfig
from offline_train.diffusion.transition_model import TransitionModel
from offline_train.diffusion.vae import Vae, VaeConfig
from offline_train.metrics import MetricsLog
from offline_train.networks import warn_of_slow_bf16
from offline_train.replay import Batch
from offline_train.settings import commit

# Rows drawn together, and kept as one file until all are there. Each such chunk has a generator of its own, so that
# a sampling that is taken up again ends with the same rows.
CHUNK = 10_000

Draw = Callable[[int, torch.Generator], Tensor]
"""How many rows, and a generator, to packed rows `(count, columns)`."""


class DiffusionMethod(DiffusionConfig):
    """SynthER."""

    name: Literal["synther"]


class VaeMethod(VaeConfig):
    """A variational autoencoder."""

    name: Literal["vae"]


class NoiseMethod(BaseModel):
    """Noise on the log's own rows; there is nothing to fit."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["additive-noise", "multiplicative-noise", "dynamics-noise"]


class UpsampleConfig(BaseModel):
    """Settings; configs/upsample.yaml says what each means."""

    model_config = ConfigDict(extra="forbid")

    method: Annotated[DiffusionMethod | VaeMethod | NoiseMethod, Field(discriminator="name")]
    condition: ConditionConfig | None
    dataset: DatasetConfig
    rows: int = Field(ge=1)
    output: Path
    seed: int
    model: Path | None
    holdout_fraction: float = Field(gt=0, lt=1)
    threads: int = Field(ge=1)
    device: Literal["cpu", "cuda"]
    resume: bool

    @model_validator(mode="after")
    def _makes_sense(self) -> UpsampleConfig:
        if self.condition is not None and self.method.name != "synther":
            raise ValueError(f"method={self.method.name} takes no condition; choose method=synther, or leave it out")
        if self.model is not None and isinstance(self.method, NoiseMethod):
            raise ValueError(f"method={self.method.name} has no model that could be taken; leave model out")
        if self.dataset.synthetic is not None:
            raise ValueError("a model is fitted to a real log; leave dataset.synthetic out")
        return self


def packed(dataset: TransitionDataset, device: str) -> Tensor:
    """The data as packed rows."""
    return torch.from_numpy(dataset.packed()).to(device)


def new_model(
    config: FitConfig, log: Tensor, obs_dim: int, act_dim: int, seed: int, condition_dim: int
) -> TransitionModel:
    """An unfitted model for the packed rows of a log."""
    scale, generator = RowScale(obs_dim, act_dim).fit(log.cpu()), torch.Generator().manual_seed(seed)
    if isinstance(config, DiffusionConfig):
        return Diffusion(scale, config, generator, condition_dim).to(log.device)
    assert isinstance(config, VaeConfig), "the other kind of model that is fitted"
    return Vae(scale, config, generator).to(log.device)


def fit_model(
    config: UpsampleConfig,
    settings: FitConfig,
    train: TransitionDataset,
    holdout: TransitionDataset,
    condition: Condition | None,
) -> TransitionModel:
    """Fit the model, or take up a fit or a fitted model, and write it into the run's folder."""
    final, part = config.output / "model.safetensors", config.output / "model.part.safetensors"
    logs = [packed(half, config.device) for half in (train, holdout)]
    dims = train.obs_dim, train.act_dim
    model = new_model(settings, logs[0], *dims, config.seed, 0 if condition is None else 1)
    if config.model is not None and not final.is_file():
        with atomic_path(final) as draft:
            draft.write_bytes(read_bytes(config.model / "model.safetensors"))
    if final.is_file():
        model.load_state_dict(load_checkpoint(final))
        return model
    examples, held_out = (
        Examples(log) if condition is None else condition.examples(half, log)
        for half, log in zip((train, holdout), logs, strict=True)
    )
    generator = torch.Generator(config.device).manual_seed(config.seed)
    trainer = ModelTrainer(model, examples, held_out, settings, generator)
    if part.is_file():
        trainer.load_state_dict(load_checkpoint(part))
    with (
        MetricsLog(config.output, "model", trainer.steps) as metrics,
        progress_bar(config.method.name, settings.max_steps) as move,
    ):

        def report(step: int, figures: dict[str, float]) -> None:
            metrics.write(step, figures)
            move(step, f"hold-out loss {figures['holdout_loss']:.4f}")
            save_checkpoint(part, trainer.state_dict())

        move(trainer.steps)
        fitted = trainer.run(report)
    save_checkpoint(final, fitted.state_dict())
    part.unlink(missing_ok=True)
    return fitted


def draw_rows(draw: Draw, config: UpsampleConfig, columns: int) -> np.ndarray:
    """Draw packed rows `(rows, columns)` chunk by chunk, those left out that an earlier call has drawn.

    Args:
        draw: takes how many rows, and a generator.
        config: settings.
        columns: of a packed row.
    """
    folder = config.output / "chunks"
    starts = range(0, config.rows, CHUNK)
    with progress_bar("sampling", config.rows, "transitions") as move:
        for number, start in enumerate(starts):
            move(start)
            path = folder / f"{number}.npy"
            if path.is_file():
                continue
            seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
            generator = torch.Generator(config.device).manual_seed(seed)
            rows = draw(min(CHUNK, config.rows - start), generator).cpu().numpy()
            with atomic_path(path) as draft, draft.open("wb") as file:
                np.save(file, rows)
        move(config.rows)
    whole = np.empty((config.rows, columns), np.float32)
    for number, start in enumerate(starts):
        whole[start : start + CHUNK] = np.load(folder / f"{number}.npy")
    return whole


def synthetic_dataset(rows: np.ndarray, real: TransitionDataset, made_by: dict[str, Any]) -> TransitionDataset:
    """Packed rows as a data set, in which every transition stands for itself.

    Args:
        rows: `(rows, columns)`.
        real: what they are modelled on.
        made_by: the config and the seed; the hash of `real` is added.
    """
    batch = Batch.unpack(torch.from_numpy(rows), real.obs_dim, real.act_dim)
    terminals = batch.terminal.numpy() > 0.5
    arrays = {
        "observations": batch.obs.numpy(),
        "actions": batch.action.numpy(),
        "rewards": batch.reward.numpy(),
        "next_observations": batch.next_obs.numpy(),
        "terminals": terminals,
        "timeouts": ~terminals,
    }
    metadata = dataclasses.replace(
        real.metadata,
        source=f"synthetic ({made_by['config']['method']['name']}), from: {real.metadata.source}",
        sha256="",
        synthetic={"source_sha256": real.metadata.sha256, **made_by},
    )
    return TransitionDataset.from_arrays(arrays, metadata, "the synthetic data")


def config_record(config: UpsampleConfig) -> dict[str, Any]:
    """The settings that the rows are a function of."""
    return config.model_dump(mode="json", exclude={"output", "resume", "threads", "seed"})


def prepare_folder(config: UpsampleConfig, log_sha256: str) -> None:
    """Note in run.json what a new run's rows are a function of; a run that goes on keeps the note that it has.

    Raises:
        UserError: it would overwrite another run, or go on with other settings or another log.
    """
    record = config.output / "run.json"
    now = {"config": config_record(config), "seed": config.seed, "log_sha256": log_sha256}
    if record.is_file():
        if not config.resume:
            raise UserError(
                f"{config.output} holds a run already; give another output=FOLDER, or resume=true to go on with it."
            )
        before = read_json(record)
        if {name: before.get(name) for name in now} != now:
            raise UserError(
                f"{config.output} was started with other settings or another log; resume with the same, or give "
                "another output=FOLDER."
            )
        return
    if config.model is not None:
        check_model(config, config.model)
    write_json(record, now | {"commit": commit()})


def check_model(config: UpsampleConfig, earlier: Path) -> None:
    """Refuse the model of an earlier run that is of another kind, size, condition or log than this run asks for.

    Raises:
        UserError: it is, or there is none.
    """
    before, now = read_json(earlier / "run.json")["config"], config_record(config)
    of_draws = {"method": {"sampler", "bf16"}, "condition": {"low", "high", "weight"}, "dataset": {"name"}}
    for key, free in of_draws.items():
        kept = [{k: v for k, v in (one[key] or {}).items() if k not in free} for one in (before, now)]
        changed = sorted(k for k in {*kept[0], *kept[1]} if kept[0].get(k) != kept[1].get(k))
        if changed:
            raise UserError(
                f"the model in {earlier} was fitted with other settings ({key}.{f', {key}.'.join(changed)}); give the "
                "same ones here, or another model."
            )


def run(config: UpsampleConfig) -> Path:
    """Fit, draw and write the data set, or do what is left of it; returns its file."""
    torch.set_num_threads(config.threads)
    if isinstance(config.method, DiffusionConfig) and config.method.bf16:
        warn_of_slow_bf16(config.device)
    real = open_log(config.dataset)
    # The episodes that surefoot train holds out of the same log.
    train, holdout = real.split_episodes(config.holdout_fraction, np.random.default_rng(0))
    prepare_folder(config, real.metadata.sha256)
    final = config.output / "synthetic.npz"
    if final.is_file():
        return final
    rows = draw_rows(make_draw(config, train, holdout), config, train.packed().shape[1])
    save_npz(synthetic_dataset(rows, real, {"config": config_record(config), "seed": config.seed}), final)
    shutil.rmtree(config.output / "chunks")
    return final


def make_draw(config: UpsampleConfig, train: TransitionDataset, holdout: TransitionDataset) -> Draw:
    """What draws packed rows: the noise, or a model after its fit."""
    method = config.method
    if isinstance(method, NoiseMethod):
        log = packed(train, config.device)
        return lambda count, generator: noisy_rows(method.name, log, train.obs_dim, train.act_dim, count, generator)
    condition = None if config.condition is None else make_condition(config.condition, train)
    model = fit_model(config, method, train, holdout, condition)
    if condition is None:
        return model.draw
    return lambda count, generator: model.draw(count, generator, condition.wish(count, generator))


@command("upsample")
def main(config: DictConfig) -> None:
    """The command line's entry."""
    settings = UpsampleConfig.model_validate(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    path = run(settings)
    print(f"{settings.rows:,} transitions are in {path}; next: surefoot train dataset.synthetic={path}")
