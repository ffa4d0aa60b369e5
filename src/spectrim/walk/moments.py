"""Second moments, their roots and inverses, and what they say of the loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.walk.statistics import Statistics

BANDS = 4  # of a second moment: 5/8 of it is computed and kept; more bands run less well


def expected_loss(
    before: Float[Tensor, "out in"],
    after: Float[Tensor, "out in"],
    known: Statistics,
    damping: Damping,
) -> float:
    """Return ½ tr(Δᵀ G Δ A_w), nats per token, with the moments damped as the currency has them.

    Raises:
        ValueError: the statistics lack a moment.
    """
    if known.loss_inputs is None or known.gradient_moment is None:
        raise ValueError("the common currency needs the input moment and the gradient moment")
    if not known.loss_inputs.any() or not known.gradient_moment.any():
        return 0.0  # nothing reaches the loss
    error = before.double() - after.double()
    inputs = damped(known.loss_inputs, damping.input)
    gradients = damped(known.gradient_moment, damping.gradient)
    return float(0.5 * ((gradients @ error @ inputs) * error).sum())


Price = TypeVar("Price", float, Tensor)


def of_all_text(own: Price, other: Price) -> Price:
    """Return the price of what is fitted to all text, from what one half of the text has fitted.

    own: its price on that half, which is too low as the fit has followed its noise. other: on the
    other half. Both are as far from the price of a fit without noise, and the error of a fit falls
    with the number of tokens: that of twice as many is half of it.
    """
    return (own + 3 * other) / 4


def inverse_root(inputs: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
    """Return the upper triangular U with H⁻¹ = Uᵀ U.

    H = R Rᵀ with R upper triangular is the Cholesky factor of H read backwards; U is R⁻¹.
    """
    upper = cholesky(inputs.flip(0, 1)).flip(0, 1)
    eye = torch.eye(len(inputs), dtype=inputs.dtype)
    root: Tensor = torch.linalg.solve_triangular(upper, eye, upper=True)
    return root


@dataclass(frozen=True)
class Damping:
    """How far moments are shrunk towards a multiple of the identity before they are factored.

    ``input`` and ``gradient`` are parts of the mean diagonal of A and G that are added to it;
    0 leaves them as measured.
    """

    input: float = 1e-4
    gradient: float = 1e-2


def damped(moment: Float[Tensor, "dim dim"], damping: float) -> Float[Tensor, "dim dim"]:
    """Return moment + damping x mean diagonal x identity in float64; a moment of zeros is neutral.

    Zeros (a dead input, a map that the loss ignores) become the identity, so that it factors.
    """
    mean = moment.double().diagonal().mean()
    if mean == 0:
        return torch.eye(len(moment), dtype=torch.float64)
    return _shifted(moment, float(damping * mean))


def cholesky(moment: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """Return the lower Cholesky factor of a moment.

    One that is singular (fewer tokens than dimensions, dead neurons) is damped tenfold more, from
    1e-12 of its mean diagonal on, until it factors.

    Raises:
        ArithmeticError: the matrix is far from positive semidefinite.
    """
    shift = 0.0
    mean = float(moment.diagonal().mean())
    while shift < 1.0:
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(_shifted(moment, shift * mean) if shift else moment)
        if not failed:
            return root
        shift = max(10 * shift, 1e-12)
    raise ArithmeticError("a second moment is not positive semidefinite")


def _shifted(moment: Float[Tensor, "dim dim"], shift: float) -> Float[Tensor, "dim dim"]:
    """Return moment + shift x identity in float64, one copy made, as moments may be large."""
    shifted = moment.to(torch.float64, copy=True)
    shifted.diagonal().add_(shift)
    return shifted


@dataclass
class SecondMoment:
    """A running sum of outer products in float32; blocks below the diagonal are left out."""

    bands: list[Tensor]
    """Rows of the sum, each band from its block on the diagonal to the right."""
    sum: Tensor
    tokens: int = 0

    @classmethod
    def zeros(cls, size: int) -> SecondMoment:
        """Return an empty sum for vectors of this size."""
        bands = [torch.zeros(end - begin, size - begin) for begin, end in edges(size, BANDS)]
        return cls(bands, torch.zeros(size))

    def add(self, rows: Float[Tensor, "tokens size"]) -> None:
        """Add Σ row rowᵀ and Σ row.

        Only blocks on and above the diagonal are computed. Products of bf16 rows are exact, so the
        processor may multiply in bf16 and add in float32, twice as fast and no less precise.
        """
        exact = rows.dtype == torch.bfloat16
        rows = rows.detach().float()
        with matmul_precision("medium" if exact else "highest"):
            for band, (begin, end) in zip(self.bands, edges(rows.shape[1], BANDS), strict=True):
                band += rows[:, begin:end].T @ rows[:, begin:]
        self.sum += rows.sum(0)
        self.tokens += len(rows)

    def moment(self) -> Float[Tensor, "size size"]:
        """Return the symmetric sum."""
        whole = torch.zeros(len(self.sum), len(self.sum))
        for band, (begin, end) in zip(self.bands, edges(len(self.sum), BANDS), strict=True):
            whole[begin:end, begin:] = band
        return whole.triu() + whole.triu(1).T


def edges(size: int, bands: int) -> list[tuple[int, int]]:
    """Return where each of so many bands of rows begins and ends."""
    cuts = [size * part // bands for part in range(bands + 1)]
    return list(itertools.pairwise(cuts))


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Multiply float32 matrices with this torch precision while the context lasts."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
