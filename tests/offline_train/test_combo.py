"""COMBO: which rows its conservative term is about, and that it lowers what the model was asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import Toy, toy_batch

from offline_train.algorithms.combo import Combo, ComboConfig, ComboCql
from offline_train.algorithms.cql import CqlConfig, conservative_loss
from offline_train.algorithms.sac import SacConfig
from sim.terminations import never


def make(real_rows: int, **settings: Any) -> ComboCql:
    sac = SacConfig(hidden=[16, 16], target_entropy=None, learning_rate=3e-3)
    config = CqlConfig(**{"sac": sac, "samples": 5} | settings)
    generator = torch.Generator().manual_seed(0)
    return ComboCql(torch.zeros(2), torch.ones(2), 2, config, generator, real_rows=real_rows)


def test_conservative_loss_of_other_rows() -> None:
    # Two observations of rollouts, integrals log((exp(0) + exp(log 3)) / 2) = log 2 and log 4; three logged rows of
    # mean 0.5: (log 2 + log 4) / 2 - 0.5 = 1.5 log 2 - 0.5.
    sampled = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), math.log(4.0)]]])
    loss = conservative_loss(sampled, torch.zeros(2, 2), torch.tensor([[0.0, 0.5, 1.0]]))
    assert float(loss) == pytest.approx(1.5 * math.log(2.0) - 0.5)


def test_integral_is_over_the_rollouts_and_the_log_s_values_over_the_real_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, batch = make(real_rows=3), toy_batch(8, seed=1)
    asked: list[Tensor] = []

    def drawn(obs: Tensor, next_obs: Tensor) -> tuple[Tensor, Tensor]:
        asked.extend((obs, next_obs))
        return torch.ones(2, len(obs), 4), torch.zeros(len(obs), 4)

    monkeypatch.setattr(learner, "_draw_values", drawn)
    losses = learner._critic_losses(batch.obs, batch.next_obs, batch.action, torch.zeros(8))
    assert torch.equal(asked[0], batch.obs[3:]) and torch.equal(asked[1], batch.next_obs[3:])
    # Sampled values of 1 everywhere, less the mean value of the three real rows, for both critics.
    values = learner.critics(batch.obs, batch.action)
    expected = 5.0 * (1.0 - values[:, :3].mean(1)).sum()
    torch.testing.assert_close(losses["conservative_loss"], expected)
    torch.testing.assert_close(losses["critic_loss"], values.square().mean(1).sum())


def test_values_sink_where_the_model_was_asked_and_not_at_the_log() -> None:
    # All rewards are 0 and nothing follows; the log is in the one half of the plane and the rollouts in the other.
    log, rolled = (toy_batch(128, seed=seed) for seed in (1, 2))
    log = log._replace(obs=log.obs.abs())
    both = [torch.cat(pair) for pair in zip(log, rolled._replace(obs=-rolled.obs.abs()), strict=True)]
    batch = type(log)(*both)._replace(reward=torch.zeros(256), terminal=torch.ones(256))
    gaps = {}
    for weight in (0.0, 1.0):
        learner = make(real_rows=128, penalty_weight=weight)
        for _ in range(150):
            learner.update(batch)
        with torch.no_grad():
            values = learner.critics(batch.obs, batch.action).mean(0)
        gaps[weight] = float(values[:128].mean() - values[128:].mean())
    assert abs(gaps[0.0]) < 0.1 and gaps[1.0] > 0.3


def test_learner_knows_how_many_rows_are_real(toy: Toy) -> None:
    small: dict[str, Any] = {"updates": 10, "steps_per_epoch": 10, "rollout_starts": 50, "batch_size": 40}
    config = ComboConfig(**small, real_fraction=0.3, samples=2, sac=SacConfig(hidden=[8]))
    algorithm = Combo(config, toy.packed, toy.model, never, 0)
    algorithm.train_epoch()
    assert isinstance(algorithm.sac, ComboCql) and algorithm.sac.real_rows == 12
    batch = algorithm.replay.sample(40, algorithm.generator)
    # The rollouts begin at real observations, so it is the actions that tell their rows from the log's.
    logged = {tuple(row) for row in toy.packed[:, :4].tolist()}
    real = [tuple(row) in logged for row in torch.cat([batch.obs, batch.action], -1).tolist()]
    assert real == [True] * 12 + [False] * 28


@pytest.mark.parametrize("settings", [{"real_fraction": 0.01}, {"real_fraction": 0.99}, {"real_fraction": 0.0}])
def test_a_batch_without_real_rows_or_rollouts_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="real_fraction"):
        ComboConfig(batch_size=8, **settings)  # type: ignore[arg-type]
