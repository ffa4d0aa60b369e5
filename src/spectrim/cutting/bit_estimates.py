"""What few bits will cost, estimated from ranges, in a small part of the time that rounding takes.

With GPTQ the errors e of a matrix cost Σ_o G_oo Σ_j d_j e_oj², where d is the squared diagonal of
the triangular factor of A: what is left of a row has made up for the rest of each error. Errors
grow with the range of their group. So the range of every group is taken; how large errors are
beside it is found out on some of the rows, rounded to the nearest. As with codes that are rounded
for real, A chooses on the even sequences, and the odd ones price too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectrim.formats import TwoFactors
from spectrim.formats.fewer_inputs import FewerInputs
from spectrim.formats.fewer_outputs import FewerOutputs
from spectrim.formats.low_rank import LowRank
from spectrim.formats.packed.scales import Grid, dequantize, quantize
from spectrim.formats.pivoted import Pivoted
from spectrim.job.dense_forms import matrix_of
from spectrim.rounding.few_bits import DAMPING, InverseRoots
from spectrim.rounding.nearest import group_scale, in_groups
from spectrim.walk.moments import Damping, cholesky, damped, of_all_text
from spectrim.walk.statistics import Statistics

ROWS = 64  # of a matrix at most that are rounded


@dataclass(frozen=True)
class Inputs:
    """The moment that codes are chosen for, and that of text which has not chosen, if any."""

    chosen: Float[Tensor, "in in"]
    unseen: Float[Tensor, "in in"] | None

    @classmethod
    def of(cls, known: Statistics) -> Inputs | None:
        """Return those of a map, as all prices have them; None where no token came."""
        odd = known.odd()
        if odd is None or known.even is None or known.even.loss_inputs is None:
            return None if known.loss_inputs is None else cls(known.loss_inputs, None)
        return cls(known.even.loss_inputs, odd.loss_inputs)

    def behind(self, first: Float[Tensor, "rank in"]) -> Inputs:
        """Return the moments of what a factor delivers, float64."""
        found = [
            None if one is None else (first @ one.float() @ first.T).double()
            for one in (self.chosen, self.unseen)
        ]
        assert found[0] is not None
        return Inputs(found[0], found[1])


@torch.no_grad()
def estimated_losses(
    module: nn.Module, known: Statistics, grids: Sequence[Grid], roots: InverseRoots
) -> Float[Tensor, " grids"]:
    """Return what rounding a map by GPTQ will cost in each of the grids, nats per token.

    known: the moments of what the map reads and delivers. Zeros where no token came.
    roots: of what was inverted already, for the maps of one block.

    Raises:
        TypeError: the map's format cannot be packed.
    """
    inputs = Inputs.of(known)
    if known.tokens == 0 or inputs is None:
        return torch.zeros(len(grids))
    if known.gradient_moment is None or not known.gradient_moment.any():
        return torch.zeros(len(grids))
    gradients = damped(known.gradient_moment, Damping().gradient).float()
    felt = gradients.diagonal()
    if isinstance(module, LowRank | Pivoted):
        return _of_factors(module, inputs, gradients, grids, roots)
    if isinstance(module, FewerOutputs):
        return _of_matrix(module.rows.detach(), inputs, felt, grids, roots)
    if isinstance(module, FewerInputs):
        return _of_matrix(module.columns.detach(), inputs, felt, grids, roots)
    return _of_matrix(matrix_of(module), inputs, felt, grids, roots)


def _of_factors(
    module: TwoFactors,
    inputs: Inputs,
    gradients: Tensor,
    grids: Sequence[Grid],
    roots: InverseRoots,
) -> Tensor:
    """Return the losses of both factors.

    The errors of the first one, apart from each other, add a diagonal D to the moment Σ of what it
    delivers; the second one, solved anew, makes up for all of D but Σ - Σ (Σ + D)⁻¹ Σ.
    """
    first, second = module.right().detach().float(), module.left().detach().float()
    felt = gradients.diagonal()
    through = (second.T @ gradients @ second).double()
    behind = inputs.behind(first)
    delivered = behind.chosen
    if isinstance(module, Pivoted):  # whose pivot rows are not stored twice
        second, felt = second[module.order >= module.rank], felt[module.order >= module.rank]
    losses = (
        _of_matrix(second, behind, felt, grids, InverseRoots())
        if len(second)
        else torch.zeros(len(grids))
    )
    for place, errors in enumerate(_row_errors(first, inputs, grids, roots)):
        both = delivered + torch.diag(errors.double())
        left = delivered - delivered @ torch.cholesky_solve(delivered, cholesky(both))
        losses[place] += float((through * left).sum()) / 2
    return losses


def _of_matrix(
    matrix: Float[Tensor, "rows columns"],
    inputs: Inputs,
    felt: Float[Tensor, " rows"],
    grids: Sequence[Grid],
    roots: InverseRoots,
) -> Float[Tensor, " grids"]:
    """Return ½ Σ_o felt_o Σ_j d_j e_oj² for each grid; felt: the diagonal of G."""
    return torch.stack([felt @ errors / 2 for errors in _row_errors(matrix, inputs, grids, roots)])


def _row_errors(
    matrix: Float[Tensor, "rows columns"],
    inputs: Inputs,
    grids: Sequence[Grid],
    roots: InverseRoots,
) -> list[Float[Tensor, " rows"]]:
    """Return Σ_j d_j e_oj² of every row for each grid, as estimates."""
    size = grids[0].group or matrix.shape[1]
    chosen, counted = (in_groups(one[None], size)[0] for one in _costs(inputs, roots))
    groups = in_groups(matrix.float(), size)  # [rows, groups, size]
    ranges = groups.amax(-1) - groups.amin(-1)
    spread = (ranges.square() * counted.sum(-1)).sum(-1)  # [rows]
    some = torch.arange(0, len(matrix), max(1, -(-len(matrix) // ROWS)))
    rounded = groups[some].flatten(0, 1)  # [rows of them x groups, size]
    each, all_ = (one.repeat(len(some), 1) for one in (chosen, counted))
    part = max(float(spread[some].sum()), torch.finfo(torch.float32).tiny)
    return [spread * (_error(rounded, each, all_, grid) / part) for grid in grids]


def _costs(
    inputs: Inputs, roots: InverseRoots
) -> tuple[Float[Tensor, " columns"], Float[Tensor, " columns"]]:
    """Return what the square of an error of each column costs with A damped, and with A itself.

    With (A + λ)⁻¹ = Uᵀ U these are d_j = U_jj⁻², by which GPTQ chooses, and d_j (U A Uᵀ)_jj, which
    on the text that chose is d_j (1 - λ Σ_k U_jk²).
    """
    root = roots.of(inputs.chosen, DAMPING)
    damping = DAMPING * float(inputs.chosen.diagonal().mean())
    chosen = root.diagonal().square().reciprocal()
    own = (1 - damping * root.square().sum(1)).clamp(min=0)
    if inputs.unseen is None:
        return chosen, chosen * own
    other = ((root @ inputs.unseen.to(root.dtype)) * root).sum(1)
    return chosen, chosen * of_all_text(own, other)


def _error(groups: Tensor, chosen: Tensor, counted: Tensor, grid: Grid) -> float:
    """Return Σ counted e² of groups rounded to the nearest, ranges chosen by ``chosen``."""
    found = group_scale(groups, chosen, grid, torch.float32)
    codes = quantize(groups, found.scale, found.offset, grid.codes)
    error = groups - dequantize(codes, found.scale, found.offset)
    return float((error.square() * counted).sum())
