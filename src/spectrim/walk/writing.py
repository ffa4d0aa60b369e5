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
from spectrim.walk.moments import SecondMoment
from spectrim.walk.triangles import triangle


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
            tensors |= _inputs(f"{name}.", collector.inputs[name])
            if name in collector.even:
                tensors |= _inputs(f"{name}.even.", collector.even[name])
        if name in collector.felt:
            found, shares = _felt(collector.felt[name], predicted)
            tensors |= {f"{name}.{part}": tensor for part, tensor in found.items()}
            if shares:
                about[name] |= {"even": shares, "even_tokens": collector.even[leader].tokens}
    save(path, tensors, about)


def save(path: Path, tensors: dict[str, Tensor], about: dict[str, dict[str, Any]]) -> None:
    """Write the statistics of one block by their names, of moments one triangle.

    about: by site its tokens, the site whose input it has, and the shares of the even sequences.

    Raises:
        SpectrimError: a number is not finite.
    """
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise SpectrimError(
                f"the statistics {name} overflowed; the model's activations are not finite on the "
                "calibration text, use another text or a checkpoint in another dtype"
            )
    sizes = {name: len(tensor) for name, tensor in tensors.items() if tensor.dim() == 2}
    kept = {name: triangle(one) if name in sizes else one for name, one in tensors.items()}
    with atomic_file(path) as partial:
        said = json.dumps({"sites": about, "sizes": sizes})
        save_file(kept, partial, metadata={"about": said})  # one, as several come in any order


def _inputs(name: str, found: SecondMoment) -> dict[str, Tensor]:
    tokens = max(found.tokens, 1)
    return {f"{name}input_moment": found.moment() / tokens, f"{name}input_mean": found.sum / tokens}


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
