"""The statistics of one block as a file: what its collector has added up, divided by the tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.files import atomic_file
from spectrim.walk.collector import Collector, Felt


def write(path: Path, collector: Collector, names: list[str], predicted: tuple[int, int]) -> None:
    """Write the moments of one block; an input shared by several sites is written once.

    predicted: tokens of the even sequences, and of the odd ones.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for name in names:
        leader = collector.leader.get(name)
        if leader not in collector.inputs:  # an expert that nothing, or padding only, came to
            about[name] = {"tokens": 0}
            continue
        tokens = collector.inputs[leader].tokens
        about[name] = {"tokens": tokens, "input": leader}
        if leader == name:
            tensors[f"{name}.input_moment"] = collector.inputs[name].moment() / max(tokens, 1)
            tensors[f"{name}.input_mean"] = collector.inputs[name].sum / max(tokens, 1)
        if name in collector.felt:
            found, shares = _felt(collector.felt[name], predicted)
            tensors |= {f"{name}.{part}": tensor for part, tensor in found.items()}
            about[name] |= {"even": shares} if shares else {}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise SpectrimError(
                f"the statistics {name} overflowed; the model's activations are not finite on the "
                "calibration text, use another text or a checkpoint in another dtype"
            )
    with atomic_file(path) as partial:
        save_file(tensors, partial, metadata={"sites": json.dumps(about)})


def _felt(
    halves: tuple[Felt, Felt], predicted: tuple[int, int]
) -> tuple[dict[str, Tensor], list[float]]:
    """Return both moments of a site, also of the even sequences, and which shares these are.

    Where one half came to nothing, only the whole; where both did, no weighted moment either.
    """
    even, odd = halves
    gradients = even.gradients.moment() + odd.gradients.moment()
    found = {"gradient_moment": gradients / sum(predicted)}
    weight = even.weight + odd.weight
    if weight:
        found["weighted_moment"] = (even.inputs.moment() + odd.inputs.moment()) / weight
    if not (even.weight and odd.weight and all(predicted)):
        return found, []
    found["even.gradient_moment"] = even.gradients.moment() / predicted[0]
    found["even.weighted_moment"] = even.inputs.moment() / even.weight
    return found, [predicted[0] / sum(predicted), even.weight / weight]
