"""A map in a few bits: its matrix, or its first factor and then the second that fits that best."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectrim.formats import FactoredLinear, formats
from spectrim.formats.fewer_inputs import FewerInputs
from spectrim.formats.fewer_outputs import FewerOutputs
from spectrim.formats.low_rank import LowRank
from spectrim.formats.packed.steps import Grid
from spectrim.formats.picked_inputs import PickedInputs
from spectrim.formats.pivoted import Pivoted
from spectrim.job.job import Job
from spectrim.model import sites
from spectrim.model.sites import weight
from spectrim.plan import Decision
from spectrim.rounding.gptq import gptq
from spectrim.rounding.nearest import Rounded, nearest
from spectrim.walk.moments import Damping, cholesky, damped, expected_loss, inverse_root
from spectrim.walk.statistics import Statistics

DAMPING = 1e-2  # of the mean diagonal of A, added before GPTQ inverts it
SOLVING = 1e-4  # of the mean diagonal of A, added before a second factor is solved for
Roots = dict[float, list[tuple[Tensor, Tensor]]]
"""By damping: moments of inputs, and the roots of their inverses."""
# whose numbers can be packed
FORMATS = ("dense", "low_rank", "pivoted", "fewer_outputs", "fewer_inputs")


@dataclass(frozen=True)
class Rounding:
    """How matrices are rounded.

    damping: part of the mean diagonal of a moment that is added before GPTQ inverts it.
    dtype: of the units of steps. roots: what was inverted already, for the maps of one block.
    """

    grid: Grid
    dtype: torch.dtype
    gptq: bool = True
    by_size: bool = False
    damping: float = DAMPING
    roots: Roots = field(default_factory=dict)

    def __call__(
        self,
        matrix: Float[Tensor, "rows columns"],
        inputs: Float[Tensor, "columns columns"],
        *,
        shared: bool = True,
    ) -> Rounded:
        """Return a matrix rounded with the second moment of its inputs in view.

        shared: whether other matrices have these very inputs.
        """
        if not self.gptq:
            return nearest(matrix, inputs.diagonal(), self.grid, self.dtype)
        moment = damped(inputs, self.damping)
        root = self._root(inputs, moment) if shared and not self.by_size else None
        return gptq(matrix, moment, self.grid, self.dtype, by_size=self.by_size, root=root)

    def _root(self, inputs: Tensor, moment: Tensor) -> Tensor:
        """Return the root of the inverse of a moment, kept for other maps with the same inputs."""
        for known, root in self.roots.get(self.damping, []):
            if known is inputs:
                return root
        root = inverse_root(moment).float()
        self.roots.setdefault(self.damping, []).append((inputs, root))
        return root


def matrix_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """Return the matrix that a dense or factored map stands for."""
    found = module.dense() if isinstance(module, FactoredLinear) else weight(module)
    return found.detach()


def seen_by(
    known: Statistics, module: nn.Module, outputs: Int[Tensor, " rank"] | None
) -> Statistics:
    """Return the moments of what a map reads and delivers, where it has fewer inputs or outputs.

    Those of the gradients are the dense model's: that the kept neurons stand for others too, so
    that the loss feels them more, is left out.
    known: those of the dense map. outputs: the places of what a map of fewer outputs delivers.
    """
    inputs, gradients = known.input_moment, known.gradient_moment
    if isinstance(module, FewerInputs) and inputs is not None:
        places, mean = module.places.long(), known.input_mean
        return replace(
            known,
            input_mean=None if mean is None else mean[places],
            input_moment=inputs[places][:, places],
            samples=None,
        )
    if isinstance(module, FewerOutputs) and gradients is not None:
        assert outputs is not None
        places = outputs.long()
        return replace(known, gradient_moment=gradients[places][:, places])
    return known


def packed(
    module: nn.Module, moment: Float[Tensor, "in in"], rounding: Rounding
) -> dict[str, Tensor]:
    """Return what the quantised format takes of a map; moment: A, of the inputs that it reads.

    Raises:
        TypeError: the map's numbers cannot be packed.
    """
    if isinstance(module, LowRank):
        factors = (module.first, module.second)
        return _factors(("first", "second"), factors, moment, rounding)
    if isinstance(module, Pivoted):
        found = _factors(
            ("rows", "coefficients"), (module.rows, module.coefficients), moment, rounding
        )
        return {**found, "order": module.order}
    if isinstance(module, FewerOutputs):
        return rounding(module.rows, moment).pieces("rows")
    if isinstance(module, FewerInputs) and not isinstance(module, PickedInputs):
        return rounding(module.columns, moment, shared=False).pieces("columns")
    if isinstance(module, FactoredLinear):
        raise TypeError(f"{type(module).__name__} cannot be packed")
    return rounding(weight(module), moment).pieces("quantized")


def _factors(
    names: tuple[str, str],
    factors: tuple[Float[Tensor, "rank in"], Float[Tensor, "some rank"]],
    moment: Float[Tensor, "in in"],
    rounding: Rounding,
) -> dict[str, Tensor]:
    """Return the pieces of both factors, the second solved anew for what the first one delivers.

    Rounded apart from each other, the errors of the first pass through the second unmended.
    """
    first, second = (factor.double() for factor in factors)
    rounded = rounding(first, moment)
    delivered = rounded.written_out(rounding.grid.group).double()
    across = delivered @ damped(moment, SOLVING)  # [rank, in]
    own = across @ delivered.T
    solved = torch.cholesky_solve(across @ (second @ first).T, cholesky(own)).T
    return {**rounded.pieces(names[0]), **rounding(solved, own, shared=False).pieces(names[1])}


def few_bits(
    job: Job,
    rounding: Rounding,
    module: nn.Module,
    decision: Decision,
    known: Statistics,
) -> tuple[nn.Module, float | None]:
    """Return the packed map for a map, and the loss that is predicted, None without tokens.

    rounding: of all maps of a block; the grid is the one that the decision names.
    known: the moments of what this map reads and delivers, which may be less than the dense one.
    """
    rounding = replace(rounding, grid=Grid(decision.bits, decision.group, decision.symmetric))
    reached = known.tokens > 0 and known.input_moment is not None
    matrix = matrix_of(module)
    moment = known.input_moment if reached else torch.eye(matrix.shape[1])
    assert moment is not None
    made = formats.get(decision.module)(**job.empty_format(decision).shape())
    with torch.no_grad():
        made.take(packed(module, moment, rounding))
        if made.bias is not None:
            made.bias.copy_(sites.bias(module))
        if not reached or known.gradient_moment is None:
            return made, None
        return made, expected_loss(matrix, matrix_of(made), known, Damping())
