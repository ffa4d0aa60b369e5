"""A stack's blocks in another order: some left out, some more than once; nothing is copied."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.job.job import BATCH, Job
from spectrim.model.architectures import Place, Stack
from spectrim.model.weights import Weights
from spectrim.text.tokens import Tokens
from spectrim.walk.walk import BlockWalk


@dataclass(frozen=True)
class Ordered:
    """A job's model as if one stack had these of its blocks in this order, numbered anew."""

    job: Job
    stack: Stack
    order: tuple[int, ...]
    model: PreTrainedModel
    weights: Weights
    config: dict[str, Any]

    def walk(self, tokens: Tokens) -> BlockWalk:
        """Return a walk of these tokens through the model."""
        batch = max(1, BATCH // tokens.ids.shape[1])
        return BlockWalk(self.model, self.job.architecture, self.weights, tokens, batch)

    def blocks(self) -> Iterator[dict[str, Tensor]]:
        """Return the tensors of one block after the other, stack by stack, by their new names."""
        for stack in self.job.architecture.stacks:
            for index in range(length(self.model, stack)):
                prefix = Place(stack, index).prefix
                found = self.weights.read_prefix(prefix)
                yield {prefix + name: tensor for name, tensor in found.items()}


def ordered(job: Job, stack: Stack, order: tuple[int, ...]) -> Ordered:
    """Return a job's model with some blocks of a stack in some order.

    Raises:
        SpectrimError: the family cannot have its blocks so.
    """
    _refuse(job, stack, order)
    config = _config_entries(job, stack, order)
    model = _skeleton(job, stack, order, config)
    _refuse_cache(job, model)
    return Ordered(job, stack, order, model, job.weights.renamed(_names(job, stack, order)), config)


def length(model: PreTrainedModel, stack: Stack) -> int:
    """Return how many blocks a stack of a model runs."""
    blocks = model.get_submodule(stack.path)
    assert isinstance(blocks, nn.ModuleList)
    return len(blocks)


def _skeleton(
    job: Job, stack: Stack, order: tuple[int, ...], config: dict[str, Any]
) -> PreTrainedModel:
    held = chain(job.model.parameters(), job.model.buffers())
    model = copy.deepcopy(job.model, {id(tensor): tensor for tensor in held})
    blocks: Any = model.get_submodule(stack.path)
    model.set_submodule(stack.path, nn.ModuleList(blocks[index] for index in order))
    for name, value in config.items():
        setattr(model.config, name, value)
    return model


def _names(job: Job, stack: Stack, order: tuple[int, ...]) -> dict[str, str]:
    path = stack.path
    known = job.weights.names()
    names = {name: name for name in known if not name.startswith(f"{path}.")}
    for new, old in enumerate(order):
        before, after = f"{path}.{old}.", f"{path}.{new}."
        names |= {after + k.removeprefix(before): k for k in known if k.startswith(before)}
    return names


def _config_entries(job: Job, stack: Stack, order: tuple[int, ...]) -> dict[str, Any]:
    """Return what changes in config.json: numbers of blocks, and what is said block by block."""
    config: Any = job.model.config
    known = json.loads((job.source.folder / "config.json").read_text())
    entries: dict[str, Any] = {
        part.count: length(job.model, part) for part in job.architecture.stacks
    }
    entries[stack.count] = len(order)
    for alias, name in config.attribute_map.items():
        if name in entries and alias in known:  # whichever is read last decides
            entries[alias] = entries[name]
    types = getattr(config, "layer_types", None)  # often a rule of the block's number, unless given
    if types is not None:
        entries["layer_types"] = [types[index] for index in order]
    if hasattr(config, "mlp_only_layers"):
        entries["mlp_only_layers"] = _without_experts(job, stack, order)
        entries["decoder_sparse_step"] = 1
    return entries


def _without_experts(job: Job, stack: Stack, order: tuple[int, ...]) -> list[int]:
    blocks: Any = job.model.get_submodule(stack.path)
    experts = job.architecture.experts
    with_experts = {
        index
        for index, block in enumerate(blocks)
        if any(name == experts for name, _ in block.named_modules())
    }
    return [new for new, old in enumerate(order) if old not in with_experts]


def _refuse(job: Job, stack: Stack, order: tuple[int, ...]) -> None:
    if job.architecture.shared_bias and (order[0] != 0 or 0 in order[1:]):
        raise SpectrimError(
            "the first block of this model holds the position bias of all others; layers must "
            "begin with 0 and name it once"
        )
    moved = any(new != old for new, old in enumerate(order))
    if moved and getattr(job.model.config, "scale_attn_by_inverse_layer_idx", False):
        raise SpectrimError(
            "this model scales attention by the number of the block, so that no block can change "
            "its number; leave drop_blocks out"
        )


def _refuse_cache(job: Job, model: PreTrainedModel) -> None:
    """Raise SpectrimError where transformers would make the cache for too few blocks (T5)."""
    slots = model.config.get_text_config(decoder=True).num_hidden_layers
    needed = length(model, job.architecture.stacks[-1])
    if slots < needed:
        raise SpectrimError(
            "transformers sizes the cache of this model by its encoder, so that a decoder of "
            f"{needed} blocks needs an encoder of as many, not {slots}; shorten the decoder first"
        )
