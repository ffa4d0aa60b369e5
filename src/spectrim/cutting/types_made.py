"""A choice of llama.cpp's types carried out, and what the model loses by it, measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType
from safetensors.numpy import load_file, save_file
from torch import nn

from spectrim.cutting.table_losses import Tables
from spectrim.cutting.tables import divergence
from spectrim.cutting.type_choice import DENSE
from spectrim.cutting.type_losses import BlockMaker, replaced
from spectrim.files import atomic_file, key_of
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


def carried_out(job: Job, chosen: Chosen, folder: Path) -> Made:
    """Return the matrices in the types chosen for them, and the loss measured on the search split.

    folder: where what is made is kept block by block, so that an interrupted run goes on.
    """
    tables = Tables(job)
    model = copy.deepcopy(job.model)
    packed = made_tables(tables, chosen, folder)
    for name, one in packed.items():
        with torch.no_grad():
            model.get_parameter(name).copy_(dequantize(one, chosen[name]))
    walk = job.walk(job.splits.search)
    other = BlockWalk(model, job.architecture, job.weights, walk.tokens, walk.batch)

    def block(place: Place) -> nn.Module:
        made, values = walk.block(place), made_block(job, place, chosen, folder)
        for name, one in values.items():
            path = name.removeprefix(place.prefix).removesuffix(".weight")
            replaced(made, path, dequantize(one, chosen[name]))
        packed.update(values)
        job.progress(place.index + 1, len(job.each_block()), "quantising")
        return made

    small = Stream(other).through(block)
    dense = Stream(walk).through(walk.block)
    return Made(packed, divergence(walk, dense, other, small), small.mean(), dense.mean())


def made_tables(tables: Tables, chosen: Chosen, folder: Path) -> dict[str, np.ndarray]:
    """Return embedding and head in their types."""
    kinds = {name: chosen[name] for name in tables.names if chosen[name] != DENSE}
    return _kept(folder, "tables", kinds, lambda name, kind: tables.packed(name, kind, best=True))


def made_block(job: Job, place: Place, chosen: Chosen, folder: Path) -> dict[str, np.ndarray]:
    """Return the maps of a block in their types."""
    names = [f"{site.name}.weight" for site in job.block_sites(place)]
    kinds = {name: chosen[name] for name in names if chosen[name] != DENSE}
    maker: list[BlockMaker] = []  # made where it is needed: it reads the block's statistics

    def make(name: str, kind: GGMLQuantizationType) -> np.ndarray:
        if not maker:
            maker.append(BlockMaker(job, place))
        return maker[0].packed(name.removesuffix(".weight"), kind, best=True)

    return _kept(folder, place.name, kinds, make)


def _kept(
    folder: Path,
    part: str,
    kinds: Chosen,
    make: Callable[[str, GGMLQuantizationType], np.ndarray],
) -> dict[str, np.ndarray]:
    """Return some matrices in their types, made where the folder does not have them so."""
    said = key_of(1, {name: kind.name for name, kind in kinds.items()})
    file = folder / f"{part}-{said[:16]}.safetensors"
    if not file.exists():
        made = {name: np.ascontiguousarray(make(name, kind)) for name, kind in kinds.items()}
        with atomic_file(file) as partial:
            save_file(made, partial)
    return load_file(file)
