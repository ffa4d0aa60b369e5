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
from spectrim.formats.packed.scales import Grid
from spectrim.formats.picked_inputs import PickedInputs
from spectrim.formats.pivoted import Pivoted
from spectrim.job.dense_forms import matrix_of
from spectrim.job.job import Job
from spectrim.model import sites
from spectrim.plan import Decision
from spectrim.rounding.binary_factors import Metric, binary_factors
from spectrim.rounding.descent import descended
from spectrim.rounding.gptq import gptq
from spectrim.rounding.nearest import QuantizedMatrix, nearest
from spectrim.rounding.trellis import Feedback, paths
from spectrim.walk.moments import (
    Damping,
    cholesky,
    damped,
    expected_loss,
    inverse_root,
    of_all_text,
)
from spectrim.walk.statistics import Statistics

DAMPING = 1e-2  # of the mean diagonal of A, added before GPTQ inverts it
SOLVING = 1e-4  # of the mean diagonal of A, added before a second factor is solved for
KEPT = 4  # roots at once: of the whole text and of a half of it, for one map and the next
FORMATS = ("dense", "low_rank", "pivoted", "fewer_outputs", "fewer_inputs")  # can be packed


class InverseRoots:
    """Roots of inverted moments, the last few of them: a map is rounded to several widths."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, float, Tensor]] = []  # moment, damping, root

    def of(
        self, moment: Float[Tensor, "columns columns"], damping: float
    ) -> Float[Tensor, "columns columns"]:
        """Return U in float32, upper triangular, with (moment + damping)⁻¹ = Uᵀ U.

        A moment is known by its identity, not by its values.

        Raises:
            ArithmeticError: the damped moment is far from positive semidefinite.
        """
        for known, used, root in self._known:
            if known is moment and used == damping:
                return root
        root = inverse_root(damped(moment, damping)).float()
        self._known = [*self._known[1 - KEPT :], (moment, damping, root)]
        return root


@dataclass(frozen=True)
class Rounding:
    """How matrices are rounded."""

    grid: Grid
    dtype: torch.dtype
    """Of the row scales: the checkpoint's."""
    gptq: bool = True
    """Whether what is left of a row makes up for each error; else each weight is rounded alone."""
    act_order: bool = False
    """Whether GPTQ goes from the largest input to the smallest."""
    damping: float = DAMPING
    """Part of the mean diagonal of a moment that is added before GPTQ inverts it."""
    cycles: int = 0
    """How often codes and scales are improved in turn once GPTQ has chosen them, at most."""
    roots: InverseRoots = field(default_factory=InverseRoots)
    """What was inverted already, for the maps of one block."""

    def __call__(
        self,
        matrix: Float[Tensor, "rows columns"],
        inputs: Float[Tensor, "columns columns"],
        *,
        shared: bool = True,
    ) -> QuantizedMatrix:
        """Return a matrix rounded with the second moment of its inputs in view.

        shared: whether other matrices have these very inputs.

        Raises:
            ArithmeticError: GPTQ cannot invert the moment, damped as it is.
        """
        if not self.gptq:
            return nearest(matrix, inputs.diagonal(), self.grid, self.dtype)
        reused = shared and not self.act_order
        root = self.roots.of(inputs, self.damping) if reused else None
        moment = damped(inputs, self.damping)
        rounded = gptq(matrix, moment, self.grid, self.dtype, act_order=self.act_order, root=root)
        return descended(matrix, moment, rounded, self.grid, self.cycles)


def narrowed(
    known: Statistics, module: nn.Module, outputs: Int[Tensor, " rank"] | None
) -> Statistics:
    """Return the statistics of the inputs or outputs that a map has kept, parts of A and of G.

    Those of the gradients are the dense model's: that the kept neurons stand for others too, so
    that the loss feels them more, is left out.
    known: those of the dense map. outputs: which outputs a map of fewer outputs has kept.
    """
    even = None if known.even is None else narrowed(known.even, module, outputs)
    if isinstance(module, FewerInputs):
        places, mean = module.places.long(), known.input_mean
        return replace(
            known,
            input_mean=None if mean is None else mean[places],
            input_moment=_part(known.input_moment, places),
            weighted_moment=_part(known.weighted_moment, places),
            even=even,
            samples=None,
        )
    if isinstance(module, FewerOutputs):
        assert outputs is not None
        return replace(
            known, gradient_moment=_part(known.gradient_moment, outputs.long()), even=even
        )
    return known


def _part(moment: Tensor | None, places: Int[Tensor, " some"]) -> Tensor | None:
    return None if moment is None else moment[places][:, places]


def quantized_pieces(
    module: nn.Module,
    moment: Float[Tensor, "in in"],
    rounding: Rounding,
    aim: Float[Tensor, "out in"] | None = None,
) -> dict[str, Tensor]:
    """Return what the quantised format of a map takes; moment: A, of the inputs that it reads.

    aim: the matrix to come near; by default the map's own.

    Raises:
        TypeError: the map's format is not one of FORMATS.
    """
    if isinstance(module, LowRank):
        aim = matrix_of(module) if aim is None else aim
        return _factor_pieces(("first", "second"), (module.first, aim), moment, rounding)
    if isinstance(module, Pivoted):
        aim = matrix_of(module) if aim is None else aim
        rows, others = aim[module.order.long().argsort()].tensor_split([module.rank])
        found = _factor_pieces(("rows", "coefficients"), (rows, others), moment, rounding)
        return {**found, "order": module.order}
    matrix = matrix_of(module) if aim is None else aim
    if isinstance(module, FewerOutputs):
        return rounding(matrix, moment).pieces("rows")
    if isinstance(module, FewerInputs) and not isinstance(module, PickedInputs):
        return rounding(matrix, moment, shared=False).pieces("columns")
    if isinstance(module, FactoredLinear):
        raise TypeError(f"{type(module).__name__} cannot be packed")
    return rounding(matrix, moment).pieces("quantized")


def _factor_pieces(
    names: tuple[str, str],
    wanted: tuple[Float[Tensor, "rank in"], Float[Tensor, "some in"]],
    moment: Float[Tensor, "in in"],
    rounding: Rounding,
) -> dict[str, Tensor]:
    """Return the pieces of both factors, the second solved anew for what the first one delivers.

    Rounded apart from each other, the errors of the first pass through the second unmended.
    wanted: the first factor, and what the second makes of it.
    """
    first, product = wanted[0], wanted[1].double()
    quantized = rounding(first, moment)
    delivered = quantized.dequantize(rounding.grid.group).double()
    across = delivered @ damped(moment, SOLVING)  # [rank, in]
    own = across @ delivered.T
    solved = torch.cholesky_solve(across @ product.T, cholesky(own)).T
    return {**quantized.pieces(names[0]), **rounding(solved, own, shared=False).pieces(names[1])}


@dataclass(frozen=True)
class Target:
    """What a map is rounded for: the moment of its inputs, and the matrix to come near."""

    inputs: Float[Tensor, "in in"]
    matrix: Float[Tensor, "out in"]
    gradients: Float[Tensor, "out out"] | None = None
    """G, for what looks at both sides; None where every output counts alike."""

    @classmethod
    def of(cls, module: nn.Module, known: Statistics) -> Target:
        """Return the map itself, and the inputs of the dense model, I where none came to it."""
        matrix = matrix_of(module)
        moment = known.loss_inputs if known.tokens else None
        inputs = torch.eye(matrix.shape[1]) if moment is None else moment
        return cls(inputs, matrix, known.gradient_moment if known.tokens else None)


def few_bits(
    job: Job,
    rounding: Rounding,
    module: nn.Module,
    decision: Decision,
    known: Statistics,
    target: Target | None = None,
) -> tuple[nn.Module, float | None]:
    """Return the packed map for a map, and the loss that is predicted, None without tokens.

    rounding: of all maps of a block; the grid is the one that the decision names.
    known: the moments of what this map reads and delivers, which may be less than the dense one.
    target: what to round for, where that is not the map itself and the inputs of the dense model.
    """
    target = Target.of(module, known) if target is None else target
    made = _rounded(job, rounding, module, decision, target)
    if known.tokens == 0 or known.loss_inputs is None or known.gradient_moment is None:
        return made, None
    if decision.trellis or decision.bits == 1:  # slow to fit; priced when they were chosen
        return made, decision.predicted_loss
    return made, rounding_loss(job, rounding, module, decision, known)


@torch.no_grad()
def rounding_loss(
    job: Job, rounding: Rounding, module: nn.Module, decision: Decision, known: Statistics
) -> float:
    """Return ½ tr(Δᵀ G Δ A_w) that rounding a map is predicted to cost, nats per token.

    Codes chosen on the even sequences are priced on these and on the odd ones (of_all_text), as
    GPTQ leaves them: so they were priced when the bits were chosen.
    """
    rounding = replace(rounding, cycles=0)
    matrix, odd = matrix_of(module), known.odd()
    chosen = known if known.even is None else known.even
    made = matrix_of(_rounded(job, rounding, module, decision, Target.of(module, chosen)))
    own = expected_loss(matrix, made, chosen, Damping())
    return own if odd is None else of_all_text(own, expected_loss(matrix, made, odd, Damping()))


def _signs(target: Target, rank: int) -> dict[str, Tensor]:
    """Return the pieces of two factors of signs of a whole matrix."""
    metric = Metric.of(target.gradients, target.inputs, len(target.matrix))
    return binary_factors(target.matrix, metric, rank).pieces()


def _paths(target: Target, rounding: Rounding) -> dict[str, Tensor]:
    """Return the pieces of a matrix whose columns are paths through a trellis."""
    feedback = Feedback.of(target.inputs)
    rate, felt = rounding.grid.trellis, target.gradients
    return paths(target.matrix, feedback, felt, rate, rounding.dtype).pieces()


@torch.no_grad()
def _rounded(
    job: Job, rounding: Rounding, module: nn.Module, decision: Decision, target: Target
) -> FactoredLinear:
    grid = Grid(decision.bits, decision.group, decision.symmetric, decision.trellis)
    rounding = replace(rounding, grid=grid)
    kind = formats.get(decision.stored_as)
    made: FactoredLinear = kind.from_shape(job.empty_format(decision).shape())
    if decision.bits == 1:
        made.take(_signs(target, decision.rank))
    elif decision.trellis:
        made.take(_paths(target, rounding))
    else:
        made.take(quantized_pieces(module, target.inputs, rounding, target.matrix))
    own = sites.bias(module)
    if made.bias is not None and own is not None:
        made.bias.copy_(own)
    return made
