"""Weights that were quantised before are found out, and others are not accused."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spectrim.metrics.grid import grid, on_grid


def weight(rows: int = 128, columns: int = 96) -> torch.Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.manual_seed(0))


def four_bit(full: torch.Tensor, group: int = 32) -> torch.Tensor:
    """Round groups of neighbours to sixteen steps between their least and greatest value."""
    groups = full.reshape(-1, group)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    return (low + step * ((groups - low) / step).round()).reshape(full.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [32, 96])
def test_four_bit_weights_are_on_the_grid_whatever_their_dtype(
    dtype: torch.dtype, group: int
) -> None:
    assert on_grid(four_bit(weight(), group).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_weights_are_not(dtype: torch.dtype) -> None:
    assert not on_grid(weight().to(dtype))


def test_one_changed_row_is_forgiven_and_a_tenth_is_not() -> None:
    rounded = four_bit(weight(1000, 64))
    plain = weight(1000, 64)
    assert on_grid(torch.cat((plain[:1], rounded[1:])), rows=1000)
    assert not on_grid(torch.cat((plain[:100], rounded[100:])), rows=1000)


@pytest.mark.parametrize("shape", [(4, 64), (4, 16)])
def test_constant_or_narrow_matrices_say_nothing(shape: tuple[int, int]) -> None:
    assert not on_grid(torch.zeros(shape))
    assert not on_grid(torch.ones(shape))


def test_the_share_of_a_model() -> None:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    assert grid(model) == 0.0
    with torch.no_grad():
        for linear in model.model.layers[0].modules():
            if isinstance(linear, torch.nn.Linear):
                linear.weight.copy_(four_bit(linear.weight.float()))
    assert grid(model) == 0.5
