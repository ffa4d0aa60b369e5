"""The blocks as they are now: read, changed by a stage, and written for the next one."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim.files import atomic_file
from spectrim.formats import FactoredLinear
from spectrim.job.job import REST, Job
from spectrim.model.architectures import Place
from spectrim.model.experts import load_block, pack_experts
from spectrim.model.fused import merge_fused


def next_step(job: Job, name: str) -> Path:
    """Return the folder for the blocks of a stage, the same when a run is taken up again."""
    job.steps += 1
    return job.work / f"{job.steps}-{name}"


def current_block(job: Job, place: Place, dtype: torch.dtype) -> nn.Module:
    """Return a block as it is now, frozen, its floating-point numbers in ``dtype``."""
    if job.blocks is not None:
        return job.stored_block(job.blocks, place, dtype)
    empty = job.model.get_submodule(place.name)
    return load_block(empty, _tensors(job, place), dtype, job.architecture.experts)


def write_block(job: Job, folder: Path, place: Place, block: nn.Module) -> None:
    """Write a block, every tensor in the dtype that it is stored in so far, new ones in the main.

    What is as it was keeps its bits, also where ``block`` holds it in fewer.

    block: what ``current_block`` returned, with other values or other formats in it.
    """
    merge_fused(block)
    modules = block.named_modules()
    replaced = [place.prefix + name for name, m in modules if isinstance(m, FactoredLinear)]
    if job.architecture.experts is not None and not job.parts_experts(place.name, replaced):
        pack_experts(block, job.architecture.experts)
    before, main = _tensors(job, place), job.weights.dtype()
    held = {name: tensor.detach() for name, tensor in block.state_dict().items()}
    _save(job, folder, place, {k: _stored(new, before.get(k), main) for k, new in held.items()})


def copy_block(job: Job, folder: Path, place: Place) -> None:
    """Write a block as it is now."""
    _save(job, folder, place, _tensors(job, place))


def go_on_with(job: Job, folder: Path, rest: dict[str, Tensor] | None = None) -> None:
    """Go on with the blocks in a folder; rest: all outside them, where that has changed too."""
    known = job.blocks / REST if job.blocks is not None else None
    with atomic_file(folder / REST) as partial:
        if rest is not None:
            save_file({name: tensor.contiguous() for name, tensor in rest.items()}, partial)
        elif known is not None and known.exists():
            shutil.copyfile(known, partial)
        else:
            save_file(job.rest(), partial)
    job.blocks = folder


def _tensors(job: Job, place: Place) -> dict[str, Tensor]:
    """Return the tensors of a block as it is stored now, by their names inside it."""
    prefix = place.prefix
    if job.blocks is None:
        return job.weights.read_prefix(prefix)
    held = load_file(job.block_file(job.blocks, place))
    return {name.removeprefix(prefix): tensor for name, tensor in held.items()}


def _save(job: Job, folder: Path, place: Place, tensors: dict[str, Tensor]) -> None:
    named = {place.prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(job.block_file(folder, place)) as partial:
        save_file(named, partial)


def _stored(new: Tensor, before: Tensor | None, main: torch.dtype) -> Tensor:
    """Return a tensor as it is to be stored; before: as it was, None where it is new."""
    if before is None:
        return new.to(main) if new.is_floating_point() else new
    if torch.equal(before.to(new.dtype), new):
        return before
    return new.to(before.dtype) if new.is_floating_point() else new
