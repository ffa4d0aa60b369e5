"""Packed matrices in training with their codes: the same before, better after."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.scales import Grid
from spectrim.healing.adam import Adam
from spectrim.healing.learned_codes import LearnedMatrix, learn, settle
from spectrim.healing.windows import highest_rates
from spectrim.rounding.nearest import nearest

ROWS, COLUMNS = 24, 64
BITS = (2, 3, 4, 8)
STEPS = 200


def matrix() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def packed(bits: int, symmetric: bool = False) -> PackedMatrix:
    found = nearest(matrix(), torch.ones(COLUMNS), Grid(bits, 32, symmetric), torch.float32)
    held = PackedMatrix(ROWS, COLUMNS, Grid(bits, 32, symmetric))
    held.take({key.removeprefix("m."): piece for key, piece in found.pieces("m").items()})
    return held


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_nothing_changes_by_being_made_ready(bits: int, symmetric: bool, codes: bool) -> None:
    held = packed(bits, symmetric)
    block = nn.Sequential(held).eval()
    x, before = torch.randn(5, COLUMNS), held.dense().detach()
    ready = learn(block, codes=codes)[0]
    assert type(ready) is LearnedMatrix and not ready.training
    assert torch.equal(ready.dense(), before)
    assert torch.equal(ready.dense(3, 7), before[3:7])
    torch.testing.assert_close(ready.product(x), x @ before.T, rtol=1e-5, atol=1e-5)
    after = settle(block)[0]
    assert type(after) is PackedMatrix and not after.training
    assert after.state_dict().keys() == held.state_dict().keys()
    assert all(torch.equal(one, held.state_dict()[key]) for key, one in after.state_dict().items())


def test_the_gradient_is_that_of_an_unrounded_matrix() -> None:
    held = packed(3)
    ready = LearnedMatrix(held, codes=True)
    target = torch.randn(ROWS, COLUMNS)
    (ready.dense() * target).sum().backward()
    assert ready.latent is not None and ready.latent.grad is not None
    scales = held.scales().detach().repeat_interleave(32, dim=1)
    torch.testing.assert_close(ready.latent.grad, target * scales)


def test_a_code_that_was_pushed_out_of_range_comes_back() -> None:
    ready = LearnedMatrix(packed(2), codes=True)
    assert ready.latent is not None
    with torch.no_grad():
        ready.latent.fill_(7.0)
    for _ in range(2):
        ready.latent.grad = None
        (ready.dense() * ready.scales().detach().repeat_interleave(32, dim=1)).sum().backward()
        assert ready.latent.grad is not None and (ready.latent.grad != 0).all()
        with torch.no_grad():
            ready.latent -= 0.6 * ready.latent.grad.sign()
    assert (ready.codes() == 0).all()


def test_a_code_out_of_range_stays_at_the_end() -> None:
    ready = LearnedMatrix(packed(2), codes=True)
    assert ready.latent is not None
    with torch.no_grad():
        ready.latent[0] = 5.7
        ready.latent[1] = -9.0
    assert (ready.codes()[0] == 1).all() and (ready.codes()[1] == -2).all()
    after = settle(nn.Sequential(ready))[0]
    assert torch.equal(after.dense(), ready.dense())


def trained(bits: int, codes: bool) -> float:
    """Return the error of outputs after training on inputs in which a few directions are large."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.randn(COLUMNS, COLUMNS, generator=generator) * torch.logspace(0, -2, COLUMNS)
    x = torch.randn(512, COLUMNS, generator=generator) @ spread.T
    block: nn.Sequential = nn.Sequential(packed(bits))
    learn(block, codes=codes)
    parameters = {name: one for name, one in block.named_parameters() if one.is_floating_point()}
    update = Adam(parameters, relative=True)
    for step in range(STEPS):
        update.begin(7e-4 * (1 - step / STEPS))
        (block[0].product(x) - x @ matrix().T).square().mean().backward()
        update.end()
    with torch.no_grad():
        return float((settle(block)[0].product(x) - x @ matrix().T).square().mean())


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_what_was_trained_is_what_is_stored(bits: int, codes: bool) -> None:
    block = learn(nn.Sequential(packed(bits)), codes=codes)
    before = block[0].dense().detach()
    with torch.no_grad():
        for name, one in block.named_parameters():
            pushed = 0.03 * one.abs().mean() if "latent" not in name else 0.8
            one += pushed * torch.randn(one.shape, generator=torch.Generator().manual_seed(3))
    after = block[0].dense().detach()
    assert not torch.equal(after, before)
    torch.testing.assert_close(settle(block)[0].dense(), after, rtol=1e-6, atol=1e-7)


def test_a_small_matrix_moves_by_a_part_of_its_size() -> None:
    """Scales of eight bits are small numbers."""
    small = nn.Parameter(1e-4 * torch.ones(4, 4))
    vector = nn.Parameter(torch.zeros(4))
    update = Adam({"small": small, "vector": vector}, relative=True)
    update.begin(0.01)
    (small.sum() + vector.sum()).backward()
    update.end()
    torch.testing.assert_close(1e-4 - small, torch.full((4, 4), 1e-6), rtol=1e-3, atol=0)
    torch.testing.assert_close(-vector, torch.full((4,), 1e-4), rtol=1e-3, atol=0)


def test_scales_alone_move_by_a_hundredth_of_their_size_at_most() -> None:
    block = learn(nn.Sequential(packed(8)))
    block.append(nn.Linear(2, 2))
    named = dict(block.named_parameters())
    found = dict(zip(named, highest_rates(named, 1.0), strict=True))
    size = float(block[0].scale.detach().square().mean().sqrt())
    assert found["0.scale"] == pytest.approx(0.01 * size) and found["1.weight"] == 1.0


def test_trained_codes_come_closer_than_trained_scales() -> None:
    """In two bits; in more, codes win less or nothing over scales in so short a training."""
    assert trained(2, codes=True) < 0.9 * trained(2, codes=False)
