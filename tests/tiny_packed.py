"""Packed matrices of random codes, and tiny models whose maps are in one format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectrim.formats import FactoredLinear, formats
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.scales import Grid
from spectrim.model.sites import find, replace

GRIDS = [
    Grid(bits, group, even)
    for bits in (2, 3, 4, 8)
    for group in (0, 32, 64, 128)
    for even in (True, False)
] + [Grid(1, 0, symmetric=True), Grid(1, 64, symmetric=True)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(torch.bfloat16)


def packed(grid: Grid, rows: int, columns: int) -> PackedMatrix:
    """Return a matrix of random codes, scales and offsets that the kernels may multiply."""
    held = PackedMatrix(rows, columns, grid).to(torch.bfloat16).requires_grad_(False)
    held.take(pieces(grid, rows, columns))
    held.native.allowed = True
    return held


def pieces(grid: Grid, rows: int, columns: int) -> dict[str, Tensor]:
    generator, groups = torch.Generator().manual_seed(columns), (rows, grid.groups(columns))

    def whole(low: int, high: int, shape: tuple[int, int]) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    codes = whole(*grid.codes, (rows, columns))
    if grid.bits == 1:
        codes = torch.where(codes < 0, -1, 1)
    return {
        "codes": codes.to(torch.int8),
        "unit": 0.2 * drawn(rows, 1).abs() / 2**grid.bits,
        "scale_code": whole(60, 255, groups),
        "offset_code": whole(-30, 30, groups),
    }


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def small(name: str, model: Any) -> Any:
    """Return the model in bf16 with its blocks' maps in a format."""
    for at, site in enumerate(find(model)):
        if site.block < 0 or name == "dense":
            continue
        out, inside = site.out_features, site.in_features
        rank = min(out, inside) // 2 if "dense" not in name else min(out, inside)
        shape = {"in_features": inside, "out_features": out, "rank": rank, "bias": False}
        grid = vars(GRIDS[at % len(GRIDS)]) if name.startswith("quantized") else {}
        correction = {"correction": 3} if "dense" in name else {}
        module: FactoredLinear = formats.get(name).from_shape({**shape, **grid, **correction})
        module = module.to(torch.bfloat16).requires_grad_(False)
        taken = {"order": torch.arange(out).flip(0)}
        if grid:
            for part, size in module.matrices(out, inside, rank).items():
                own = pieces(module.grid, *size)
                taken |= {f"{part}.{key}": one for key, one in own.items()}
            taken |= {"first": 0.1 * drawn(3, inside), "second": 0.1 * drawn(out, 3)}
            module.take(taken)
        else:
            for key, one in module.named_parameters():
                one.copy_(0.2 * drawn(*one.shape, seed=len(key)))
            if name == "pivoted":
                module.order.copy_(taken["order"])
        replace(model, site.name, module.eval())
    return model
