"""The residual denoiser: its layers by hand, the condition that says nothing, and bfloat16."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from offline_train.diffusion.denoiser import Denoiser, known, unknown
from offline_train.diffusion.edm import denoise
from offline_train.diffusion.synther import guided
from offline_train.diffusion.transition_model import Wish


def make(**settings: Any) -> Denoiser:
    return Denoiser(5, torch.Generator().manual_seed(0), **{"width": 16, "depth": 3, "embedding": 8, **settings})


def test_forward_is_what_the_paper_writes() -> None:
    network, rows, level = make(), torch.randn(4, 5), torch.randn(4, 1)
    angles = 2 * math.pi * level * network.frequencies
    told = network.level(torch.cat([level, angles.sin(), angles.cos()], -1))
    hidden = network.widen(network.input(rows) + told)
    for layer in network.residual:
        # Equation 3: x_(L+1) = linear(activation(x_L)) + x_L.
        hidden = layer(hidden.relu()) + hidden
    torch.testing.assert_close(network(rows, level), network.output(hidden.relu()))


def test_full_width_has_the_papers_six_million_weights() -> None:
    # 6 (1024^2 + 1024) in the residual layers, and little beside them: "approximately 6M".
    with torch.device("meta"):
        network = Denoiser(41, torch.Generator("cpu"))  # type: ignore[arg-type]
    assert 6_297_600 < sum(p.numel() for p in network.parameters()) < 6_600_000


def test_level_of_one_row_stands_for_all() -> None:
    network, rows = make(), torch.randn(4, 5)
    torch.testing.assert_close(network(rows, torch.ones(1, 1)), network(rows, torch.ones(4, 1)))


def test_bf16_is_near_and_returns_float32() -> None:
    exact, rough, rows = make(), make(bf16=True), torch.randn(4, 5)
    found = rough(rows, torch.ones(1, 1))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact(rows, torch.ones(1, 1)), atol=0.02, rtol=0.05)
    assert not torch.equal(found, exact(rows, torch.ones(1, 1)))


def test_what_is_known_differs_from_what_is_not() -> None:
    condition = torch.tensor([[0.0], [0.5]])
    assert known(condition).tolist() == [[0.0, 1.0], [0.5, 1.0]]
    assert unknown(condition).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    network, rows = make(condition_dim=1), torch.randn(2, 5)
    level = torch.ones(1, 1)
    # Knowing that it is 0 is not the same as knowing nothing.
    assert not torch.equal(network(rows, level, known(condition)), network(rows, level, unknown(condition)))


def test_guidance_by_hand() -> None:
    network, rows, sigma = make(condition_dim=1), torch.randn(3, 5), torch.ones(1, 1)
    condition = torch.full((3, 1), 0.5)
    without, under = (
        denoise(lambda x, level, told=told: network(x, level, told), rows, sigma)
        for told in (unknown(condition), known(condition))
    )
    for weight, expected in ((0.0, without), (1.0, under), (2.0, 2 * under - without)):
        torch.testing.assert_close(guided(network, rows, sigma, Wish(condition, weight)), expected)


def test_weights_are_a_function_of_the_generator() -> None:
    first, second = make(), make()
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert torch.equal(first.frequencies, second.frequencies)
    assert isinstance(first.residual, nn.ModuleList) and len(first.residual) == 3
