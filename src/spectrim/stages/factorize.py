"""Replace linear maps by factors: decompose every site, share the budget, cut."""

from __future__ import annotations

from spectrim.allocators import allocators
from spectrim.cutting.allocation import available, units
from spectrim.cutting.bit_curves import in_few_bits
from spectrim.cutting.bit_losses import bit_losses
from spectrim.cutting.curves import offered, read_curves, shown_curves, unknown_offers
from spectrim.cutting.cut import cut
from spectrim.cutting.decompose import decompose
from spectrim.cutting.end_losses import end_curves, end_losses
from spectrim.cutting.refinement import refine
from spectrim.cutting.replay import replayable, restated
from spectrim.cutting.sign_curves import sign_curves, sign_losses
from spectrim.cutting.trellis_curves import trellis_curves, trellis_losses
from spectrim.cutting.trial import planned
from spectrim.errors import SpectrimError
from spectrim.job.job import Job
from spectrim.recipe.options import Factorize
from spectrim.recipe.order import BITS_SAVE_BYTES
from spectrim.walk.statistics import without_tokens

LEAVES = ("changed maps", "paths if trellis")
CLEARS = ("damage if split_fused",)  # in other maps, to which nothing can be compared
REFUSES = {
    "changed maps": "factorize needs the maps as they came, and an earlier stage has changed them; "
    "put factorize first",
    "zeros if trellis": "factorize with trellis would fill the zeros that {earlier} made; leave "
    "out trellis, or {earlier}",
}
Options = Factorize


def factorize(job: Job, options: Factorize) -> None:
    """Decide how every site is stored and write the blocks so; ``job.plan`` says what was decided.

    A job that brings a plan has it carried out instead.

    Raises:
        SpectrimError: the budget cannot be met, or the plan does not fit the model.
    """
    if job.blocks is not None or job.healings:
        raise SpectrimError(REFUSES["changed maps"])
    if options.split_fused:
        job.split_fused()
    if job.plan is None:
        refuse_impossible(job, options)
    else:
        job.plan = replayable(job, options, job.plan)
    if options.cut:
        decompose(job, options)
    note_without_tokens(job)
    curves = read_curves(job, options)
    refinement = options.refine
    if job.plan is None:
        offered_all = curves + in_few_bits(job, options, curves, bit_losses(job, options))
        offered_all += sign_curves(job, options, sign_losses(job, options))
        offered_all += trellis_curves(job, options, trellis_losses(job, options))
        offered_all += end_curves(job, options, end_losses(job, options))
        job.plan = planned(job, options, offered_all)
        if options.bits:  # which the stage quantize gives them
            job.wanted = job.plan
            job.plan = restated(job, options, job.plan.unquantised())
    else:
        job.plan = restated(job, options, job.plan)
        refinement = "on" if job.plan.about.get("refined", True) else "off"
    job.curves = shown_curves(job, curves)
    cut(job, options)
    if refinement != "off":
        refine(job, always=refinement == "on")


def refuse_impossible(job: Job, options: Factorize) -> None:
    """Raise SpectrimError where no choice can meet the budget, before the long work."""
    refuse_few_bits(job, options)
    possible = offered(job, options, unknown_offers(job, options)) if options.cut else []
    possible += in_few_bits(job, options, possible, None)
    possible += sign_curves(job, options, None)
    possible += trellis_curves(job, options, None)
    possible += end_curves(job, options, None)
    available(job, [unit.curve for unit in units(job, possible)])


def refuse_few_bits(job: Job, options: Factorize) -> None:
    """Raise SpectrimError where few bits are offered and cannot be bought or measured."""
    if not options.bits:
        if not options.cut:
            raise SpectrimError(
                "factorize without cuts has only bits to choose; name some, such as bits: [3, 4]"
            )
        return
    if not job.budget.in_bytes:
        raise SpectrimError(BITS_SAVE_BYTES)
    if allocators.constant(options.allocator, "MEASURES"):
        raise SpectrimError(
            f"allocator '{options.allocator}' measures cuts before they are quantised; with bits "
            "take one that does not measure, such as 'global'"
        )


def note_without_tokens(job: Job) -> None:
    """Note which sites keep their weights because no token of the calibration text came there."""
    statistics = job.statistics()
    found = [name for place in job.each_block() for name in without_tokens(statistics, place)]
    if found:
        job.notes["without_tokens"] = found
