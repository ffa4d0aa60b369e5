"""A choice of llama.cpp's types carried out, and what the model loses by it, measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import nn

from spectrim.cutting.table_losses import Tables, divergence
from spectrim.cutting.type_choice import DENSE
from spectrim.cutting.type_losses import BlockMaker, replaced
from spectrim.job.job import Job
from spectrim.model.architectures import Place
from spectrim.rounding.ggml import dequantize
from spectrim.walk.stream import Stream
from spectrim.walk.walk import BlockWalk

Chosen = dict[str, GGMLQuantizationType]


class Made(NamedTuple):
    """Matrices in blocks, uint8 [rows, row_bytes], and what they make of the model."""

    packed: dict[str, np.ndarray]
    """By the parameter's name; those that stay as they are not among them."""
    divergence: float
    """From the dense model, on the search split, nats per token."""
    loss: float
    """On the search split, nats per token."""
    dense_loss: float


def carried_out(job: Job, chosen: Chosen, *, best: bool) -> Made:
    """Return the matrices in the types chosen for them, and the loss measured on the search split.

    best: take time for codes that lose least.
    """
    packed: dict[str, np.ndarray] = {}
    tables = Tables(job)
    model = copy.deepcopy(job.model)
    for name in tables.names:
        if (kind := chosen[name]) != DENSE:
            packed[name] = tables.packed(name, kind, best=best)
            with torch.no_grad():
                model.get_parameter(name).copy_(dequantize(packed[name], kind))
    walk = job.walk(job.splits.search)
    other = BlockWalk(model, job.architecture, job.weights, walk.tokens, walk.batch)
    small = Stream(other).through(_blocks(job, walk, chosen, packed, best))
    dense = Stream(walk).through(walk.block)
    return Made(packed, divergence(walk, dense, other, small), small.mean(), dense.mean())


def _blocks(
    job: Job, walk: BlockWalk, chosen: Chosen, packed: dict[str, np.ndarray], best: bool
) -> Callable[[Place], nn.Module]:
    """Return what makes a block in its types, which are put among those packed."""

    def block(place: Place) -> nn.Module:
        maker = BlockMaker(job, place)
        made = walk.block(place)
        for site in job.block_sites(place):
            name = f"{site.name}.weight"
            if (kind := chosen[name]) == DENSE:
                continue
            packed[name] = maker.packed(site.name, kind, best=best)
            replaced(made, site.name.removeprefix(place.prefix), dequantize(packed[name], kind))
        job.progress(place.index + 1, len(job.each_block()), "quantising")
        return made

    return block
