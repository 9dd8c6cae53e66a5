"""What the tests of offline_train share: one fitted world model of the toy robot."""

from __future__ import annotations

import pytest
import torch
from toy import Toy, toy_batch, toy_trainer

from offline_train.models.fit import EnsembleConfig

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy() -> Toy:
    config = EnsembleConfig(
        members=4, elites=3, hidden=[32, 32], learning_rate=3e-3, max_steps=1_000, steps_per_epoch=250
    )
    trainer = toy_trainer(config)
    trainer.run(lambda step, figures: None)
    return Toy(toy_batch(2_000, seed=1).pack(), trainer.model.requires_grad_(False))
