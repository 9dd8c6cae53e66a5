"""MOReL: threshold and HALT by hand, and that a policy keeps away from what the model does not know."""

from __future__ import annotations

from typing import Any

import torch
from toy import Toy, toy_batch

from offline_train.algorithms.morel import Morel, MorelConfig, halt_threshold, halted
from offline_train.algorithms.sac import SacConfig
from offline_train.models.ensemble import ModelStep
from sim.terminations import never


def make(toy: Toy, **settings: Any) -> Morel:
    small: dict[str, Any] = {
        "updates": 20,
        "steps_per_epoch": 10,
        "rollout_starts": 400,
        "horizon": 4,
        "sac": SacConfig(hidden=[16, 16]),
    }
    return Morel(MorelConfig(**small | settings), toy.packed, toy.model, never, 0)


def test_threshold_lies_between_median_and_99th_percentile() -> None:
    # Of 0, 1, ..., 100 they are 50 and 99: 50 + 0.3 x 49 = 64.7.
    penalties = torch.arange(101.0)
    torch.testing.assert_close(halt_threshold(penalties, 0.3), torch.tensor(64.7))
    assert float(halt_threshold(penalties, 0.0)) == 50.0 and float(halt_threshold(penalties, 1.0)) == 99.0


def test_unknown_steps_go_to_halt() -> None:
    # Penalties of 1, 2 and 3 at a threshold of 2: only what is above it is unknown.
    step = ModelStep(
        torch.zeros(3, 2), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 3.0])
    )
    found = halted(step, torch.tensor(2.0), -10.0)
    assert found.reward.tolist() == [1.0, 1.0, -9.0]
    assert found.terminal.tolist() == [1.0, 0.0, 1.0]


def test_threshold_is_that_of_the_log_s_own_penalties(toy: Toy) -> None:
    algorithm, log = make(toy), toy_batch(2_000, seed=1)
    mean = toy.model.predict(log.obs, log.action)[0][..., :-1]
    apart = (mean[:, None] - mean[None]).norm(dim=-1).amax((0, 1))
    # The threshold is taken from 20,000 draws of the 2,000 rows.
    torch.testing.assert_close(algorithm.threshold, halt_threshold(apart, 0.3), rtol=0.03, atol=0)
    again = make(toy)
    assert torch.equal(algorithm.threshold, again.threshold)


def test_rollouts_end_in_halt_and_only_there(toy: Toy) -> None:
    algorithm = make(toy)
    algorithm.train_epoch()
    kept = algorithm.replay.rows[: algorithm.replay.size]
    ended = kept[:, -1] == 1
    log = toy_batch(2_000, seed=1)
    # About a fifth to a half of the log lies above the threshold, and what lies there earns ten less and is the end.
    assert 0.05 < float(ended.float().mean()) < 0.6
    assert float(kept[ended, 4].max()) < -7.0 < float(log.reward.min())
    assert float(kept[~ended, 4].min()) > -7.0
    assert algorithm.replay.size < 4 * 400
    # All is known where the threshold is far above the log.
    trusting = make(toy, threshold_share=1e6)
    trusting.train_epoch()
    assert trusting.replay.size == 4 * 400 and not trusting.replay.rows[:, -1].any()


def test_known_states_can_be_penalised_too(toy: Toy) -> None:
    algorithm = make(toy, penalty_weight=2.0)
    step = ModelStep(torch.zeros(2, 2), torch.ones(2), torch.zeros(2), algorithm.threshold * torch.tensor([0.5, 2.0]))
    expected = torch.tensor([1.0, -9.0]) - 2.0 * step.penalty
    torch.testing.assert_close(algorithm.pessimistic(step).reward, expected)
