"""The settings of a training run, and the record of them that its folder keeps."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters.errors import UserError
from adapters.files import read_json, write_json
from deploy.bundle import RobotDescription
from offline_train.algorithms.augwm import AugWmConfig
from offline_train.algorithms.augwm_actuators import ActuatorAugWmConfig
from offline_train.algorithms.augwm_mabe import MabeAugWmConfig
from offline_train.algorithms.awac import AwacConfig
from offline_train.algorithms.awac_online import OnlineAwacConfig
from offline_train.algorithms.awbc import AwbcConfig
from offline_train.algorithms.bc import BcConfig
from offline_train.algorithms.brac import BracConfig
from offline_train.algorithms.combo import ComboConfig
from offline_train.algorithms.cql import CqlConfig
from offline_train.algorithms.edac import EdacConfig
from offline_train.algorithms.iql import IqlConfig
from offline_train.algorithms.mabe import MabeConfig
from offline_train.algorithms.mopo import MopoConfig
from offline_train.algorithms.morel import MorelConfig
from offline_train.algorithms.nppac import NppacConfig
from offline_train.algorithms.redq import RedqConfig
from offline_train.algorithms.rma import RmaConfig
from offline_train.algorithms.sac_bc import SacBcConfig
from offline_train.algorithms.sac_online import OnlineSacConfig
from offline_train.algorithms.synther_online import OnlineSyntherConfig
from offline_train.algorithms.td3_bc import Td3BcConfig
from offline_train.data import DatasetConfig
from offline_train.models.fit import EnsembleConfig
from offline_train.priors.fit import AnyPriorConfig


class NoAlgorithm(BaseModel):
    """Stands where an algorithm would when the world model alone is wanted."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["none"]


class TrainConfig(BaseModel):
    """Settings of a run; configs/train.yaml says what each means.

    `perturbation` is the run's own note of what the chosen world changes, so that no later suite can tell otherwise;
    `adaptation` that of `surefoot adapt`, where the run corrects an earlier one.
    """

    model_config = ConfigDict(extra="forbid")

    algorithm: Annotated[
        MopoConfig
        | AugWmConfig
        | ActuatorAugWmConfig
        | RmaConfig
        | MorelConfig
        | MabeConfig
        | MabeAugWmConfig
        | ComboConfig
        | OnlineSacConfig
        | RedqConfig
        | OnlineSyntherConfig
        | BcConfig
        | Td3BcConfig
        | IqlConfig
        | AwacConfig
        | AwbcConfig
        | CqlConfig
        | EdacConfig
        | BracConfig
        | NppacConfig
        | SacBcConfig
        | OnlineAwacConfig
        | NoAlgorithm,
        Field(discriminator="name"),
    ]
    dataset: DatasetConfig
    robot: RobotDescription | None = None
    prior: AnyPriorConfig | None = None
    suite: str | None = None
    world: str | None = None
    perturbation: dict[str, Any] | None = None
    adaptation: dict[str, Any] | None = None
    output: Path
    seed: int
    start_from: Path | None = None
    world_model: Path | None
    ensemble: EnsembleConfig
    checkpoint_every: int = Field(ge=1)
    evaluate_every: int = Field(ge=1)
    evaluation_episodes: int = Field(ge=0)
    threads: int = Field(ge=1)
    device: Literal["cpu", "cuda"]
    bf16: bool = False
    resume: bool


def prepare_folder(config: TrainConfig, data: dict[str, Any]) -> None:
    """Note in run.json what a new run's result is a function of; a run that goes on keeps the note that it has.

    Args:
        config: settings.
        data: what is learned from.

    Raises:
        UserError: it would overwrite another run, or go on with other settings or other data.
    """
    folder = config.output
    record = folder / "run.json"
    if not record.is_file():
        write_json(record, run_record(config, data))
        return
    if not config.resume:
        raise UserError(f"{folder} holds a run already; give another output=FOLDER, or resume=true to go on with it.")
    earlier, now = read_json(record), config_record(config)
    before = earlier["config"]
    changed = sorted(key for key in now if now[key] != before.get(key))
    if changed:
        raise UserError(
            f"{folder} was started with other settings ({', '.join(changed)}); resume with the same, or give another "
            "output=FOLDER."
        )
    if earlier["dataset"] != data:
        raise UserError(
            f"{folder} was started with another data set than there is under that name now; bring the former one back, "
            "or give another output=FOLDER."
        )


def config_record(config: TrainConfig) -> dict[str, Any]:
    """The settings that the result is a function of."""
    free = {"output", "resume", "checkpoint_every", "evaluate_every", "evaluation_episodes", "threads"}
    return config.model_dump(mode="json", exclude=free)


def run_record(config: TrainConfig, dataset: dict[str, Any]) -> dict[str, Any]:
    """What run.json says: settings, data, commit and versions."""
    versions = {name: importlib.metadata.version(name) for name in ("surefoot", "torch", "numpy", "mujoco")}
    return {
        "config": config_record(config),
        "dataset": dataset,
        "commit": commit(),
        "versions": versions,
    }


def commit() -> str | None:
    """The commit that this runs from, or None outside a checkout."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
