"""What calibration says about a site: how its inputs and the loss's gradients are distributed.

Collected by sweeps.py, kept in one file a block.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from spectrim.model.architectures import Place


@dataclass
class Statistics:
    """Moments of one site over the calibration tokens; what no method asked for stays None.

    tokens: how many tokens reached the site (for an expert, those routed to it).
    input_moment: A = E[x xᵀ], [in, in] float32, not centred.
    gradient_moment: G = E[g gᵀ], [out, out] float32, g = ∂ℓ/∂y for the loss in nats summed over
        tokens; the mean runs over all predicted tokens, also for an expert that few are routed to,
        so that ½ tr(Δᵀ G Δ A) is in nats per token of the whole text.
    samples: inputs of a little of the text as they are, for methods that train on them.
    """

    tokens: int
    input_mean: Float[Tensor, " in"] | None = None
    input_moment: Float[Tensor, "in in"] | None = None
    gradient_moment: Float[Tensor, "out out"] | None = None
    samples: Float[Tensor, "sampled in"] | None = None


def statistics_file(folder: Path, place: Place) -> Path:
    """Return where the statistics of one block lie."""
    return folder / f"{place.name}.safetensors"


def embedding_file(folder: Path) -> Path:
    """Return where the moment of the gradients of what embeddings deliver lies, [hidden, hidden].

    Statistics of an earlier version lack it.
    """
    return folder / "embedding.safetensors"


def without_tokens(folder: Path, place: Place) -> list[str]:
    """Return the sites of one block that no token reached, as experts that none is routed to."""
    with safe_open(statistics_file(folder, place), framework="pt") as file:
        about = json.loads(file.metadata()["sites"])
        known = set(file.keys())
    return [
        name
        for name, facts in about.items()
        if facts["tokens"] == 0 or f"{name}.gradient_moment" not in known
    ]


def block_statistics(folder: Path, place: Place) -> dict[str, Statistics]:
    """Return the statistics of every site of one block; sites with one input share its moment."""
    path = statistics_file(folder, place)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["sites"])
    return {
        name: Statistics(
            tokens=facts["tokens"],
            input_mean=tensors.get(f"{facts.get('input')}.input_mean"),
            input_moment=tensors.get(f"{facts.get('input')}.input_moment"),
            gradient_moment=tensors.get(f"{name}.gradient_moment"),
        )
        for name, facts in about.items()
    }
