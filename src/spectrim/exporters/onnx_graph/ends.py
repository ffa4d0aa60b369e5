"""Embedding and head as ONNX nodes: one table for both where the model has one."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from spectrim.errors import SpectrimError
from spectrim.exporters.onnx_graph.blocks import COPIES, Layout, layout
from spectrim.exporters.onnx_graph.graph import Graph
from spectrim.exporters.onnx_graph.maps import linear, stored
from spectrim.formats.packed.matrix import PackedMatrix


def embedding(graph: Graph, ids: ir.Value, module: Any, name: str) -> ir.Value:
    """Add the look-up of words in a table, dense or packed.

    Raises:
        SpectrimError: the table's groups are of a length that ONNX Runtime does not read.
    """
    scale = float(getattr(module, "embed_scale", 1.0))
    if isinstance(module, nn.Embedding):
        found = graph.op("Gather", graph.table(f"{name}.weight", module.weight), ids)
        rows = found if module.weight.dtype == torch.float32 else graph.single(found)
    else:
        rows = _packed_rows(graph, ids, module.quantized, name)
    if scale == 1.0:
        return rows
    return graph.op("Mul", rows, graph.vector(f"{name}.scale", torch.tensor(scale)))


def head(graph: Graph, x: ir.Value, module: Any, table: nn.Module, name: str) -> ir.Value:
    """Add the head; where it reads the embedding's dense table, that is stored once."""
    if isinstance(table, nn.Embedding) and getattr(module, "weight", None) is table.weight:
        weight = graph.table(f"{name}.weight", table.weight)
        single = weight if table.weight.dtype == torch.float32 else graph.single(weight)
        return graph.op("MatMul", x, graph.op("Transpose", single, perm=[1, 0]))
    return linear(graph, x, module, name)


def _packed_rows(graph: Graph, ids: ir.Value, matrix: PackedMatrix, name: str) -> ir.Value:
    """Add the look-up in codes that a head may multiply by as well.

    Where means are appended to a head's inputs, the rows end in what it multiplies them by: d, that
    every number of a block is to be moved by.
    """
    kind = layout(matrix)
    if kind is None:
        raise SpectrimError(
            f"{name} is stored in groups of {matrix.grid.group}, which ONNX Runtime does not look "
            "rows up in; store it in groups of 16, 32, 64, 128 or 256"
        )
    codes, scales, zeros = stored(graph, [matrix], kind, name)
    flat = graph.op("Reshape", codes, graph.numbers([matrix.rows, -1]))
    full: ir.Value = graph.microsoft(
        "GatherBlockQuantized",
        1,
        flat,
        ids,
        scales,
        zeros,
        bits=kind.bits,
        block_size=kind.size,
        gather_axis=0,
        quantize_axis=1,
    )[0]
    inputs = kind.blocks * kind.size
    rows = _between(graph, full, 0, inputs) if kind.all_blocks > kind.blocks else full
    if kind.means:
        rows = graph.op("Add", rows, _moved(graph, full, kind))
    return rows if inputs == kind.inputs else _between(graph, rows, 0, kind.inputs)


def _moved(graph: Graph, full: ir.Value, kind: Layout) -> ir.Value:
    """Return d for every number of a row, put together from its copies."""
    begin = kind.blocks * kind.size
    rest = _between(graph, full, begin, begin + kind.appended)
    units = torch.tensor(COPIES[kind.bits])[:, None] / kind.size  # [copies, 1]
    parts = graph.op("Reshape", rest, graph.numbers([0, 0, len(units), kind.blocks]))
    scaled = graph.op("Mul", parts, graph.vector(f"units_{kind.size}_{kind.bits}", units))
    each = graph.op("ReduceSum", scaled, graph.numbers([2]), keepdims=0)  # [batch, tokens, blocks]
    column = graph.op("Unsqueeze", each, graph.numbers([3]))
    spread = graph.op("Expand", column, graph.numbers([1, 1, 1, kind.size]))
    return graph.op("Reshape", spread, graph.numbers([0, 0, begin]))


def _between(graph: Graph, x: ir.Value, begin: int, end: int) -> ir.Value:
    """Return some of the last dimension."""
    return graph.op("Slice", x, graph.numbers([begin]), graph.numbers([end]), graph.numbers([-1]))
