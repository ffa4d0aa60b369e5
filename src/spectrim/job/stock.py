"""Whether a smaller model is one that transformers knows by itself: narrower, the same everywhere.

Neuron selection leaves ordinary matrices. A config has one width for all blocks of a stack, so with
one width in each of them, and nothing else cut, no plug-in is needed to load the model.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from spectrim.job.job import Job

NARROW = {"fewer_outputs": "rows", "fewer_inputs": "columns"}  # format → its only matrix


def widths(job: Job) -> dict[str, int]:
    """Return what config.json is to say of the narrower MLPs; nothing where they do not fit one.

    Raises:
        AssertionError: there is no plan yet.
    """
    assert job.plan is not None
    cut = {one.site: one for one in job.plan.decisions if one.replaced}
    if not cut or any(one.stored_as not in NARROW for one in cut.values()):
        return {}
    found: dict[str, set[int]] = {}
    for place in job.each_block():
        for site in job.block_sites(place):
            if (
                site.role == f"{place.stack.prefix}down"
            ):  # experts have a role and a width of their own
                width = cut[site.name].rank if site.name in cut else site.in_features
                found.setdefault(place.stack.width, set()).add(width)
    if any(len(seen) > 1 for seen in found.values()):
        return {}
    return {entry: seen.pop() for entry, seen in found.items()}


def plain(job: Job, part: Path) -> Path:
    """Return a copy of a block's file in which narrower maps are named and laid out as usual.

    Raises:
        AssertionError: there is no plan yet.
    """
    assert job.plan is not None
    tensors = load_file(part)
    for one in job.plan.decisions:
        if one.format in NARROW and f"{one.site}.{NARROW[one.format]}" in tensors:
            matrix = tensors.pop(f"{one.site}.{NARROW[one.format]}")
            tensors.pop(f"{one.site}.places", None)
            turned = isinstance(job.model.get_submodule(one.site), Conv1D)
            tensors[f"{one.site}.weight"] = matrix.T.contiguous() if turned else matrix
    target = job.work / "stock" / part.name
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target)
    return target
