"""What is trained in the place of a pivoted map: the same matrix, balanced, and pivoted again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectrim.formats.low_rank import LowRank
from spectrim.formats.pivoted import Pivoted
from spectrim.healing.balanced import Balanced, balance, pivot


def made(kind: type[Pivoted | LowRank], bias: bool) -> Pivoted | LowRank:
    torch.manual_seed(0)
    module = kind(12, 10, 4, bias)
    with torch.no_grad():
        module.fill(torch.randn(10, 4) * torch.tensor([1e3, 1.0, 1e-1, 1e-2]), torch.randn(4, 12))
        if module.bias is not None:
            module.bias.copy_(torch.randn(10))
    return module


@pytest.mark.parametrize("bias", [True, False])
def test_the_map_is_the_same_in_training_and_after(bias: bool) -> None:
    block = nn.Sequential(made(Pivoted, bias), nn.ReLU()).eval()
    x = torch.randn(3, 12)
    before = block(x)
    balance(block)
    assert type(block[0]) is Balanced and not block[0].training
    torch.testing.assert_close(block(x), before, rtol=1e-4, atol=1e-2)
    pivot(block)
    assert type(block[0]) is Pivoted
    torch.testing.assert_close(block(x), before, rtol=1e-4, atol=1e-2)


def test_both_factors_are_alike_in_size() -> None:
    block = balance(nn.Sequential(made(Pivoted, False)))
    first, second = block[0].first.norm(dim=1), block[0].second.norm(dim=0)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_what_was_two_factors_stays_so() -> None:
    block = nn.Sequential(made(LowRank, True), nn.Linear(10, 2))
    kept = list(block)
    assert list(pivot(balance(block))) == kept
