"""Which weights stay, and how those that stay make up for the others: WANDA and SparseGPT."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.walk.moments import inverse_root

BLOCK = 128  # columns that SparseGPT solves before it touches those to the right of them


@dataclass(frozen=True)
class Pattern:
    """How much is kept of every group of consecutive inputs, or of every row.

    share: the part that is kept, between 0 and 1.
    group: inputs of a group, the M of N:M; None where a row is compared as a whole.
    """

    share: float
    group: int | None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Return what "2:4" (two of every four are kept) or "50%" (of each row) means.

        Raises:
            SpectrimError: it is neither, or keeps nothing or everything.
        """
        if found := re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text, re.ASCII):
            kept, group = int(found[1]), int(found[2])
            if not 0 < kept < group:
                raise SpectrimError(
                    f"pattern '{text}' would keep {kept} of every {group}; write N:M with N from 1 "
                    "to M - 1, such as 2:4"
                )
            return cls(kept / group, group)
        if found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text, re.ASCII):
            if not 0 < float(found[1]) < 100:
                raise SpectrimError(
                    f"pattern '{text}' is out of range; keep more than 0% and less than 100%"
                )
            return cls(float(found[1]) / 100, None)
        raise SpectrimError(
            f"cannot read pattern '{text}'; write what is kept: '2:4' for two of every four "
            "consecutive inputs, or '50%' for half of each row"
        )

    def count(self, begin: int, end: int) -> int:
        """Return how many of the inputs from ``begin`` to before ``end`` are kept in each row."""
        return round(self.share * end) - round(self.share * begin)

    def fits(self, inputs: int) -> bool:
        """Return whether rows of so many inputs fall into whole groups."""
        return self.group is None or inputs % self.group == 0


def kept(scores: Float[Tensor, "*rows inputs"], count: int) -> Bool[Tensor, "*rows inputs"]:
    """Return a mask of the ``count`` highest scores along the last axis; of equals, the first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :count], True)


def mask(scores: Float[Tensor, "out in"], pattern: Pattern) -> Bool[Tensor, "out in"]:
    """Return which weights a pattern keeps, compared within groups of one row's inputs."""
    size = pattern.group or scores.shape[1]
    return kept(scores.unflatten(1, (-1, size)), pattern.count(0, size)).flatten(1)


def magnitude(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Return |W_ij|."""
    return weight.double().abs()


def wanda(
    weight: Float[Tensor, "out in"], moment: Float[Tensor, "in in"]
) -> Float[Tensor, "out in"]:
    """Return |W_ij| √A_jj, WANDA's |W_ij| ‖x_j‖₂ (2306.11695, equation 1) per token."""
    return magnitude(weight) * moment.double().diagonal().clamp_min(0).sqrt()


def sparsegpt(
    weight: Float[Tensor, "out in"], inputs: Float[Tensor, "in in"], pattern: Pattern
) -> Float[Tensor, "out in"]:
    """Return the sparse matrix that SparseGPT (2301.00774, algorithm 1) leaves, in float64.

    Columns go from left to right; the weights to the right of one that is dropped take the change
    that loses least of tr(Δ H Δᵀ). With H⁻¹ = Uᵀ U, what dropping w_j costs is (w_j / U_jj)²; by
    that the mask is chosen, a group at a time (without groups, ``BLOCK`` columns at a time), on the
    weights as they then are.
    inputs: H, damped, so that it can be inverted.

    Raises:
        ArithmeticError: H is far from positive semidefinite.
    """
    left, root = weight.double().clone(), inverse_root(inputs)
    step = pattern.group or BLOCK
    width = max(1, BLOCK // step) * step  # whole groups
    for begin in range(0, weight.shape[1], width):
        end = min(begin + width, weight.shape[1])
        errors = _solve(left[:, begin:end], root[begin:end, begin:end], pattern, begin)
        left[:, end:] -= errors @ root[begin:end, end:]
    return left


def _solve(
    columns: Float[Tensor, "out block"],
    root: Float[Tensor, "block block"],
    pattern: Pattern,
    first: int,
) -> Float[Tensor, "out block"]:
    """Solve columns in place and return, for each dropped weight, its value over U_jj.

    first: which input the first column belongs to.
    """
    size, step = columns.shape[1], pattern.group or BLOCK
    prices = root.diagonal()
    errors = torch.zeros_like(columns)
    for at in range(size):
        if at % step == 0:
            end = min(at + step, size)
            scores = (columns[:, at:end] / prices[at:end]).square()
            stays = kept(scores, pattern.count(first + at, first + end))  # [out, group]
        dropped = ~stays[:, at % step]
        errors[dropped, at] = columns[dropped, at] / prices[at]
        columns[:, at:] -= torch.outer(errors[:, at], root[at, at:])
        columns[dropped, at] = 0.0  # to the bit
    return errors
