"""Where a model keeps its numbers: counted from its sites and modules, tied ones once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from spectrim.formats import FactoredLinear
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.trellis_matrix import TrellisMatrix
from spectrim.formats.quantized_embedding import QuantizedEmbedding
from spectrim.formats.tied_embedding import TiedEmbedding
from spectrim.model import architectures, sites

# Tables that are looked up, and what the module that holds it has counted already.
TABLES = (nn.Embedding, QuantizedEmbedding, TiedEmbedding, PackedMatrix)


@dataclass(frozen=True)
class LinearMap:
    """What one linear map stores (bias apart) and costs.

    ``multiply_adds`` is for a token that reaches the map; ``active`` is the share of tokens that do
    (below 1 for experts); ``place`` is "block" for sites, "head", or "other" for what is no site
    (routers, projections outside the blocks).
    """

    name: str
    numbers: int
    multiply_adds: int
    active: float
    place: str


def linear_maps(model: PreTrainedModel) -> list[LinearMap]:
    """Return every linear map of a model, dense or factored; embedding tables are none.

    Raises:
        SpectrimError: the model's family is unknown.
    """
    family = architectures.architecture_of(model.config)
    modules = dict(model.named_modules())
    inside = [site for site in sites.find(model) if site.block >= 0]
    found = []
    for site in inside:
        dense = site.out_features * site.in_features  # packed experts have no module of their own
        numbers, cost = _counts(modules.get(site.name), dense)
        numbers = 0 if site.name.startswith(_repeats(model)) else numbers
        expert = family.experts is not None and f".{family.experts}." in site.name
        share = expert_share(model.config) if expert else 1.0
        found.append(LinearMap(site.name, numbers, cost, share, "block"))
    return found + list(_others(model, {site.name for site in inside}))


def all_numbers(model: nn.Module) -> int:
    """Return how many numbers a model has, tied ones once; a packed one counts as any other.

    The scales and offsets of codes are none: they are a part of how these are stored.
    """
    packed = [one for one in model.modules() if isinstance(one, PackedMatrix | TrellisMatrix)]
    beside = sum(one.numel() for matrix in packed for one in matrix.parameters())
    whole = sum(one.numel() for one in model.parameters())
    return whole - beside + sum(matrix.rows * matrix.columns for matrix in packed)


def embedding_numbers(model: PreTrainedModel) -> int:
    """Return the numbers of the token embedding and the head, counted once where they are tied."""
    ends = [model.get_input_embeddings(), _head(model)]
    return all_numbers(nn.ModuleList(end for end in ends if end is not None))


def expert_share(config: PretrainedConfig) -> float:
    """Return the share of experts that each token visits; 1 where the config names none."""
    chosen = getattr(config, "num_experts_per_tok", None)
    for name in ("num_local_experts", "num_experts"):
        experts = getattr(config, name, None)
        if chosen and experts:
            return float(chosen / experts)
    return 1.0


def _repeats(model: PreTrainedModel) -> tuple[str, ...]:
    """Return how names begin in blocks that compute with the numbers of another block."""
    said = getattr(model.config, "quantization_config", None)
    return tuple(f"{name}." for name in getattr(said, "shared_blocks", None) or ())


def _counts(module: nn.Module | None, dense: int) -> tuple[int, int]:
    if isinstance(module, FactoredLinear):
        return module.stored(), module.multiply_adds()
    return dense, dense


def _head(model: Any) -> nn.Module | None:
    head: nn.Module | None = model.get_output_embeddings()
    return head


def _others(model: PreTrainedModel, known: set[str]) -> Iterator[LinearMap]:
    head = _head(model)
    below = tuple(f"{name}." for name in known)
    for name, module in model.named_modules():
        if name in known or name.startswith(below) or isinstance(module, TABLES):
            continue
        own = module.parameters(recurse=False)
        matrices = sum(one.numel() for one in own if one.ndim == 2)  # a router holds its own
        numbers, cost = _counts(module, matrices)
        if numbers or cost:
            yield LinearMap(name, numbers, cost, 1.0, "head" if module is head else "other")
