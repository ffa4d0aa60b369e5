"""Add two thin factors to what quantisation or zeros broke: the best of their rank for the loss."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, from_factors
from spectrim.formats.corrected_dense import CorrectedDense
from spectrim.formats.quantized_dense import QuantizedDense
from spectrim.job.blocks import current_block, go_on_with, next_step, write_block
from spectrim.job.dense_forms import matrix_of
from spectrim.job.job import Job, dense_plan
from spectrim.methods.loss_aware_svd import two_sided_svd
from spectrim.model.architectures import Place
from spectrim.model.sites import bias, replace, weight
from spectrim.plan import Decision
from spectrim.recipe.options import Part
from spectrim.rounding.few_bits import Rounding
from spectrim.walk.moments import Damping, damped, expected_loss
from spectrim.walk.statistics import Statistics, block_statistics

LEAVES = ("changed maps", "corrected")
NEEDS = {
    "damage": "compensate makes up for quantize or sparsify; put one of these before it in the "
    "recipe"
}
REFUSES = {
    "corrected": "compensate makes up for all at once; leave out the second one",
    "paths": "compensate cannot add to paths through a trellis, as which {earlier} may store maps; "
    "leave out trellis, or compensate",
    "trained": "compensate would undo what {earlier} has trained; put it in front of {earlier}",
}
NOTE = "compensated"
REPORT = (
    "Factors of rank {rank} beside {sites} linear maps make up for what was rounded or set to "
    "zero: predicted to cost {predicted_before:plain} nats/token without them, "
    "{predicted_after:plain} with them."
)
NOTHING = (
    "compensate found no whole matrix that was rounded or set to zero; of two factors the second "
    "makes up for the first already, and to paths through a trellis nothing is added, so leave "
    "compensate out"
)
GPTQ_DAMPING = 1e-2  # of the mean diagonal of A, as the stage quantize has it by default


class Options(Part):
    """The stage that adds a product of two factors to what an earlier stage rounded or set to zero.

    rank: of the product, from 1; its numbers are kept in the checkpoint's dtype.
    metric: "loss" finds the factors that save the most loss, inputs and gradients weighed; "inputs"
        those that save the most error of the outputs (EoRA).
    rounds: with more than 1, what the factors leave is rounded anew, by GPTQ, and the factors are
        found again, so many times in all (LQER, CALDERA); the best of them stays.
    """

    rank: int = Field(default=16, ge=1)
    metric: Literal["loss", "inputs"] = "loss"
    rounds: int = Field(default=1, ge=1)


def compensate(job: Job, options: Options) -> None:
    """Go on with blocks whose rounded or sparse maps have two factors beside them.

    The factors are the truncated SVD of what is missing, Δ, weighed on both sides: G^½ Δ A^½.
    With A alone it is EoRA (2410.21271, algorithm 1).

    Raises:
        SpectrimError: no stage before has rounded a whole matrix or set weights to zero.
    """
    if job.reference is None:
        raise SpectrimError(NEEDS["damage"])
    job.plan = job.plan or dense_plan(job)
    if not any(one.block >= 0 and _adds_to(one) for one in job.plan.decisions):
        raise SpectrimError(NOTHING)
    folder, places = next_step(job, "compensated"), job.each_block()
    made: dict[str, Decision] = {}
    before = after = 0.0
    for done, place in enumerate(places, start=1):
        block = current_block(job, place, torch.float32)
        for decision, costs in _compensate_block(job, options, place, block):
            made[decision.site] = decision
            before, after = before + costs[0], after + costs[1]
        if not job.block_file(folder, place).exists():
            write_block(job, folder, place, block)
        job.progress(done, len(places), "compensating")
    if not made:
        raise SpectrimError(NOTHING)
    job.plan = changed(
        job.plan, decisions=tuple(made.get(one.site, one) for one in job.plan.decisions)
    )
    go_on_with(job, folder)
    job.notes[NOTE] = {
        "rank": options.rank,
        "metric": options.metric,
        "sites": len(made),
        "predicted_before": before,
        "predicted_after": after,
    }


def _compensate_block(
    job: Job, options: Options, place: Place, block: nn.Module
) -> Iterator[tuple[Decision, tuple[float, float]]]:
    """Put corrected maps into a block; yield each one's decision, and its loss before and after."""
    assert job.plan is not None and job.reference is not None
    known = block_statistics(job.statistics(), place)
    dense = job.reference(place)
    for site in job.block_sites(place):
        decision, path = job.plan[site.name], site.name.removeprefix(place.prefix)
        if not _adds_to(decision):
            continue
        here = options.model_copy(update={"rank": _rank(job, decision, options)})
        wanted = matrix_of(dense.get_submodule(path)).float()
        found = _corrected(
            block.get_submodule(path), wanted, known[site.name], here, job.weights.dtype()
        )
        if found is not None:
            module, costs = found
            replace(block, path, module)
            added = here.rank * (decision.out_features + decision.in_features)
            stored = decision.stored + added
            yield changed(decision, correction=here.rank, stored=stored), costs


def _adds_to(decision: Decision) -> bool:
    """Return whether two factors can stand beside what is stored of a site."""
    apart = decision.bits == 1 or decision.trellis or decision.correction
    return decision.format == "dense" and not apart


def _rank(job: Job, decision: Decision, options: Options) -> int:
    """Return the rank of a site's correction, as a plan that is replayed has it, if any does."""
    wanted = job.wanted.decisions if job.wanted else ()
    replayed = {one.site: one.correction for one in wanted if one.correction}
    rank = replayed.get(decision.site, options.rank)
    return min(rank, decision.out_features, decision.in_features)


def _corrected(
    module: nn.Module,
    wanted: Float[Tensor, "out in"],
    known: Statistics,
    options: Options,
    dtype: torch.dtype,
) -> tuple[nn.Module, tuple[float, float]] | None:
    """Return the map with its correction and its predicted loss before and after; None where exact.

    wanted: the matrix before it was rounded or set to zero. dtype: of the row scales.
    """
    held = matrix_of(module).float()
    if known.loss_inputs is None or known.gradient_moment is None or torch.equal(held, wanted):
        return None
    before = expected_loss(wanted, held, known, Damping())
    best = _Tried(module, *_factors(wanted - held, known, options))
    after = expected_loss(wanted, held + best.left @ best.right, known, Damping())
    for _ in range(1, options.rounds if isinstance(module, QuantizedDense) else 1):
        again = _rounded_again(best.module, wanted - best.left @ best.right, known, dtype)
        held = matrix_of(again).float()
        tried = _Tried(again, *_factors(wanted - held, known, options))
        cost = expected_loss(wanted, held + tried.left @ tried.right, known, Damping())
        if cost >= after:
            break
        best, after = tried, cost
    return _joined(best), (before, after)


@dataclass(frozen=True)
class _Tried:
    """A map as it is stored, and the two factors that go beside it."""

    module: nn.Module
    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]


def _factors(
    missing: Float[Tensor, "out in"], known: Statistics, options: Options
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    """Return the product of the rank that saves the most of what is missing."""
    assert known.input_moment is not None and known.loss_inputs is not None
    assert known.gradient_moment is not None
    damping = Damping()
    by_loss = options.metric == "loss"
    found = two_sided_svd(
        missing,
        damped(known.loss_inputs if by_loss else known.input_moment, damping.input),
        [damped(known.gradient_moment, damping.gradient)] if by_loss else None,
    )
    return found.factors(min(options.rank, *missing.shape))


def _rounded_again(
    module: nn.Module, matrix: Float[Tensor, "out in"], known: Statistics, dtype: torch.dtype
) -> QuantizedDense:
    """Return the map holding another matrix on a grid like its own, rounded by GPTQ."""
    assert isinstance(module, QuantizedDense) and known.loss_inputs is not None
    rounding = Rounding(module.grid, dtype, gptq=True, damping=GPTQ_DAMPING)
    again = copy.deepcopy(module)
    with torch.no_grad():
        again.take(rounding(matrix, known.loss_inputs).pieces("quantized"))
    return again


def _joined(tried: _Tried) -> nn.Module:
    """Return one map of the stored matrix and the two factors, singular values shared evenly."""
    module, own = tried.module, bias(tried.module)
    even = from_factors("low_rank", tried.left, tried.right, None, torch.float32)
    pieces = {name: tensor.detach() for name, tensor in even.named_parameters()}
    out_features, in_features = len(tried.left), tried.right.shape[1]
    shape = (in_features, out_features, min(out_features, in_features), own is not None)
    rank = tried.left.shape[1]
    made: FactoredLinear
    if isinstance(module, QuantizedDense):
        made = QuantizedDense(*shape, module.grid, correction=rank)
        made.quantized = module.quantized
    else:
        made = CorrectedDense(*shape, correction=rank)
        pieces["matrix"] = weight(module).detach()
    with torch.no_grad():
        for name, tensor in pieces.items():
            made.get_parameter(name).copy_(tensor)
        if own is not None and made.bias is not None:
            made.bias.copy_(own)
    return made.requires_grad_(False)
