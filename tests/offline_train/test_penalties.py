"""Uncertainty penalties by hand."""

from __future__ import annotations

import math

import pytest
import torch

from offline_train.models.penalties import PENALTIES, ensemble_std, max_aleatoric

# Two members, one row, two dimensions.
MEAN = torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]])
STD = torch.tensor([[[3.0, 4.0]], [[1.0, 2.0]]])


def test_max_aleatoric() -> None:
    # |(3, 4)| = 5 and |(1, 2)| = 2.24: the larger is 5, whatever the means.
    assert max_aleatoric(MEAN, STD).tolist() == [5.0]


def test_ensemble_std() -> None:
    # Dimension 0: (9 + 1) / 2 + Var(1, 3) = 5 + 1 = 6; dimension 1: (16 + 4) / 2 + Var(0, 4) = 10 + 4 = 14.
    expected = (math.sqrt(6.0) + math.sqrt(14.0)) / 2
    assert float(ensemble_std(MEAN, STD)[0]) == pytest.approx(expected)


@pytest.mark.parametrize("name", PENALTIES)
def test_every_penalty_is_one_number_a_row_and_grows_with_the_spread(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(5, 9, 4, generator=generator), torch.rand(5, 9, 4, generator=generator)
    penalty = PENALTIES[name](mean, std)
    assert penalty.shape == (9,) and (penalty > 0).all()
    torch.testing.assert_close(PENALTIES[name](2 * mean, 2 * std), 2 * penalty)
