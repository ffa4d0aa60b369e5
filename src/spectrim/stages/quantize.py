"""Store numbers in two to eight bits: matrices and factors, by GPTQ or rounded to the nearest.

The second moment of a site's inputs, which is known already, is GPTQ's Hessian, so that nothing is
calibrated anew. Of two factors the second is solved for again on what the first one delivers in its
few bits. The numbers are packed on disk and in memory.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from spectrim.cutting.end_losses import end_roundings
from spectrim.errors import SpectrimError
from spectrim.files import atomic_file
from spectrim.formats.packed.scales import Grid
from spectrim.healing.between import Between, Training, refuse_untrainable
from spectrim.healing.end_to_end import Healing, healing_text
from spectrim.job.blocks import current_block, go_on_with, next_step, write_block
from spectrim.job.job import Job, dense_plan, inner_sites
from spectrim.model.architectures import Place
from spectrim.model.sites import protected
from spectrim.plan import Decision, Plan
from spectrim.recipe.options import Amount, Part, Regex
from spectrim.rounding.delivered import Delivered
from spectrim.rounding.embedding_and_head import (
    GRIDS,
    TableRounding,
    quantize_embedding_and_head,
)
from spectrim.rounding.few_bits import (
    DAMPING,
    FORMATS,
    Rounding,
)
from spectrim.stages._packable import refuse_unpackable
from spectrim.stages._packed_note import packed_note
from spectrim.stages._rounded_block import rounded

LEAVES = ("changed maps", "damage", "packed", "all packed unless protect")
CLEARS = ("trained",)  # which a correction of the damage would not undo
REFUSES = {
    "packed": "quantize has packed the numbers already; leave out the second one",
    "corrected": "quantize cannot pack what compensate has added to; put it in front of compensate",
}
NOTE = "quantized"  # under which the run's notes say what was done
REPORT = (
    "Linear maps stored in few bits, rounded [rounding=gptq|by GPTQ][rounding=nearest|to the "
    "nearest]: [!paths|{bits:counted bits}][paths|{paths.maps} at {paths.least:bits} to "
    "{paths.most:bits} bits a number, {paths.mean:bits} on average, {paths.along} of them as paths "
    "through a trellis][left|; {left:count} are not]. Predicted to cost "
    "{predicted_loss:plain} nats/token[without_tokens|, {without_tokens:count} maps that no token "
    "came to apart].[steps| Between roundings, blocks that were not rounded yet were trained for "
    "{steps} steps to make up for those that were.][ends| Embedding and head in {ends} "
    "bits, which no loss was predicted for.]"
    "[tables| Outside the blocks, {tables}, measured to cost {predicted_of_tables:plain} more.]"
)


class Options(Part):
    """The stage that stores the numbers of linear maps, whole or factored, in few bits.

    bits: of each number, where no plan says it for every site.
    group: how many neighbours along the input share a scale; 0 for a whole row.
    symmetric: no offset beside the scale; an eighth of a bit a number less in groups of 64.
    rounding: "gptq" lets what is left of a row make up for each error; "nearest" does not.
        Paths through a trellis always do, in an order of their own and without cycles.
    order: GPTQ rounds the inputs with the largest moment first, with scales of the matrix as it is.
    inputs: what GPTQ rounds a map for: "rounded", what the blocks that are rounded already deliver,
        or "dense", what the model as it came does.
    cycles: how often, at most, the codes that GPTQ chose and their scales are improved in turn,
        each to what is best given the others.
    damping: part of the mean diagonal of A that GPTQ adds to it before it inverts it, from 0; paths
        through a trellis have their own.
    ends: bits of embedding and head, 8 with a scale for each word or 4 with a scale and an offset
        for every 32 numbers, rounded to the nearest; 0 leaves both as they are, or as factorize
        has bought them.
    steps: of training, between roundings, the blocks that are not rounded yet, so that they make up
        for what those in front of them get wrong; 0 trains none. learning_rate: the highest of
        these, as a part of the size of each matrix or vector. text, tokens: what they read, as
        distil has it.
    protect: regular expressions; a site keeps its numbers where one is found in its name, its
        role, or "block N".
    """

    bits: Literal[2, 3, 4, 8] = 4
    group: Literal[0, 32, 64, 128] = 64
    symmetric: bool = False
    rounding: Literal["gptq", "nearest"] = "gptq"
    order: bool = False
    inputs: Literal["rounded", "dense"] = "rounded"
    cycles: int = Field(default=4, ge=0)
    damping: float = Field(default=DAMPING, ge=0)
    ends: Literal[0, 4, 8] = 0
    steps: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=7e-4, gt=0)
    text: str | None = None
    tokens: Amount | None = None
    protect: tuple[Regex, ...] = ()

    def reading(self) -> Healing:
        """Return what training between roundings reads."""
        rate = self.learning_rate
        return Healing(text=self.text, tokens=self.tokens, learning_rate=rate)


def quantize(job: Job, options: Options) -> None:
    """Go on with blocks whose maps are packed; ``job.plan`` says in how many bits each one is.

    Raises:
        SpectrimError: a stage has done so before, a plan asks for what cannot be, or nothing is
            left to work on.
    """
    plan = job.plan = job.plan or dense_plan(job)
    chosen, tables = decided(job, options, plan), decided_tables(job)
    refuse(job, options, plan, chosen | tables)
    folder, places = next_step(job, "quantize"), job.each_block()
    packed = _with_bits(plan, chosen)
    trains = bool(chosen and options.steps and len(places) > 1)
    between = _between(job, options, packed, folder) if trains else None
    now = job if between is None else between.job
    walks = _walks(job, options, chosen)
    walked = Delivered(now, packed, folder, trained=between is not None) if walks else None
    losses: dict[str, float | None] = {}
    within = [any(site.name in chosen for site in job.block_sites(place)) for place in places]
    for done, place in enumerate(places, start=1):
        goes_on = walked if any(within[done - 1 :]) else None  # no further than it is needed
        if between is not None:
            between.enter(place)
        losses |= _block(now, options, place, chosen, folder, goes_on)
        if between is not None:
            between.leave(place)
        job.progress(done, len(places), "rounding")
    before = copy.copy(now)  # with blocks as training has left them
    if job.reference is None or any(now.healings):
        job.reference = lambda place: current_block(before, place, torch.float32)
    roundings = end_roundings(job, tables) if tables else _usual(job, options)
    go_on_with(job, folder, quantize_embedding_and_head(job, roundings) if roundings else None)
    job.plan = _with_bits(plan, chosen | tables)
    job.notes[NOTE] = note(options, job.plan, losses) | ({"steps": options.steps} if trains else {})


def decided_tables(job: Job) -> dict[str, Decision]:
    """Return the decisions of the plan that rules for embedding and head, where it has bits."""
    wanted = job.wanted.decisions if job.wanted else ()
    return {one.site: one for one in wanted if one.block < 0 and one.packed}


def _usual(job: Job, options: Options) -> dict[str, TableRounding]:
    """Return how both tables are rounded where no plan says it."""
    if not options.ends:
        return {}
    paths = (job.architecture.embed, job.architecture.head)
    return dict.fromkeys(paths, TableRounding(GRIDS[options.ends]))


def decided(job: Job, options: Options, plan: Plan) -> dict[str, Decision]:
    """Return the decision for every site that is to be packed, its bits added.

    Raises:
        SpectrimError: a plan that says how sites are packed does so for one that cannot be.
    """
    wanted = job.wanted  # which rules, also where it gives a site no bits
    asked = {one.site: one for one in wanted.decisions if one.packed} if wanted else {}
    found = {}
    for site in inner_sites(job):
        one = plan[site.name]
        usual = one.format in FORMATS and not protected(site, options.protect)
        like = asked.get(site.name) if wanted else options if usual else None
        if isinstance(like, Decision) and like.bits == 1:
            found[one.site] = like  # its factors are not those of an earlier stage
        elif isinstance(like, Decision) and like.trellis:
            found[one.site] = _along_paths(one, like)
        elif like is not None:
            found[one.site] = replace(
                one, bits=like.bits, group=like.group, symmetric=like.symmetric
            )
    return found


def _along_paths(one: Decision, like: Decision) -> Decision:
    """Return the decision for a matrix as paths; like: of a plan that says so, maybe edited."""
    said = ("bits", "group", "symmetric", "trellis", "correction", "predicted_loss")
    return replace(one, **{name: getattr(like, name) for name in said})


def refuse(job: Job, options: Options, plan: Plan, chosen: dict[str, Decision]) -> None:
    """Raise SpectrimError for what cannot be done, before the long work."""
    if job.ends or any(one.packed for one in plan.decisions):
        raise SpectrimError(REFUSES["packed"])
    if not chosen and not options.ends and job.wanted is None:
        raise SpectrimError(
            "quantize finds no map to pack, as all are protected or in a format that it leaves "
            f"({', '.join(FORMATS)} can be packed); protect fewer, or leave it out"
        )
    if chosen and options.steps:
        refuse_untrainable(job)
    for one in chosen.values():
        refuse_unpackable(one)
        if job.sparsified and one.trellis:
            raise SpectrimError(
                f"the plan stores {one.site} as paths through a trellis, which would fill the "
                "zeros that sparsify made; set its trellis to 0, or leave out sparsify"
            )


def _with_bits(plan: Plan, chosen: dict[str, Decision]) -> Plan:
    """Return a plan with the decisions for the sites that are packed."""
    return replace(plan, decisions=tuple(chosen.get(one.site, one) for one in plan.decisions))


def _walks(job: Job, options: Options, chosen: dict[str, Decision]) -> bool:
    """Return whether maps are rounded for what the rounded blocks deliver.

    Eight bits change nothing that is worth a walk, and the zeros of a sparse matrix have to stay.
    """
    asked = options.rounding == "gptq" and options.inputs == "rounded" and not job.sparsified
    return asked and any(one.bits < 8 for one in chosen.values())


def _between(job: Job, options: Options, packed: Plan, folder: Path) -> Between:
    """Return the blocks in training between roundings; packed: the plan behind this stage."""
    read = healing_text(job, options.reading())
    training = Training(read, options.steps, options.learning_rate)
    return Between(job, training, packed, folder)


def _rounding(job: Job, options: Options) -> Rounding:
    """Return how numbers are rounded, where no plan says it for a map."""
    return Rounding(
        Grid(options.bits, options.group, options.symmetric),
        job.weights.dtype(),
        gptq=options.rounding == "gptq",
        act_order=options.order,
        damping=options.damping,
        cycles=options.cycles,
    )


def _block(
    job: Job,
    options: Options,
    place: Place,
    chosen: dict[str, Decision],
    folder: Path,
    walked: Delivered | None,
) -> dict[str, float | None]:
    """Write one block, where that is not done yet; return what each site is predicted to lose."""
    file = job.block_file(folder, place)
    record = file.with_suffix(".json")
    if walked is not None:
        walked.enter(place)
    if not file.exists():
        block = current_block(job, place, torch.float32)
        losses = rounded(job, _rounding(job, options), place, chosen, block, walked)
        with atomic_file(record) as partial:
            partial.write_text(json.dumps(losses), encoding="utf-8")
        write_block(job, folder, place, block)
    elif walked is not None:
        walked.skip(place)
    if walked is not None:
        walked.leave(place)
    found: dict[str, float | None] = json.loads(record.read_text(encoding="utf-8"))
    return found


def note(options: Options, plan: Plan, losses: dict[str, float | None]) -> dict[str, Any]:
    """Return what is noted for the report."""
    said: dict[str, Any] = {"rounding": options.rounding, "ends": options.ends}
    return said | packed_note(plan, losses)
