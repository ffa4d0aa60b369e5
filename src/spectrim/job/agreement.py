"""What the processes of one run agree on, by accelerate; alone, all of it is nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, reduce
from torch import Tensor, nn

from spectrim.errors import SpectrimError
from spectrim.processes import processes

PATIENCE = timedelta(days=7)  # for the slowest: the first one also measures and writes


def joined() -> PartialState:
    """Return this process among the others, met here the first time.

    Raises:
        SpectrimError: there are others, and accelerate does not find them.
    """
    if processes() == 1:
        return PartialState(cpu=_cpu())
    found = PartialState(cpu=_cpu(), timeout=PATIENCE)
    if found.num_processes != processes():
        raise SpectrimError(
            f"{processes()} processes were started and accelerate finds {found.num_processes}; "
            "start them with torchrun or accelerate launch"
        )
    return found


def _cpu() -> bool:
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return asked or not torch.accelerator.is_available()


def wait() -> None:
    """Return when all processes are here."""
    if processes() > 1:
        joined().wait_for_everyone()


def mean(value: float) -> float:
    """Return the mean over all processes, so that all decide alike."""
    if processes() == 1:
        return value
    held = torch.tensor(float(value), dtype=torch.float64, device=joined().device)
    found: Any = reduce(held, "mean")
    return float(found)


def alike(value: int) -> bool:
    """Return whether a number is the same in all processes."""
    if processes() == 1:
        return True
    found: Any = gather(torch.tensor([value], dtype=torch.int64, device=joined().device))
    return len(set(found.tolist())) == 1


def average(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean of all gradients; what no process has a gradient of has none."""
    if processes() == 1:
        return
    held = list(parameters)
    had = torch.tensor([float(one.grad is not None) for one in held], device=joined().device)
    sums: Any = reduce(had, "sum")
    for parameter, count in zip(held, sums.tolist(), strict=True):
        if count:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            mean_of_all: Any = reduce(own, "mean")
            parameter.grad = mean_of_all


def refuse_others(tensors: Mapping[str, Tensor]) -> None:
    """Raise SpectrimError where what is to be trained is not the same in all processes."""
    if processes() == 1:
        return
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    if not alike(int(digest.hexdigest()[:15], 16)):
        raise SpectrimError(
            "the processes have cut the model differently, as machines of several kinds may; take "
            "one kind of machine, or heal in one process"
        )
