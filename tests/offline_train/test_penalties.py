"""Uncertainty penalties: by hand, and what each of them is for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offline_train.models.penalties import (
    PENALTIES,
    Prediction,
    log_likelihood_variance,
    loo_kl,
    max_aleatoric,
    max_pairwise_difference,
    measure,
    mixture_variance,
    sample_variance,
)

# Two members, one row, two dimensions.
MEAN = torch.tensor([[[1.0, 0.0]], [[4.0, 4.0]]])
STD = torch.tensor([[[3.0, 4.0]], [[1.0, 2.0]]])
# What has no disagreement in it, and what does not see the reward.
ALEATORIC = ("max_aleatoric", "max_aleatoric_state")
OF_STATE_AND_REWARD = ("max_aleatoric", "loo_kl")


def test_max_aleatoric() -> None:
    # |(3, 4)| = 5 and |(1, 2)| = 2.24: the larger is 5, whatever the means.
    assert max_aleatoric(STD).tolist() == [5.0]


def test_max_pairwise_difference() -> None:
    # (1, 0) and (4, 4) lie |(3, 4)| = 5 apart; a third point between them changes nothing.
    assert max_pairwise_difference(MEAN).tolist() == [5.0]
    assert max_pairwise_difference(torch.cat([MEAN, MEAN.mean(0, keepdim=True)])).tolist() == [5.0]


def test_mixture_variance() -> None:
    # Dimension 0: (9 + 1) / 2 + Var(1, 4) = 5 + 2.25; dimension 1: (16 + 4) / 2 + Var(0, 4) = 10 + 4.
    assert mixture_variance(STD, MEAN).tolist() == [[7.25, 14.0]]


def test_sample_variance_is_unbiased() -> None:
    # Var(1, 4) = 4.5 and Var(0, 4) = 8 over n - 1 = 1.
    assert sample_variance(STD, MEAN).tolist() == [[9.5, 18.0]]


def test_loo_kl() -> None:
    # Member 0, N(0, 1), against the mixture of N(1, 1) and N(3, 1): mean 2, variance 1 + 1 = 2.
    # KL = log sqrt(2) + (1 + 4) / (2 x 2) - 1/2 = 0.34657 + 0.75.
    mean, std = torch.tensor([[[0.0]], [[1.0]], [[3.0]]]), torch.ones(3, 1, 1)
    expected = 0.5 * math.log(2.0) + 0.75
    assert float(loo_kl(mean, std, torch.tensor([0]))) == pytest.approx(expected)
    # Dimensions add up, and each row has a member of its own: member 1 against N(0, 1) and N(3, 1), mean 1.5 and
    # variance 1 + 2.25 = 3.25: log sqrt(3.25) + (1 + 0.25) / 6.5 - 1/2.
    both = loo_kl(mean.expand(3, 2, 2), std.expand(3, 2, 2), torch.tensor([0, 1]))
    other = 0.5 * math.log(3.25) + 1.25 / 6.5 - 0.5
    assert both.tolist() == pytest.approx([2 * expected, 2 * other])


def test_log_likelihood_variance() -> None:
    # At x = (0, 0), without the constant: N((0, 0), 1) gives 0, N((2, 0), 1) gives -2, N((0, 0), 2) gives -2 log 2.
    mean = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]], [[0.0, 0.0]]])
    std = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]], [[2.0, 2.0]]])
    values = torch.tensor([0.0, -2.0, -2.0 * math.log(2.0)])
    found = log_likelihood_variance(mean, std, torch.zeros(1, 2))
    assert float(found) == pytest.approx(float(values.var()))


def prediction(members: int, rows: int, seed: int, *, apart: float = 1.0, noise: float = 1.0) -> Prediction:
    """Members whose means lie `apart` in scale around a common one, all with one standard deviation a row.

    Rows are drawn at the mean of their member, so that they tell apart what means alone can.
    """
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(rows, 4, generator=generator)
    offset = torch.randn(members, rows, 4, generator=generator)
    mean = centre + apart * offset
    std = (noise * (0.5 + torch.rand(rows, 4, generator=generator))).expand(members, -1, -1)
    member = torch.randint(members, (rows,), generator=generator)
    return Prediction(mean, std, member, mean[member, torch.arange(rows)])


def value(name: str, of: Prediction) -> Tensor:
    """The penalty, its samples always drawn alike."""
    return measure(name, of, torch.Generator().manual_seed(1))


every = pytest.mark.parametrize("name", PENALTIES)
sizes = given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 1_000))


@every
@settings(max_examples=15)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1_000))
def test_one_finite_number_a_row_whatever_the_ensemble(name: str, members: int, rows: int, seed: int) -> None:
    found = value(name, prediction(members, rows, seed))
    assert found.shape == (rows,) and (found >= 0).all() and found.isfinite().all()


@every
@settings(max_examples=15)
@sizes
def test_members_that_agree_leave_the_noise_alone(name: str, members: int, rows: int, seed: int) -> None:
    agreed = prediction(members, rows, seed, apart=0.0)
    std = agreed.std[0]
    expected = {
        "max_aleatoric": torch.linalg.vector_norm(std, dim=-1),
        "max_aleatoric_state": torch.linalg.vector_norm(std[:, :-1], dim=-1),
        "ensemble_variance": std[:, :-1].square().mean(-1),
        "ensemble_std": std[:, :-1].mean(-1),
    }
    if name.endswith("_sampled"):
        # Draws of one Gaussian differ, but those without noise do not.
        silent = prediction(members, rows, seed, apart=0.0, noise=0.0)
        torch.testing.assert_close(value(name, silent), torch.zeros(rows), atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(value(name, agreed), expected.get(name, torch.zeros(rows)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in PENALTIES if not name.endswith("_sampled")])
@settings(max_examples=15)
@sizes
def test_the_order_of_the_members_says_nothing(name: str, members: int, rows: int, seed: int) -> None:
    ordered = prediction(members, rows, seed)
    order = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
    place = order.argsort()
    shuffled = Prediction(ordered.mean[order], ordered.std[order], place[ordered.member], ordered.drawn)
    torch.testing.assert_close(value(name, shuffled), value(name, ordered), atol=1e-4, rtol=1e-4)


@every
@settings(max_examples=15)
@sizes
def test_grows_with_disagreement_or_with_noise(name: str, members: int, rows: int, seed: int) -> None:
    if name in ALEATORIC:
        more, less = (prediction(members, rows, seed, noise=noise) for noise in (2.0, 1.0))
    else:
        # Without noise to speak of, so that draws lie where means do.
        noise = 1e-3 if name.endswith("_sampled") else 1.0
        more, less = (prediction(members, rows, seed, apart=apart, noise=noise) for apart in (2.0, 1.0))
    assert (value(name, more) > value(name, less)).all()


@every
def test_whether_the_reward_counts_is_as_said(name: str) -> None:
    plain = prediction(3, 20, seed=0)
    other = plain.mean.clone()
    other[..., -1] += 10.0 * torch.arange(3.0)[:, None]
    std = plain.std.clone()
    std[..., -1] *= 3.0
    drawn = plain.drawn.clone()
    drawn[:, -1] += 100.0
    changed = Prediction(other, std, plain.member, drawn)
    assert torch.equal(value(name, plain), value(name, changed)) == (name not in OF_STATE_AND_REWARD)


@pytest.mark.parametrize("name", ["max_pairwise_difference", "ensemble_variance", "ensemble_std"])
def test_sampled_forms_count_the_noise_as_disagreement(name: str) -> None:
    # Members that agree on N(m, s): the mixture's variance is s^2, and Var_i of their draws is s^2 once more.
    agreed = prediction(7, 4_000, seed=0, apart=0.0)
    by_mean, by_draw = value(name, agreed).mean(), value(f"{name}_sampled", agreed).mean()
    assert by_draw > by_mean + 0.1
    if name == "ensemble_variance":
        # The rows drawn are at the mean here, and one of seven draws each: 1 + E[sample variance] / s^2, where six
        # standard normal numbers and one 0 have the expected sum of squares 6 about 0 and 6 - 6 / 7 about their mean.
        assert float(by_draw / by_mean) == pytest.approx(1 + (6 - 6 / 7) / 6, rel=0.02)


def test_samples_hold_the_rows_that_were_drawn() -> None:
    some = prediction(4, 30, seed=3)
    samples = some.samples(torch.Generator().manual_seed(0))
    assert torch.equal(samples[some.member, torch.arange(30)], some.drawn)
    assert (samples != some.mean).float().mean() > 0.7


def test_no_penalty_is_zero() -> None:
    assert measure(None, prediction(3, 5, seed=0), torch.Generator()).tolist() == [0.0] * 5
