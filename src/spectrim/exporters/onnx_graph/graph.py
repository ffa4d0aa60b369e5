"""Nodes and constants of an ONNX graph as they are added; what is there already is used again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

OPSETS = {"": 21, "com.microsoft": 1}
IR_VERSION = 10
INLINE = 1024  # bytes up to which a constant stands in model.onnx itself
DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float16: ir.DataType.FLOAT16,
}


class Graph:
    """A graph in the making.

    Weights are stored in the dtype that they have, and one Cast to float32 stands behind each. It
    reads a constant, so that ONNX Runtime carries it out once, when it loads the model.
    """

    def __init__(self) -> None:
        self.tape = ir.tape.Tape()
        self._made: dict[tuple[object, ...], Any] = {}
        self._kept: list[object] = []

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node of ONNX's own operators, which has one output."""
        return self.tape.op(kind, inputs, attributes)

    def ops(self, kind: str, count: int, *inputs: ir.Value | None, **attributes: Any) -> list[Any]:
        """Add a node of ONNX's own operators that has several outputs."""
        return list(self.tape.op_multi_out(kind, inputs, attributes, num_outputs=count))

    def microsoft(
        self, kind: str, count: int, *inputs: ir.Value | None, **attributes: Any
    ) -> list[Any]:
        """Add a node of ONNX Runtime's own operators, with so many outputs."""
        domain = "com.microsoft"
        return list(
            self.tape.op_multi_out(kind, inputs, attributes, num_outputs=count, domain=domain)
        )

    def once(self, key: tuple[object, ...], make: Callable[[], Any], *kept: object) -> Any:
        """Return what was made for a key before, or make it.

        kept: what must live as long as the graph, since the key names it by its address.
        """
        if key not in self._made:
            self._made[key] = make()
            self._kept += kept
        return self._made[key]

    def numbers(self, values: Sequence[int] | int) -> ir.Value:
        """Return a constant of int64 numbers, of one dimension or none."""
        many = values if isinstance(values, int) else tuple(values)
        name = "numbers_" + str(many).translate(str.maketrans(" ,()-", "____m"))
        return self._constant(("numbers", many), name, torch.tensor(values, dtype=torch.int64))  # type: ignore[no-any-return]

    def constant(self, name: str, tensor: Tensor) -> ir.Value:
        """Return a constant as it is; the name is its key."""
        return self._constant((name,), name, tensor)  # type: ignore[no-any-return]

    def vector(self, name: str, tensor: Tensor) -> ir.Value:
        """Return a small constant in float32."""
        return self.constant(name, tensor.detach().float().contiguous())

    def weight(self, name: str, parts: Sequence[Tensor], *, turned: bool = False) -> ir.Value:
        """Return matrices [out, in] of one dtype, one below the other, in float32.

        turned: as [in, out]. What they hold is read only when the file is written.
        """
        places = tuple((part.data_ptr(), tuple(part.shape)) for part in parts)

        def make() -> ir.Value:
            return self._single(self.tape.initializer(_lazy(name, parts, turned)), parts[0].dtype)

        return self.once(("weight", places, turned), make, *parts)  # type: ignore[no-any-return]

    def table(self, name: str, tensor: Tensor) -> ir.Value:
        """Return a matrix in its own dtype and orientation, as rows are looked up in it."""
        key = ("table", tensor.data_ptr(), tuple(tensor.shape))
        stored = _lazy(name, [tensor], turned=False)
        return self.once(key, lambda: self.tape.initializer(stored), tensor)  # type: ignore[no-any-return]

    def _single(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        return value if dtype == torch.float32 else self.single(value)

    def single(self, value: ir.Value) -> ir.Value:
        """Return a value cast to float32."""
        return self.op("Cast", value, to=ir.DataType.FLOAT)

    def _constant(self, key: tuple[object, ...], name: str, tensor: Tensor) -> Any:
        return self.once(key, lambda: self.tape.initializer(TorchTensor(tensor, name=name)))

    def save(self, inputs: list[ir.Value], outputs: list[ir.Value], folder: Path) -> None:
        """Write model.onnx, and what is large into model.onnx.data beside it."""
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports=OPSETS,
            name="decoder",
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="spectrim")
        ir.save(
            model,
            folder / "model.onnx",
            external_data="model.onnx.data",
            size_threshold_bytes=INLINE,
        )


def _lazy(name: str, parts: Sequence[Tensor], turned: bool) -> ir.LazyTensor:
    """Return matrices one below the other, put together when they are written."""
    rows, columns = sum(part.shape[0] for part in parts), parts[0].shape[1]

    def make() -> TorchTensor:
        whole = torch.cat([part.detach() for part in parts]) if len(parts) > 1 else parts[0]
        return TorchTensor((whole.T if turned else whole).detach().contiguous(), name=name)

    shape = (columns, rows) if turned else (rows, columns)
    return ir.LazyTensor(make, DTYPES[parts[0].dtype], ir.Shape(shape), name=name)
