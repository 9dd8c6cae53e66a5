"""The log as a run reads it: which rows, in what units, and what of it is held out."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from adapters.datasets import TransitionDataset, load_dataset
from adapters.errors import UserError
from deploy.bundle import RobotDescription
from offline_train.replay import Batch


class DatasetConfig(BaseModel):
    """Where the log is; without a path there is none, and the policy learns in the simulator."""

    model_config = ConfigDict(extra="forbid")

    name: str
    path: str | list[str] | None
    env: str | None = None
    control_dt: float | None = None
    rows: int | None = Field(default=None, ge=1)
    synthetic: str | None = None
    real_fraction: float = Field(default=0.0, ge=0, le=1)
    beginnings: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _has_an_effect(self) -> DatasetConfig:
        if self.path is None and (self.rows or self.synthetic):
            raise ValueError("there is no log of which rows or synthetic could tell anything; leave them out")
        if self.synthetic is None and self.real_fraction:
            raise ValueError("real_fraction is the share of the log among synthetic rows; give synthetic=FILE as well")
        if self.synthetic is None and self.beginnings:
            raise ValueError(
                "beginnings are added to synthetic rows, and the log has them; give synthetic=FILE as well"
            )
        return self


class Data:
    """The log as torch reads it: actions in [-1, 1], whole episodes held out.

    Args:
        dataset: the log.
        robot: whose command range the actions are scaled from.
        holdout_fraction: share of the episodes held out.
        device: where the tensors live.
        synthetic: transitions drawn from a model of the log, which are learned from in its place; held-out episodes
            and what is said about the log stay those of the log itself.
        real_fraction: share of the log among what is learned from then.
        beginnings: first steps of each of the log's episodes that are learned from besides synthetic rows.
    """

    def __init__(
        self,
        dataset: TransitionDataset,
        robot: RobotDescription,
        holdout_fraction: float,
        device: str,
        synthetic: TransitionDataset | None = None,
        real_fraction: float = 0.0,
        beginnings: int = 0,
    ) -> None:
        check_fit("the data set", dataset.obs_dim, dataset.act_dim, dataset.metadata.control_dt, robot)
        self.dataset, self.robot, self.device = dataset, robot, device
        self.synthetic, self.real_fraction, self.beginnings = synthetic, real_fraction, beginnings
        # The same episodes are held out whatever the seed, so that hold-out errors of two runs can be compared.
        self.train, self.holdout = dataset.split_episodes(holdout_fraction, np.random.default_rng(0))

    def packed(self, part: TransitionDataset) -> Tensor:
        """Packed rows of one part, with actions in [-1, 1]."""
        return packed(part, self.robot).to(self.device)

    def learned(self) -> Tensor:
        """Packed rows of what is learned from: the training part, or synthetic rows with what is asked for of it."""
        log = self.packed(self.train)
        if self.synthetic is None:
            return log
        drawn = self.packed(self.synthetic)
        rows = mixed(log, drawn, self.real_fraction)
        if not self.beginnings:
            return rows
        steps = np.concatenate([np.arange(episode.stop - episode.start) for episode in self.train.episode_slices()])
        early = log[torch.from_numpy(steps < self.beginnings).to(log.device)]
        # As often among what is drawn as they are in the log, and once where less is drawn than the log has.
        times = max(round((1.0 - self.real_fraction) * len(drawn) / len(log)), 1)
        return torch.cat([rows, early.repeat(times, 1)])

    def batch(self, part: TransitionDataset) -> Batch:
        """One part as a batch."""
        return Batch.unpack(self.packed(part), part.obs_dim, part.act_dim)


def packed(dataset: TransitionDataset, robot: RobotDescription) -> Tensor:
    """Packed rows of a data set, with actions in [-1, 1] of the robot's command range."""
    rows = torch.from_numpy(dataset.packed())
    low, high = (torch.tensor(v, dtype=torch.float32) for v in (robot.action.low, robot.action.high))
    columns = slice(dataset.obs_dim, dataset.obs_dim + dataset.act_dim)
    rows[:, columns] = (2.0 * (rows[:, columns] - low) / (high - low) - 1.0).clamp(-1.0, 1.0)
    return rows


def mixed(log: Tensor, synthetic: Tensor, real_fraction: float) -> Tensor:
    """As many rows as there are synthetic ones, a share of them drawn from the log, over and over where it is short.

    Args:
        log: packed rows.
        synthetic: packed rows.
        real_fraction: share of `log`.
    """
    real = round(real_fraction * len(synthetic))
    # Never its first rows alone, which are those of its earliest policies. The same ones every time.
    order = torch.randperm(len(log), generator=torch.Generator().manual_seed(0)).to(log.device)
    places = order[torch.arange(real, device=log.device) % len(log)]
    return torch.cat([log[places], synthetic[: len(synthetic) - real]])


def open_log(source: DatasetConfig) -> TransitionDataset:
    """The log that the settings name, or as many rows of it as they ask for, always the same ones.

    Raises:
        UserError: it cannot be read, or has fewer rows.
    """
    dataset = load_dataset(source.path or "", env=source.env, control_dt=source.control_dt)
    return dataset if source.rows is None else dataset.subset(source.rows, np.random.default_rng(0))


def open_synthetic(source: DatasetConfig, log: TransitionDataset) -> TransitionDataset | None:
    """The synthetic transitions that the settings name, None where they name none.

    Raises:
        UserError: they cannot be read, are not synthetic, or were modelled on another log.
    """
    if source.synthetic is None:
        return None
    dataset = load_dataset(source.synthetic, env=log.metadata.env, control_dt=log.metadata.control_dt)
    made_by = dataset.metadata.synthetic
    if made_by is None:
        raise UserError(f"{source.synthetic} is a real log; give it as dataset.path, or upsample it first.")
    if made_by["source_sha256"] != log.metadata.sha256:
        raise UserError(
            f"{source.synthetic} was modelled on another log than the one to learn from; upsample this one, with the "
            "same dataset settings."
        )
    return dataset


def check_fit(source: str, obs_dim: int, act_dim: int, control_dt: float, robot: RobotDescription) -> None:
    """Refuse a log or an environment that is not of this robot.

    Args:
        source: what it is, for the message.
        obs_dim: size of its observations.
        act_dim: size of its actions.
        control_dt: its control period in s.
        robot: the robot.

    Raises:
        UserError: sizes or control period differ.
    """
    for kind, found, wanted in (("observation", obs_dim, robot.obs_dim), ("action", act_dim, robot.act_dim)):
        if found != wanted:
            raise UserError(
                f"{source} has {found} {kind} dimensions and the robot '{robot.name}' has {wanted}; "
                "choose the robot that it is of (robot=NAME)."
            )
    if abs(control_dt - robot.control_dt) > 1e-6:
        raise UserError(
            f"{source} has a control period of {control_dt} s and the robot '{robot.name}' is controlled every "
            f"{robot.control_dt} s; a policy has to run at the period that it was learned at."
        )
