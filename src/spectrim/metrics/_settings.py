"""What a measurement was made with: text, windows, machine, versions, date."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import Any

import torch

from spectrim.metrics._contract import Pair
from spectrim.metrics._packages import versions
from spectrim.metrics._reading import device
from spectrim.metrics.asking.answers import readings
from spectrim.processes import machine
from spectrim.text.tokens import content


def describe(pair: Pair) -> dict[str, Any]:
    """Return the settings that make the scores repeatable and their limits visible."""
    name, ids = next(iter(pair.texts.items()), (None, None))
    window = None if ids is None else int(ids.shape[1])
    first = next(iter(pair.models.values()))
    tokens = int(readings(pair)[name].tokens.sum()) if name is not None else 0
    return {
        "text": name,
        "texts": {text: list(windows.shape) for text, windows in pair.texts.items()},
        "content": None if ids is None else content(ids),
        "suite": pair.evaluation.suite,
        "limit": pair.evaluation.limit,
        "window": window,
        "stride": window,
        "tokens": tokens,
        "seed": pair.evaluation.seed,
        "dtype": {label: _dtype(model) for label, model in pair.models.items()},
        "threads": torch.get_num_threads(),
        "machine": _machine(device(first)),
        "versions": versions("spectrim", "torch", "transformers")
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _dtype(model: torch.nn.Module) -> str:
    """Return the dtype that most parameters have."""
    counts: dict[str, int] = {}
    for one in model.parameters():
        dtype = str(one.dtype).removeprefix("torch.")
        counts[dtype] = counts.get(dtype, 0) + one.numel()
    return max(counts, key=counts.__getitem__, default="none")


def _machine(where: torch.device) -> str:
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return machine()
