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
from spectrim.model.experts import filled, pack_experts
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
    return filled(empty, _tensors(job, place), dtype, job.architecture.experts)


def keep_block(job: Job, folder: Path, place: Place, block: nn.Module) -> None:
    """Write a block as a stage has changed it, every tensor in the dtype it was stored in.

    block: what ``current_block`` returned, with other values or other formats in it.
    """
    name = place.name
    merge_fused(block)
    replaced = [f"{name}.{n}" for n, m in block.named_modules() if isinstance(m, FactoredLinear)]
    if job.architecture.experts is not None and not job.parts_experts(name, replaced):
        pack_experts(block, job.architecture.experts)
    before, main = _tensors(job, place), job.weights.dtype()
    named = {
        f"{name}.{key}": _stored(tensor.detach(), before.get(key), main)
        for key, tensor in block.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(job.block_file(folder, place)) as partial:
        save_file(named, partial)


def move_to(job: Job, folder: Path, rest: dict[str, Tensor] | None = None) -> None:
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


def _stored(tensor: Tensor, before: Tensor | None, main: torch.dtype) -> Tensor:
    wanted = before.dtype if before is not None else main
    return (tensor.to(wanted) if tensor.is_floating_point() else tensor).contiguous()
