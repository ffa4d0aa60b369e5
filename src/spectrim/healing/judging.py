"""What all stages that heal share: what is trained, what is measured, what is noted."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.job.blocks import go_on_with
from spectrim.job.job import Job, dense_plan
from spectrim.job.loss import search_loss
from spectrim.model.licence import licence_of

NOTE = "healed"


def ensure_plan(job: Job) -> None:
    """Give a model that no stage has cut the plan that leaves it dense, so that it heals too."""
    if job.plan is None:
        job.plan = dense_plan(job)


def make_trainable(job: Job, module: nn.Module) -> dict[str, nn.Parameter]:
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
        if job.sparsified and parameter.dim() > 1 and id(parameter) not in packed:
            _keep_zeros(parameter)
    return found


def text_name(job: Job, name: str | None = None) -> str:
    """Return what to call a text (None: that of the calibration) without where it lies."""
    text = name or job.text
    return Path(text).name if Path(text).is_file() else text


def _keep_zeros(parameter: nn.Parameter) -> None:
    kept = parameter.detach() != 0
    parameter.register_hook(lambda gradient: gradient * kept)


def mixed_precision(dtype: torch.dtype, device: str = "cpu") -> AbstractContextManager[None]:
    """Return the context in which matrices are multiplied in bf16, where the model is stored so."""
    context: AbstractContextManager[None] = torch.autocast(
        device, torch.bfloat16, enabled=dtype == torch.bfloat16
    )
    return context


def keep_if_better(
    job: Job, folder: Path | None, note: dict[str, Any], rest: dict[str, Tensor] | None = None
) -> None:
    """Go on with healed blocks if they lower the loss on the search split, and note both losses.

    folder: of the blocks; None where training has found nothing better. note: what the stage says
    of itself; rest: all outside the blocks, where that was trained too.
    """
    before = job.blocks
    loss = after = search_loss(job)
    if folder is not None:
        go_on_with(job, folder, rest)
        after = search_loss(job)
    used = after < loss
    if not used:  # NaN is no gain either
        job.blocks = before
    teacher = job.original or job.source
    told = {
        **note,
        "licence": licence_of(teacher.folder),
        "search_loss": {"before": loss, "after": after},
        "used": used,
    }
    job.healings += (used,)
    job.notes[NOTE] = [*job.notes.get(NOTE, []), told]
