"""Packed matrices of random codes, and tiny models whose maps are in one format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectrim.formats import FactoredLinear, formats
from spectrim.formats.binary_low_rank import SIGNS
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.quantized import GRID, Quantized
from spectrim.formats.packed.scales import Grid
from spectrim.formats.packed.trellis_matrix import SPREAD, TrellisMatrix, column_bytes
from spectrim.formats.trellis import Trellis
from spectrim.model.sites import find, replace

GRIDS = [
    Grid(bits, group, even)
    for bits in (2, 3, 4, 8)
    for group in (0, 32, 64, 128)
    for even in (True, False)
] + [Grid(1, 0, symmetric=True), Grid(1, 64, symmetric=True)]
RATES = (8, 21, 32, 43, 64, 80)


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


def paths(rows: int, columns: int, rate: int) -> TrellisMatrix:
    """Return a matrix of random paths and scales that the kernels may multiply."""
    held = TrellisMatrix(rows, columns, rate).to(torch.bfloat16).requires_grad_(False)
    held.take(path_pieces(rows, columns, rate))
    held.native = True
    return held


def path_pieces(rows: int, columns: int, rate: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows + rate)
    shape = (columns, column_bytes(rows, rate))
    return {
        "codes": torch.randint(256, shape, generator=generator, dtype=torch.uint8),
        "row_scale": 0.2 * drawn(rows, seed=1).abs(),
        "column_scale": drawn(columns, seed=2).abs() / SPREAD,
    }


def keywords(grid: Grid) -> dict[str, Any]:
    """Return a grid as the keywords of a format."""
    return {name: getattr(grid, name) for name in GRID}


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def small(name: str, model: Any) -> Any:
    """Return the model in bf16 with its blocks' maps in a format."""
    for at, site in enumerate(find(model)):
        if site.block < 0 or name == "dense":
            continue
        out, inside = site.out_features, site.in_features
        rank = min(out, inside) if "dense" in name or name == "trellis" else min(out, inside) // 2
        shape = {"in_features": inside, "out_features": out, "rank": rank, "bias": False}
        module: FactoredLinear = formats.get(name).from_shape({**shape, **_own(name, at)})
        module = module.to(torch.bfloat16).requires_grad_(False)
        if isinstance(module, (Quantized, Trellis)):
            module.take(_pieces(module))
        else:
            _fill(module)
        replace(model, site.name, module.eval())
    return model


def _own(name: str, at: int) -> dict[str, Any]:
    """Return what a format is told beside its shape; at: how many maps were made before it."""
    correction = {"correction": 3} if "dense" in name else {}
    if name == "trellis":
        return {"trellis": RATES[at % len(RATES)]}
    if name == "binary_low_rank":
        return keywords(SIGNS)
    return correction | (keywords(GRIDS[at % len(GRIDS)]) if "quantized" in name else {})


def _pieces(module: Quantized | Trellis) -> dict[str, Tensor]:
    out, inside = module.out_features, module.in_features
    if isinstance(module, Trellis):
        return path_pieces(out, inside, module.matrix.rate)
    taken = {"order": torch.arange(out).flip(0), "input_scale": drawn(inside, seed=6).abs()}
    for part, size in module.matrices(out, inside, module.rank).items():
        taken |= {f"{part}.{key}": one for key, one in pieces(module.grid, *size).items()}
    return {"first": 0.1 * drawn(3, inside), "second": 0.1 * drawn(out, 3)} | taken


def _fill(module: Any) -> None:
    for key, one in module.named_parameters():
        one.copy_(0.2 * drawn(*one.shape, seed=len(key)))
    if hasattr(module, "order"):
        module.order.copy_(torch.arange(module.out_features).flip(0))
