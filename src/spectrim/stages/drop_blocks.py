"""Remove the blocks that matter least, or stitch a model of its blocks, some of them repeated."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from spectrim.errors import SpectrimError
from spectrim.job.job import Job
from spectrim.job.order import Ordered, length, ordered
from spectrim.job.remake import remake
from spectrim.model.architectures import Stack
from spectrim.recipe.options import Part
from spectrim.stages._importance import importance, loss_in_order

LEAVES = ("other blocks",)
CLEARS = ("damage",)  # in other blocks, to which nothing can be compared
REFUSES = {"changed maps": "drop_blocks takes a model with whole maps; put drop_blocks first"}
NOTE = "dropped"
REPORT = (
    "The model runs {blocks:count} blocks[importance|, chosen by {importance}]: {blocks:ranges}"
    "[blocks:repeats|, {blocks:repeats} of them again]. Loss on the search split "
    "{search_loss.before:fixed} before, {search_loss.after:fixed} after."
)


def _ranges(value: object) -> object:
    if value is None:
        return None
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    texts = tuple(str(part).strip() for part in parts)
    for text in texts:
        _range(text)
    return texts


def _range(text: str) -> range:
    found = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", text, re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first:
        raise SpectrimError(
            f"'{text}' is no range of blocks; write the first and the last block that stay, "
            "counted from 0, such as 0-14, or one number"
        )
    return range(first, last + 1)


class Options(Part):
    """The stage that removes blocks, or runs them in another order; give ``drop`` or ``layers``.

    drop: how many blocks to remove, the least important first.
    layers: the blocks that the new model runs, in order: [0-14, 14-20, 25-31]. Blocks count from 0
        and both ends are in, as Franken-LLaMA's lists of blocks are written, so that this runs
        block 14 twice and leaves out 21 to 24; mergekit's ranges lack their last block.
    importance: "perplexity", by how much the loss on the search split rises without the block;
        "angular", by how much the block turns the hidden states; "taylor", Σ |w ∂ℓ/∂w|;
        "magnitude", Σ |w|.
    iterative: measure again after each removal, from 1.
    protect_first, protect_last: so many blocks at either end stay, from 0.
    stack: of an encoder-decoder, the one that loses blocks; other models have a decoder.
    """

    drop: int | None = Field(default=None, ge=1)
    layers: Annotated[tuple[str, ...] | None, BeforeValidator(_ranges)] = None
    importance: Literal["perplexity", "angular", "taylor", "magnitude"] = "perplexity"
    iterative: bool = True
    protect_first: int = Field(default=4, ge=0)
    protect_last: int = Field(default=2, ge=0)
    stack: Literal["encoder", "decoder"] = "decoder"

    @model_validator(mode="after")
    def _one_way(self) -> Options:
        if (self.drop is None) == (not self.layers):
            raise SpectrimError(
                "drop_blocks wants either drop, how many blocks to remove, or layers, the blocks "
                "to run; give one of them"
            )
        return self


def drop_blocks(job: Job, options: Options) -> None:
    """Write a model with some blocks removed or repeated, and let the job go on with it.

    Repeated blocks are written out, so that every later stage sees a model with more blocks and
    may treat each copy in its own way, a budget counting them all; those that are still the same
    in the end are stored once, and share their parameters when they are loaded.

    Raises:
        SpectrimError: there are too few blocks, no such block, or an earlier stage cut the maps.
    """
    if job.blocks is not None:
        raise SpectrimError(REFUSES["changed maps"])
    stack = _stack(job, options)
    whole = ordered(job, stack, tuple(range(length(job.model, stack))))
    rounds: list[dict[str, Any]] = []
    if options.layers:
        made = ordered(job, stack, stitched(options.layers, len(whole.order)))
    else:
        made, rounds = shortened(whole, options)
    job.notes[NOTE] = [*job.notes.get(NOTE, []), _note(whole, made, options, rounds)]
    job.orders += (made.order,)
    remake(job, ("drop_blocks", stack.path, made.order), made.config, made.blocks())


def stitched(layers: tuple[str, ...], blocks: int) -> tuple[int, ...]:
    """Return the numbers of the blocks that ranges name; SpectrimError where one is not there."""
    order = tuple(index for text in layers for index in _range(text))
    if max(order) >= blocks:
        raise SpectrimError(
            f"layers names block {max(order)}; this model has {blocks}, 0 to {blocks - 1}"
        )
    return order


def shortened(whole: Ordered, options: Options) -> tuple[Ordered, list[dict[str, Any]]]:
    """Return the model without its least important blocks, and what was measured in each round.

    A round tells the block removed and every candidate's importance, by the numbers of the blocks
    in the model as it came. Of equal blocks the first goes.

    Raises:
        SpectrimError: more are to go than are not protected.
    """
    assert options.drop is not None
    free = _free(whole, options)
    rounds: list[dict[str, Any]] = []
    made, measured = whole, {}
    for _ in range(options.drop):
        if options.iterative or not rounds:
            places = [place for place, block in enumerate(made.order) if block in free]
            found = importance(made, options.importance, places)
            measured = {made.order[place]: value for place, value in found.items()}
        least = min(measured, key=lambda block: measured[block])
        rounds.append({"removed": least, "importance": {str(k): v for k, v in measured.items()}})
        del measured[least]
        free.remove(least)
        left = tuple(block for block in made.order if block != least)
        made = ordered(whole.job, whole.stack, left)
    return made, rounds


def _free(whole: Ordered, options: Options) -> list[int]:
    """Return the blocks that may go; the first stays where it holds what all others need."""
    assert options.drop is not None
    blocks = len(whole.order)
    first = max(options.protect_first, int(whole.job.architecture.shared_bias))
    free = list(range(first, blocks - options.protect_last))
    if options.drop > len(free):
        raise SpectrimError(
            f"cannot drop {options.drop} of {blocks} blocks: the first {first} and the last "
            f"{options.protect_last} stay, which leaves {len(free)}; drop or protect fewer"
        )
    if options.drop == blocks:
        raise SpectrimError(f"cannot drop all {blocks} blocks; drop fewer")
    return free


def _stack(job: Job, options: Options) -> Stack:
    stacks = job.architecture.stacks
    if options.stack == "encoder" and len(stacks) == 1:
        raise SpectrimError("this model has no encoder; leave the option stack out")
    return stacks[0] if options.stack == "encoder" else stacks[-1]


def _note(
    whole: Ordered, made: Ordered, options: Options, rounds: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what the plan and the scores say of this stage; losses in nats per token."""
    return {
        "stack": whole.stack.path,
        "blocks": list(made.order),
        "importance": options.importance if rounds else None,
        "rounds": rounds,
        "search_loss": {"before": loss_in_order(whole), "after": loss_in_order(made)},
    }
