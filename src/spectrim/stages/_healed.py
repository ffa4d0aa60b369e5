"""What all stages that heal share: what is trained, what is measured, what is noted."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.calibration import Tokens
from spectrim.formats._packed import PackedMatrix
from spectrim.job import Job, load_rest
from spectrim.licence import licence_of
from spectrim.stages._blocks import current_block, move_to
from spectrim.stages._curves import dense_plan
from spectrim.walk import BlockWalk

NOTE = "healed"


def begin(job: Job) -> None:
    """Give a model that no stage has cut the plan that leaves it dense, so that it heals too."""
    if job.plan is None:
        job.plan = dense_plan(job)


def trained(job: Job, module: nn.Module) -> dict[str, nn.Parameter]:
    """Let the parameters of blocks need gradients and return them by name.

    Tables of embeddings (T5's positions) stay: other blocks are called with what they give. Zeros
    that a stage made stay zeros, because no gradient reaches them.
    """
    tables = {
        id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    found = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point() and id(parameter) not in tables
    }
    packed = {  # of which zero is one like any other
        id(p) for m in module.modules() if isinstance(m, PackedMatrix) for p in m.parameters()
    }
    for parameter in found.values():
        parameter.requires_grad_(True)
        if "sparsified" in job.notes and parameter.dim() > 1 and id(parameter) not in packed:
            _keep_zeros(parameter)
    return found


def text_name(job: Job, name: str | None = None) -> str:
    """Return what to call a text (None: that of the calibration) without where it lies."""
    said = name or str(job.notes.get("calibration"))
    return Path(said).name if Path(said).is_file() else said


def _keep_zeros(parameter: nn.Parameter) -> None:
    kept = parameter.detach() != 0
    parameter.register_hook(lambda gradient: gradient * kept)


def half(dtype: torch.dtype, device: str = "cpu") -> AbstractContextManager[None]:
    """Return the context in which matrices are multiplied in bf16, where the model is stored so."""
    context: AbstractContextManager[None] = torch.autocast(
        device, torch.bfloat16, enabled=dtype == torch.bfloat16
    )
    return context


def walk_now(job: Job, tokens: Tokens) -> BlockWalk:
    """Return a walk of a text with all outside the blocks as it is now."""
    model = copy.deepcopy(job.model)
    load_rest(model, job.rest(), job.compute_dtype)
    known = job.walk(tokens)
    return BlockWalk(model, job.architecture, job.weights, known.tokens, known.batch)


def search_loss(job: Job) -> float:
    """Return the loss of the model as it is now on the search split, nats per token."""
    walk = walk_now(job, job.splits.search)
    losses = walk.sweep(lambda stack, index: current_block(job, (stack, index), walk.dtype))
    return float(losses.double().mean())


def take(
    job: Job, folder: Path | None, note: dict[str, Any], rest: dict[str, Tensor] | None = None
) -> None:
    """Go on with healed blocks if they lower the loss on the search split, and note both losses.

    folder: of the blocks; None where training has found nothing better. note: what the stage says
    of itself; rest: all outside the blocks, where that was trained too.
    """
    before = job.blocks
    known = after = search_loss(job)
    if folder is not None:
        move_to(job, folder, rest)
        after = search_loss(job)
    used = after < known
    if not used:  # NaN is no gain either
        job.blocks = before
    loss = {"before": known, "after": after}
    teacher = job.original or job.source
    said = {**note, "licence": licence_of(teacher.folder), "search_loss": loss, "used": used}
    job.notes[NOTE] = [*job.notes.get(NOTE, []), said]
