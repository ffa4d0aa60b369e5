"""A matrix as a product of two matrices of signs with scales, in the metric of the loss.

Least is ½ tr(Δᵀ G Δ H), Δ = diag(a) S diag(b) Tᵀ diag(c) - W. First LB-ADMM (NanoQuant): factors A
and B of W solve ridge regressions in turn, each pulled ever harder towards signs times magnitudes
of rank one. There the weights of the error are diagonal; here H and G are whole, and each factor is
pulled in the metric of its own side, so that it drops out of the equations. Then scales are solved
for in closed form, one vector after the other, and signs are flipped one column after the other
(sign_descent.py), in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.rounding.sign_descent import flipped
from spectrim.walk.moments import cholesky, damped

STEPS = 30  # of LB-ADMM; flips of signs behind it do sooner what more steps would
CYCLES = 2  # of flips and scales behind it
ROUNDS = 3  # in which each of the three scales is solved for
RIDGE = 3e-2  # of the mean diagonal, added to the Gram matrix of a factor
POWER = 4  # iterations for the magnitudes of rank one
SEED = 0
INPUTS, GRADIENTS = (0.5, 0.1), (0.2, 0.4)
"""Of H and G: what is kept off the diagonal, and how far the diagonal goes to its mean. Both are
noisy, G more so; fitted to the moments as they are, signs cost more on other text."""


@dataclass(frozen=True)
class BinaryFactors:
    """W ≈ diag(output_scale) outputs diag(rank_scale) inputsᵀ diag(input_scale), float32."""

    outputs: Float[Tensor, "out rank"]
    inputs: Float[Tensor, "in rank"]
    output_scale: Float[Tensor, " out"]
    rank_scale: Float[Tensor, " rank"]
    input_scale: Float[Tensor, " in"]

    def left(self) -> Float[Tensor, "out rank"]:
        """Return the left factor, with the scales of outputs and ranks."""
        return self.output_scale[:, None] * self.outputs * self.rank_scale

    def right(self) -> Float[Tensor, "in rank"]:
        """Return the right factor, with the scales of inputs."""
        return self.input_scale[:, None] * self.inputs

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the matrix that they stand for."""
        return self.left() @ self.right().T

    def pieces(self) -> dict[str, Tensor]:
        """Return what the format of factors of signs takes."""
        return {
            "first.codes": self.inputs.T.to(torch.int8),
            "first.unit": self.rank_scale[:, None],
            "second.codes": self.outputs.to(torch.int8),
            "second.unit": self.output_scale[:, None],
            "input_scale": self.input_scale,
        }

    def turned(self) -> BinaryFactors:
        """Return the factors of the transpose."""
        return BinaryFactors(
            self.inputs, self.outputs, self.input_scale, self.rank_scale, self.output_scale
        )


@dataclass(frozen=True)
class Metric:
    """G and H, shrunk, of mean diagonal 1, float32; that of the transpose is turned."""

    outputs: Float[Tensor, "out out"]
    inputs: Float[Tensor, "in in"]

    @classmethod
    def of(
        cls, gradients: Float[Tensor, "out out"] | None, inputs: Float[Tensor, "in in"], out: int
    ) -> Metric:
        """Return the metric of two moments; no gradients: every output counts alike."""
        felt = torch.eye(out) if gradients is None else gradients
        return cls(_shrunk(felt, *GRADIENTS), _shrunk(inputs, *INPUTS))

    def turned(self) -> Metric:
        """Return the metric of the transpose."""
        return Metric(self.inputs, self.outputs)


def _shrunk(moment: Float[Tensor, "dim dim"], kept: float, evened: float) -> Tensor:
    mean = moment.diagonal().mean()
    if mean == 0:
        return torch.eye(len(moment))
    found = moment.float() * (kept / mean)
    found.diagonal().copy_((1 - evened) * moment.diagonal() / mean + evened)
    return found


@torch.no_grad()
def binary_factors(
    matrix: Float[Tensor, "out in"],
    metric: Metric,
    rank: int,
    *,
    steps: int = STEPS,
    cycles: int = CYCLES,
) -> BinaryFactors:
    """Return the factors of signs of a matrix.

    steps: of LB-ADMM. cycles: of flips and scales after it. The same arguments give the same signs.
    """
    matrix = matrix.float()
    if not bool(matrix.any()):  # of which nothing can be fitted
        return _nothing(matrix, rank)
    found = scaled(matrix, metric, admm(matrix, metric, rank, steps))
    for _ in range(cycles):
        found = flipped_both(matrix, metric, found)
        found = scaled(matrix, metric, found)
    return found


def _nothing(matrix: Float[Tensor, "out in"], rank: int) -> BinaryFactors:
    """Return the factors of a matrix of zeros: any signs, scales of zero."""
    rows, columns = matrix.shape
    signs = [matrix.new_ones(each, rank) for each in (rows, columns)]
    scales = [matrix.new_zeros(each) for each in (rows, rank, columns)]
    return BinaryFactors(signs[0], signs[1], *scales)


def flipped_both(
    matrix: Float[Tensor, "out in"], metric: Metric, found: BinaryFactors
) -> BinaryFactors:
    """Return factors with signs flipped where that lowers the loss, of outputs, then of inputs."""
    left = found.left()
    scale = found.output_scale[:, None] * found.rank_scale
    signs = flipped(matrix, left, found.right(), (metric.outputs, metric.inputs))
    found = replace(found, outputs=torch.where(scale < 0, -signs, signs))
    turned = found.turned()
    scale = turned.output_scale[:, None] * turned.rank_scale
    sides = (metric.inputs, metric.outputs)
    signs = flipped(matrix.T, turned.left(), turned.right(), sides)
    return replace(found, inputs=torch.where(scale < 0, -signs, signs))


def admm(matrix: Float[Tensor, "out in"], metric: Metric, rank: int, steps: int) -> BinaryFactors:
    """Return factors of signs, their magnitudes of rank one as scales, by LB-ADMM."""
    sides = _beginning(matrix, metric, rank)
    weighted = (matrix @ metric.inputs, (metric.outputs @ matrix).T)  # W H, (G W)ᵀ
    metrics = (metric.inputs, metric.outputs)
    pulled = [_signed(one) for one in sides]
    dual = [torch.zeros_like(one) for one in sides]
    for step in range(1, steps + 1):
        for own in (0, 1):
            other = sides[1 - own]
            gram = other.T @ (metrics[own] @ other)
            mean = gram.diagonal().mean()
            pull = step / steps * mean
            gram.diagonal().add_(pull + RIDGE * mean)
            wanted = weighted[own] @ other + pull * (pulled[own].matrix() - dual[own])
            sides[own] = torch.cholesky_solve(wanted.T, cholesky_of(gram)).T
        size = (sides[0].norm() / sides[1].norm()).sqrt()
        for own, by in ((0, 1 / size), (1, size)):  # both of one size, as each is pulled alike
            sides[own], dual[own] = sides[own] * by, dual[own] * by
            pulled[own] = _signed(sides[own] + dual[own])
            dual[own] += sides[own] - pulled[own].matrix()
    left, right = pulled
    return BinaryFactors(
        left.signs, right.signs, left.rows, left.columns * right.columns, right.rows
    )


@dataclass(frozen=True)
class _Signed:
    """Signs times magnitudes rows columnsᵀ."""

    signs: Tensor
    rows: Tensor
    columns: Tensor

    def matrix(self) -> Tensor:
        return self.signs * self.rows[:, None] * self.columns


def _signed(matrix: Float[Tensor, "rows rank"]) -> _Signed:
    """Return the signs of a matrix, and of its magnitudes what comes nearest of rank one."""
    size = matrix.abs()
    columns = size.mean(0)
    for _ in range(POWER):
        rows = size @ columns
        rows = rows / rows.norm().clamp_min(torch.finfo(rows.dtype).tiny)
        columns = size.T @ rows
    return _Signed(torch.where(matrix < 0, -1.0, 1.0), rows, columns)


def _beginning(matrix: Tensor, metric: Metric, rank: int) -> list[Tensor]:
    """Return the best factors of this rank in the metric, turned at random.

    So all columns are of one size and their numbers are as signs are; a rank that is larger than
    the matrix has is filled in this way too.
    """
    roots = [cholesky(one.double()).float() for one in (metric.outputs, metric.inputs)]
    u, sizes, v = torch.linalg.svd(roots[0].T @ matrix @ roots[1], full_matrices=False)
    kept = min(rank, len(sizes))
    generator = torch.Generator().manual_seed(SEED)
    turn = (
        torch.linalg.qr(torch.randn(rank, kept, generator=generator)).Q.T
        * sizes[:kept, None].sqrt()
    )
    return [
        torch.linalg.solve_triangular(root.T, side @ turn, upper=True)
        for root, side in zip(roots, (u[:, :kept], v[:kept].T), strict=True)
    ]


def cholesky_of(gram: Float[Tensor, "rank rank"]) -> Float[Tensor, "rank rank"]:
    """Return the lower Cholesky factor of a ridged Gram matrix, in float64 where it is needed."""
    root, failed = torch.linalg.cholesky_ex(gram)
    return cholesky(gram.double()).float() if failed else root


def scaled(
    matrix: Float[Tensor, "out in"], metric: Metric, found: BinaryFactors, rounds: int = ROUNDS
) -> BinaryFactors:
    """Return factors with the scales that are best for their signs, solved for in turn.

    With the other two as they are, each of a, b, c minimises a form of second degree: for b its
    matrix is (Pᵀ G P) ∘ (Qᵀ H Q), P = diag(a) S and Q = diag(c) T.
    """
    g, h = metric.outputs, metric.inputs
    wanted = g @ matrix @ h
    for _ in range(rounds):
        p, q = found.output_scale[:, None] * found.outputs, found.right()
        normal = (p.T @ g @ p) * (q.T @ h @ q)
        found = replace(found, rank_scale=_solved(normal, ((p.T @ wanted) * q.T).sum(1)))
        whole = (found.outputs * found.rank_scale) @ q.T
        normal = g * (whole @ h @ whole.T)
        found = replace(found, output_scale=_solved(normal, (wanted * whole).sum(1)))
        whole = found.left() @ found.inputs.T
        normal = h * (whole.T @ g @ whole)
        found = replace(found, input_scale=_solved(normal, (wanted * whole).sum(0)))
    return _evened(found)


def _solved(normal: Float[Tensor, "dim dim"], right: Float[Tensor, " dim"]) -> Tensor:
    root = cholesky(damped(normal, 1e-6))
    return torch.cholesky_solve(right.double()[:, None], root)[:, 0].float()


def _evened(found: BinaryFactors) -> BinaryFactors:
    """Return the same matrix with scales of outputs and inputs of mean square 1."""
    sizes = [
        one.square().mean().sqrt().clamp_min(1e-30)
        for one in (found.output_scale, found.input_scale)
    ]
    return replace(
        found,
        output_scale=found.output_scale / sizes[0],
        rank_scale=found.rank_scale * sizes[0] * sizes[1],
        input_scale=found.input_scale / sizes[1],
    )
