"""Tiny models in memory, walked block by block; and what the whole model says of the same text."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.model.architectures import architecture_of
from spectrim.model.weights import Weights
from spectrim.text.tokens import Tokens
from spectrim.walk.walk import BlockWalk
from tiny_models import build, tokens

LENGTH = 16


class InMemory(Weights):
    """The weights of a model in memory, read as those in a folder are."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.held = {name: t.detach().clone() for name, t in model.state_dict().items()}

    def read_prefix(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor.clone()
            for name, tensor in self.held.items()
            if name.startswith(prefix)
        }


def text(padded: bool) -> Tokens:
    """Three sequences; padded: the first at its end, the second at its beginning."""
    ids = tokens(sequences=3, length=LENGTH)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if padded:
        mask[0, -5:] = False
        mask[1, :2] = False
    return Tokens(ids, mask)


def walk_of(model: PreTrainedModel, read: Tokens, batch: int = 2) -> BlockWalk:
    """Return a walk that finds the blocks empty and reads them from what stands for files."""
    skeleton = copy.deepcopy(model)
    architecture = architecture_of(model.config)
    for stack in architecture.stacks:
        skeleton.get_submodule(stack.path).to("meta")
    return BlockWalk(skeleton, architecture, InMemory(model), read, batch)


def model_of(family: str) -> PreTrainedModel:
    model = build(family)
    model.set_experts_implementation("eager")  # whose sums run in the order of ours
    return model


def whole(model: PreTrainedModel, read: Tokens, rows: slice = slice(None)) -> Tensor:
    """Return the logits of the whole model on what the walk reads, given as users would."""
    ids = read.ids[rows]
    mask = None if bool(read.mask[rows].all()) else read.mask[rows].long()
    if not model.config.is_encoder_decoder:
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    half = LENGTH // 2
    begin = torch.full((len(ids), 1), model.config.decoder_start_token_id)
    return model(
        input_ids=ids[:, :half],
        attention_mask=None if mask is None else mask[:, :half],
        decoder_input_ids=torch.cat((begin, ids[:, half:-1]), dim=1),
        use_cache=False,
    ).logits


def wanted(model: PreTrainedModel, read: Tokens) -> Tensor:
    """Return the token that each position has to predict, -100 where none."""
    labels = torch.where(read.mask, read.ids, -100)
    if model.config.is_encoder_decoder:
        return labels[:, LENGTH // 2 :]
    after = torch.where(read.mask[:, :-1], labels[:, 1:], -100)  # padding predicts nothing
    return torch.cat((after, torch.full_like(labels[:, :1], -100)), dim=1)
