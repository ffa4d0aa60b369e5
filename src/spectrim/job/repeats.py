"""Blocks that are stored once although the model runs them several times."""

from __future__ import annotations

from pathlib import Path

from spectrim.job.blocks import copy_block
from spectrim.job.job import Job
from spectrim.job.order import length
from spectrim.model.architectures import Place
from spectrim.model.tensor_files import Entry, same_content, stored, stored_in


def repeats(job: Job) -> dict[str, str]:
    """Return each block that is the same as an earlier one, and that one's name.

    Only where a stage repeated blocks, and of dense blocks only: later stages may have parted them.
    """
    if all(len(set(order)) == len(order) for order in job.orders):
        return {}
    found: dict[str, str] = {}
    for stack in job.architecture.stacks:
        first: dict[str, dict[str, Entry]] = {}
        for place in (Place(stack, index) for index in range(length(job.model, stack))):
            if not _dense(job, place):
                continue
            name = place.name
            tensors = _tensors(job, place)
            twin = next((one for one, held in first.items() if _same(held, tensors)), None)
            if twin is None:
                first[name] = tensors
            else:
                found[name] = twin
    return found


def written_out(job: Job) -> Path:
    """Return the folder of the blocks as they are now, written where no stage has done so."""
    if job.blocks is not None:
        return job.blocks
    folder = job.work / "blocks"
    for place in job.each_block():
        copy_block(job, folder, place)
    return folder


def _dense(job: Job, place: Place) -> bool:
    assert job.plan is not None
    return not any(job.plan[site.name].replaced for site in job.block_sites(place))


def _tensors(job: Job, place: Place) -> dict[str, Entry]:
    """Return where the tensors of a block lie, by their names inside it."""
    prefix = place.prefix
    if job.blocks is None:  # a folder that a stage wrote, with the model's own names
        held = stored(job.source.folder)
    else:
        held = stored_in(job.block_file(job.blocks, place))
    return {k.removeprefix(prefix): entry for k, entry in held.items() if k.startswith(prefix)}


def _same(one: dict[str, Entry], other: dict[str, Entry]) -> bool:
    return one.keys() == other.keys() and all(same_content(one[k], other[k]) for k in one)
