"""Packed matrices in training, dense once a pass: a step costs its products and little else.

Rounding has no gradient, so that of the rounded matrix is passed on to what was rounded
(straight-through, 1308.3432).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int8, Shaped
from torch import Tensor
from torch.nn import functional

from spectrim.formats.packed.scales import Grid


def pass_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a product with these inputs is computed."""
    mixed = torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if mixed else x.dtype


class Dequantized(torch.autograd.Function):
    """scale round(latent) + offset, the gradient of round taken as one."""

    @staticmethod
    def forward(
        ctx: Any,
        latent: Float[Tensor, "rows columns"],
        scale: Float[Tensor, "rows groups"],
        offset: Float[Tensor, "rows groups"] | None,
        grid: Grid,
        dtype: torch.dtype,
    ) -> Float[Tensor, "rows columns"]:
        """Return the matrix in a dtype; latent: codes before they are rounded."""
        codes = latent.round().clamp_(*grid.codes)
        ctx.save_for_backward(codes.to(torch.int8), scale)
        ctx.grid, ctx.offset = grid, offset is not None
        return _whole(codes, scale, offset, grid).to(dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of codes, scales and offsets."""
        codes, scale = ctx.saved_tensors
        groups = in_groups(upstream[0].to(scale.dtype), scale.shape[1], ctx.grid)
        of_latent = (groups * scale[..., None]).flatten(1)[:, : codes.shape[1]]
        of_scale, of_offset = _of_groups(groups, codes, ctx.grid, ctx.offset)
        return of_latent, of_scale, of_offset, None, None


class ScaledProduct(torch.autograd.Function):
    """x Wᵀ with W = scale codes + offset, the codes fixed; W is made again for the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch columns"],
        scale: Float[Tensor, "rows groups"],
        offset: Float[Tensor, "rows groups"] | None,
        codes: Int8[Tensor, "rows columns"],
        grid: Grid,
    ) -> Float[Tensor, "*batch rows"]:
        """Return the product."""
        dtype = pass_dtype(x)
        ctx.save_for_backward(x, scale, offset, codes)
        ctx.grid, ctx.dtype = grid, dtype
        return functional.linear(x.to(dtype), _whole(codes, scale, offset, grid).to(dtype))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of inputs, scales and offsets."""
        x, scale, offset, codes = ctx.saved_tensors
        (gradient,) = upstream
        gradient = gradient.to(ctx.dtype)
        whole = _whole(codes, scale, offset, ctx.grid).to(ctx.dtype)
        of_x = (gradient @ whole).to(x.dtype)
        of_whole = gradient.flatten(0, -2).T @ x.to(ctx.dtype).flatten(0, -2)
        groups = in_groups(of_whole.to(scale.dtype), scale.shape[1], ctx.grid)
        of_scale, of_offset = _of_groups(groups, codes, ctx.grid, offset is not None)
        return of_x, of_scale, of_offset, None, None


def _whole(
    codes: Tensor, scale: Tensor, offset: Tensor | None, grid: Grid
) -> Float[Tensor, "rows columns"]:
    values = in_groups(codes, scale.shape[1], grid) * scale[..., None]
    if offset is not None:
        values += offset[..., None]
    return values.flatten(1)[:, : codes.shape[1]]


def _of_groups(
    gradient: Float[Tensor, "rows groups size"], codes: Tensor, grid: Grid, shifted: bool
) -> tuple[Float[Tensor, "rows groups"], Float[Tensor, "rows groups"] | None]:
    """Return the gradients of scales and offsets; gradient: of the matrix. shifted: has offsets."""
    of_scale = (gradient * in_groups(codes, gradient.shape[1], grid)).sum(-1)
    return of_scale, gradient.sum(-1) if shifted else None


def in_groups(
    matrix: Shaped[Tensor, "rows columns"], groups: int, grid: Grid
) -> Shaped[Tensor, "rows groups size"]:
    """Return the groups of each row, a short last one filled up with zeros."""
    size = grid.group or matrix.shape[1]
    if spare := groups * size - matrix.shape[1]:
        matrix = functional.pad(matrix, (0, spare))
    return matrix.view(len(matrix), groups, size)
