"""Linear maps as ONNX nodes: dense, factored, narrower and packed, each as its format computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.errors import SpectrimError
from spectrim.exporters.onnx_graph.blocks import COPIES, Layout, laid_out, layout
from spectrim.exporters.onnx_graph.graph import Graph
from spectrim.exporters.onnx_graph.paths import recoded
from spectrim.formats.packed.matrix import PackedMatrix

Matrix = Tensor | PackedMatrix
PLACING = 300  # multiplications that take as long as putting an output in its place
ACCURACY = 4  # MatMulNBits multiplies in int8, as its fast kernels do


def linear(graph: Graph, x: ir.Value, module: nn.Module, name: str) -> ir.Value:
    """Add a map and its bias.

    Raises:
        SpectrimError: its format has no form in ONNX.
    """
    kind = type(module).__name__
    if kind not in MAPS:
        raise SpectrimError(
            f"{name} is stored as {kind}, which has no ONNX form; store it in another format"
        )
    y: ir.Value = MAPS[kind](graph, x, module, name)
    return biased(graph, y, [module], name)


def together(graph: Graph, x: ir.Value, maps: Sequence[nn.Module], name: str) -> ir.Value | None:
    """Add maps of one input as a single product, outputs side by side; None where they differ.

    The input is rounded to int8 once for all of them then.
    """
    found = [_whole(module) for module in maps]
    with_bias = {getattr(module, "bias", None) is not None for module in maps}
    if len(with_bias) > 1 or any(one is None for one in found):
        return None
    matrices = [one for one in found if one is not None]
    if isinstance(matrices[0], Tensor):
        alike = all(isinstance(one, Tensor) and one.dtype == matrices[0].dtype for one in matrices)
    else:
        kinds = [layout(one) if isinstance(one, PackedMatrix) else None for one in matrices]
        alike = kinds[0] is not None and all(one == kinds[0] for one in kinds)
    if not alike:
        return None
    return biased(graph, product(graph, x, matrices, name), maps, name)


def biased(graph: Graph, y: ir.Value, maps: Sequence[nn.Module], name: str) -> ir.Value:
    """Add the biases of maps whose outputs lie side by side."""
    found = [module.bias for module in maps if isinstance(module.bias, Tensor)]
    if not found:
        return y
    return graph.op("Add", y, graph.vector(f"{name}.bias", torch.cat([one for one in found])))


def product(graph: Graph, x: ir.Value, matrices: Sequence[Matrix], name: str) -> ir.Value:
    """Add the product of an input with matrices [out, in], outputs side by side."""
    places = tuple(_address(one) for one in matrices)
    if any(isinstance(one, PackedMatrix) for one in matrices):
        packed = [one for one in matrices if isinstance(one, PackedMatrix)]
        kind = layout(packed[0])
        if kind is not None:
            return graph.once(  # type: ignore[no-any-return]
                ("product", x, places), lambda: _packed(graph, x, packed, kind, name), *packed
            )
    dense = [one if isinstance(one, Tensor) else one.dense().detach() for one in matrices]
    weight = graph.weight(f"{name}.weight", dense, turned=True)
    return graph.once(("product", x, places), lambda: graph.op("MatMul", x, weight))  # type: ignore[no-any-return]


def stored(
    graph: Graph, matrices: Sequence[PackedMatrix], kind: Layout, name: str
) -> list[ir.Value | None]:
    """Return codes, scales in float32 and zero points of packed matrices, one below the other."""

    def make() -> list[ir.Value | None]:
        parts = [laid_out(one, kind) for one in matrices]
        codes = graph.constant(f"{name}.codes", torch.cat([one.codes for one in parts]))
        found = torch.cat([one.scales for one in parts])
        scales = graph.constant(f"{name}.scales", found)
        if found.dtype != torch.float32:
            scales = graph.single(scales)
        zeros = [one.zeros for one in parts if one.zeros is not None]
        return [codes, scales, graph.constant(f"{name}.zeros", torch.cat(zeros)) if zeros else None]

    return graph.once(("stored", *map(_address, matrices)), make, *matrices)  # type: ignore[no-any-return]


def _packed(
    graph: Graph, x: ir.Value, matrices: Sequence[PackedMatrix], kind: Layout, name: str
) -> ir.Value:
    """Add MatMulNBits, and before it the means that its layout asks for."""
    inputs = _with_means(graph, x, kind) if kind.means else x
    found: list[ir.Value] = graph.microsoft(
        "MatMulNBits",
        1,
        inputs,
        *stored(graph, matrices, kind, name),
        K=kind.columns,
        N=sum(one.rows for one in matrices),
        bits=kind.bits,
        block_size=kind.size,
        accuracy_level=ACCURACY,
    )
    return found[0]


def _with_means(graph: Graph, x: ir.Value, kind: Layout) -> ir.Value:
    """Append the means of an input over its blocks, in the units of their copies."""

    def make() -> ir.Value:
        full, behind = x, kind.blocks * kind.size - kind.inputs
        if behind:
            full = graph.op("Pad", x, graph.numbers([0, 0, 0, 0, 0, behind]))
        # As pooling, with tokens for channels, this were one node, but ten times slower.
        parts = graph.op("Reshape", full, graph.numbers([0, 0, kind.blocks, kind.size]))
        means = graph.op("ReduceMean", parts, graph.numbers([3]), keepdims=0)
        copies = [
            means
            if unit == 1.0
            else graph.op("Mul", means, graph.vector(f"unit_{unit:.4f}", torch.tensor(unit)))
            for unit in COPIES[kind.bits]
        ]
        return graph.op("Concat", full, *copies, axis=-1)

    return graph.once(("means", x, kind.size, kind.bits), make)  # type: ignore[no-any-return]


def _address(matrix: Matrix) -> tuple[int, tuple[int, ...]]:
    tensor = matrix if isinstance(matrix, Tensor) else matrix.packed
    return tensor.data_ptr(), tuple(tensor.shape)


def _whole(module: nn.Module) -> Matrix | None:
    """Return the only matrix of a map that has one and needs nothing beside it."""
    found: Any = module
    kind = type(module).__name__
    if kind == "Linear":
        return found.weight  # type: ignore[no-any-return]
    if kind in ("FewerOutputs", "QuantizedFewerOutputs"):
        return found.rows  # type: ignore[no-any-return]
    if kind == "QuantizedDense" and not found.correction:
        return found.quantized  # type: ignore[no-any-return]
    return recoded(found) if kind == "Trellis" else None


def _chain(*names: str) -> Callable[[Graph, ir.Value, Any, str], ir.Value]:
    """Return what adds the matrices of these names, each behind the other."""

    def add(graph: Graph, x: ir.Value, module: Any, name: str) -> ir.Value:
        for part in names:
            x = product(graph, x, [getattr(module, part)], f"{name}.{part}")
        return x

    return add


def _signs(graph: Graph, x: ir.Value, module: Any, name: str) -> ir.Value:
    scaled = graph.op("Mul", x, graph.vector(f"{name}.input_scale", module.input_scale))
    return _chain("first", "second")(graph, scaled, module, name)


def _pivoted(graph: Graph, x: ir.Value, module: Any, name: str) -> ir.Value:
    """Add pivot rows and what is made of them, each output at its place.

    Putting outputs in their places takes ONNX Runtime as long as many multiplications. Where it is
    quicker, their places are the rows' of a matrix instead, which is put together when the model is
    loaded: the second factor, pivots included, or the whole product.
    """
    if not isinstance(module.coefficients, PackedMatrix):
        rank, inputs = module.rows.shape
        outputs = len(module.order)
        chain, whole = rank * (inputs + outputs), inputs * outputs
        if min(chain, whole) < chain - rank * rank + PLACING * outputs:
            return _placed_when_loaded(graph, x, module, name, whole=whole < chain)
    pivots = product(graph, x, [module.rows], f"{name}.rows")
    others = product(graph, pivots, [module.coefficients], f"{name}.coefficients")
    both = graph.op("Concat", pivots, others, axis=-1)
    return _picked(graph, both, module.order, f"{name}.order")


def _placed_when_loaded(
    graph: Graph, x: ir.Value, module: Any, name: str, *, whole: bool
) -> ir.Value:
    rows = graph.weight(f"{name}.rows.weight", [module.rows], turned=True)  # [in, rank]
    others = graph.weight(f"{name}.coefficients.weight", [module.coefficients], turned=True)
    rank = len(module.rows)
    if whole:
        first, pivots = x, rows
        others = graph.op("MatMul", rows, others)
    else:
        first = graph.op("MatMul", x, rows)
        zeros = graph.op("ConstantOfShape", graph.numbers([rank, rank]))  # takes no bytes
        pivots = graph.op("EyeLike", zeros)
    both = graph.op("Concat", pivots, others, axis=-1)
    return graph.op("MatMul", first, _picked(graph, both, module.order, f"{name}.order"))


def _picked_inputs(graph: Graph, x: ir.Value, module: Any, name: str) -> ir.Value:
    some = _picked(graph, x, module.places, f"{name}.places")
    return product(graph, some, [module.columns], f"{name}.columns")


def _padded_outputs(graph: Graph, x: ir.Value, module: Any, name: str) -> ir.Value:
    """Add a row of zeros below the rows, which all outputs without a row of their own read."""
    rows = functional.pad(module.rows.detach(), (0, 0, 0, 1))
    source = torch.full((module.out_features,), module.rank, dtype=torch.int64)
    source[module.places.long()] = torch.arange(module.rank)
    return _picked(graph, product(graph, x, [rows], f"{name}.rows"), source, f"{name}.places")


def _corrected(graph: Graph, x: ir.Value, module: Any, name: str) -> ir.Value:
    main = "quantized" if type(module).__name__ == "QuantizedDense" else "matrix"
    y = _chain(main)(graph, x, module, name)
    if module.first is None:
        return y
    return graph.op("Add", y, _chain("first", "second")(graph, x, module, name))


def _autoencoder(graph: Graph, x: ir.Value, module: Any, name: str) -> ir.Value:
    hidden = _chain("encoder")(graph, x, module, name)
    hidden = graph.op("Add", hidden, graph.vector(f"{name}.offset", module.offset))
    bent = graph.op("PRelu", hidden, graph.vector(f"{name}.slope", module.slope))
    return _chain("decoder")(graph, bent, module, name)


def _written_out(graph: Graph, x: ir.Value, module: Any, name: str) -> ir.Value:
    return product(graph, x, [module.dense().detach()], name)


def _recoded(graph: Graph, x: ir.Value, module: Any, name: str) -> ir.Value:
    return product(graph, x, [recoded(module)], name)


def _tied_head(graph: Graph, x: ir.Value, module: Any, name: str) -> ir.Value:
    return product(graph, x, [module.table.quantized], name)


def _picked(graph: Graph, x: ir.Value, places: Tensor, name: str) -> ir.Value:
    return graph.op("Gather", x, graph.constant(name, places.to(torch.int64)), axis=-1)


MAPS: dict[str, Callable[[Graph, ir.Value, Any, str], ir.Value]] = {
    "Autoencoder": _autoencoder,
    "BinaryLowRank": _signs,
    "CorrectedDense": _corrected,
    "FewerInputs": _chain("columns"),
    "FewerOutputs": _chain("rows"),
    "Linear": _chain("weight"),
    "LowRank": _chain("first", "second"),
    "PaddedOutputs": _padded_outputs,
    "PickedInputs": _picked_inputs,
    "Pivoted": _pivoted,
    "QuantizedDense": _corrected,
    "QuantizedFewerInputs": _chain("columns"),
    "QuantizedFewerOutputs": _chain("rows"),
    "QuantizedLowRank": _chain("first", "second"),
    "QuantizedPivoted": _pivoted,
    "SharedFollower": _chain("basis", "coefficients"),
    "SharedOwner": _chain("basis", "coefficients"),
    "TensorTrain": _written_out,
    "TiedHead": _tied_head,
    "Trellis": _recoded,
}
"""Format → what adds it; a format that is not here is refused."""
