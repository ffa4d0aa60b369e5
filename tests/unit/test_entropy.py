"""Packed codes on disk: what is coded comes back to the bit, is shorter, and damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.formats.packed import entropy
from spectrim.formats.packed.matrix import pack
from spectrim.formats.packed.scales import Grid
from spectrim.model.checkpoint import entropy_coded
from spectrim.rounding.nearest import nearest

ENTROPY = {2: 1.95, 3: 2.90, 4: 3.85}  # bits of a code at most: those of a Gaussian, and tables


def codes(bits: int, columns: int = 512) -> Tensor:
    """Return what 256 rows of Gaussian weights are rounded to."""
    torch.manual_seed(bits)
    grid = Grid(bits, 64, symmetric=False)
    return nearest(torch.randn(256, columns), torch.ones(columns), grid, torch.bfloat16).codes


@pytest.mark.parametrize("bits", ENTROPY)
@pytest.mark.parametrize("columns", [512, 509])
def test_codes_come_back_to_the_bit_in_about_their_entropy(bits: int, columns: int) -> None:
    found = codes(bits, columns)
    packed = pack(found, bits)
    name, frame = entropy.coded("block.up.quantized.packed", packed)
    assert 8 * frame.nbytes / found.numel() < ENTROPY[bits] + (columns % 8 > 0)
    assert entropy.is_coded(name) and entropy.plain_name(name) == "block.up.quantized.packed"
    head = bytes(frame[: entropy.HEAD].tolist())
    assert entropy.plain_bytes(name, head) == packed.nbytes
    like = torch.empty_like(packed, device="meta")
    assert torch.equal(entropy.decoded(frame, name, like), packed)


def test_signed_codes_keep_their_signs() -> None:
    offsets = torch.randn(300, 9).mul(20).to(torch.int8)
    name, frame = entropy.coded("up.quantized.offset_code", offsets)
    assert entropy.is_coded(name)
    assert torch.equal(entropy.decoded(frame, name, offsets), offsets)


def test_what_gains_nothing_and_what_is_no_code_stays(tmp_path: Path) -> None:
    even = torch.randint(0, 256, (64, 64), dtype=torch.uint8)
    weight = torch.zeros(64, 64)
    assert entropy.coded("up.quantized.packed", even) == ("up.quantized.packed", even)
    assert entropy.coded("norm.weight", weight) == ("norm.weight", weight)
    save_file({"norm.weight": weight}, tmp_path / "plain.safetensors")
    target = tmp_path / "coded.safetensors"
    assert entropy_coded(tmp_path / "plain.safetensors", target) == tmp_path / "plain.safetensors"
    save_file({"norm.weight": weight, "up.quantized.packed": pack(codes(2), 2)}, target)
    again = entropy_coded(target, tmp_path / "again.safetensors")
    assert set(load_file(again)) == {"norm.weight", "up.quantized.packed_zstd"}


@pytest.mark.parametrize("damage", ["cut", "other size", "no frame"])
def test_damage_is_told_in_one_line(damage: str) -> None:
    packed = pack(codes(3), 3)
    name, frame = entropy.coded("up.quantized.packed", packed)
    like = packed
    if damage == "cut":
        frame = frame[:-20]
    elif damage == "no frame":
        frame = torch.zeros(64, dtype=torch.uint8)
        with pytest.raises(SpectrimError, match="damaged"):
            entropy.plain_bytes(name, bytes(frame.tolist()))
    else:
        like = packed[:-1]
    with pytest.raises(SpectrimError, match="fetch the model again"):
        entropy.decoded(frame, name, like)
