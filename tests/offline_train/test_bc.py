"""Behaviour cloning: its loss by hand, and that it does what the log did."""

from __future__ import annotations

import pytest
import torch
from toy import toy_batch

from offline_train.algorithms.bc import BcConfig, cloning_loss
from offline_train.algorithms.registry import make_model_free


def test_cloning_loss() -> None:
    # Squared errors 0, 4, 1 and 1: mean 1.5.
    action, logged = torch.tensor([[0.0, 1.0], [0.5, -1.0]]), torch.tensor([[0.0, -1.0], [-0.5, 0.0]])
    assert float(cloning_loss(action, logged)) == pytest.approx(1.5)


def test_does_what_the_log_did() -> None:
    batch = toy_batch(2_000, seed=1)
    log = batch._replace(action=-batch.obs).pack()
    config = BcConfig(updates=400, steps_per_epoch=400, batch_size=64, hidden=[32, 32], learning_rate=3e-3)
    algorithm = make_model_free(config, log, 2, 2, seed=0)
    first = algorithm.train_epoch()
    assert algorithm.finished and first["actor_loss"] < 0.1
    seen = 0.8 * toy_batch(500, seed=9).obs
    torch.testing.assert_close(algorithm.act_nominal(seen), -seen, atol=0.15, rtol=0.0)
