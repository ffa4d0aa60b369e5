"""Embedding and head in few bits, each table once, whoever reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectrim.formats import formats
from spectrim.formats.packed.quantized import Quantized
from spectrim.formats.packed.scales import Grid
from spectrim.job.job import Job, load_rest
from spectrim.rounding.gptq import gptq
from spectrim.rounding.nearest import QuantizedMatrix, nearest
from spectrim.walk.moments import damped, inverse_root

GRIDS = {8: Grid(8, 0, True), 4: Grid(4, 32, False)}
AT_ONCE = 1 << 22  # weights that are rounded at a time
DAMPING = 1e-2  # of the mean diagonal of what a table's errors are measured by


class TableRounding(NamedTuple):
    """How a table is rounded."""

    grid: Grid
    metric: Float[Tensor, "hidden hidden"] | None = None
    """What the errors of a row are measured by, as GPTQ takes it; None: each number by itself."""

    def __call__(
        self, table: Float[Tensor, "words hidden"], dtype: torch.dtype
    ) -> list[QuantizedMatrix]:
        """Return a table rounded, some rows at a time, as a large one takes much memory else.

        dtype: of the row scales.

        Raises:
            ArithmeticError: the metric is far from positive semidefinite.
        """
        some = table.split(max(1, AT_ONCE // table.shape[1]))
        if self.metric is None:
            ones = torch.ones(table.shape[1])
            return [nearest(rows, ones, self.grid, dtype) for rows in some]
        inputs = damped(self.metric, DAMPING)
        root = inverse_root(inputs).float()
        return [gptq(rows, inputs, self.grid, dtype, root=root) for rows in some]


def quantize_embedding_and_head(
    job: Job, roundings: Mapping[str, TableRounding]
) -> dict[str, Tensor]:
    """Return all tensors outside the blocks, those of embedding and head packed.

    ``job.ends`` gets what is to stand for them, and ``job.model`` the values that they now have, so
    that later stages see what they will work with.
    roundings: by the path of the module; what has none stays as it is, a head that is tied to the
        embedding follows that.
    """
    rest = job.rest()
    embed, head = job.architecture.embed, job.architecture.head
    values: dict[str, Tensor] = {}
    for path in (embed, head):
        if path in job.ends or path not in roundings:  # the first where tied to the embedding
            continue
        module: Any = job.model.get_submodule(path)
        readers = [name for name, _ in _readers(job.model, module.weight)]
        names = [name for reader in readers if (name := f"{reader}.weight") in rest]
        made = _quantized(rest[names[0]], module, roundings[path], job.weights.dtype())
        for name in names:
            del rest[name]
        held = made.part("quantized")
        rest |= {f"{path}.quantized.{name}": tensor for name, tensor in held.state_dict().items()}
        values[f"{path}.weight"] = held.dense().detach()
        job.ends |= _entries(job.model, path, made, readers)
    load_rest(job.model, values, job.compute_dtype)
    return rest


def _readers(model: nn.Module, table: nn.Parameter) -> list[tuple[str, nn.Module]]:
    """Return every module that has this parameter for its weight, by its path."""
    each = model.named_modules(remove_duplicate=False)
    return [(name, one) for name, one in each if getattr(one, "weight", None) is table]


def _quantized(
    table: Float[Tensor, "out in"],
    module: nn.Module,
    rounding: TableRounding,
    dtype: torch.dtype,
) -> Quantized:
    grid, (out, inner) = rounding.grid, table.shape
    extra: dict[str, float] = {}
    name = "quantized_dense"
    if isinstance(module, nn.Embedding):
        name, extra["embed_scale"] = "quantized_embedding", row_factor(module, dtype)
    biased = getattr(module, "bias", None) is not None
    made: Quantized = formats.get(name)(inner, out, min(out, inner), biased, grid, **extra)
    made = made.to(dtype)
    parts = [one.pieces("quantized") for one in rounding(table, dtype)]
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    with torch.no_grad():
        made.take(whole)
    return made


def _entries(
    model: nn.Module, path: str, made: Quantized, readers: list[str]
) -> dict[str, dict[str, Any]]:
    """Return the entries in config.json of a table and of those who read it, by path."""
    form = "quantized_dense" if "embed_scale" not in made.shape() else "quantized_embedding"
    entries: dict[str, dict[str, Any]] = {path: {"format": form, **made.shape()}}
    shape = {key: made.shape()[key] for key in ("in_features", "out_features", "rank")}
    for reader in readers:
        module = model.get_submodule(reader)
        if reader == path:
            continue
        tied: dict[str, Any] = {**shape, "owner": path}
        if isinstance(module, nn.Embedding):
            scale = row_factor(module, made.weight.dtype)
            entries[reader] = {
                "format": "tied_embedding",
                **tied,
                "bias": False,
                "embed_scale": scale,
            }
        else:
            biased = getattr(module, "bias", None) is not None
            entries[reader] = {"format": "tied_head", **tied, "bias": biased}
    return entries


def row_factor(module: nn.Module, dtype: torch.dtype) -> float:
    """Return what a family multiplies the rows of its embedding by, a tensor cast as it does."""
    scale = getattr(module, "embed_scale", 1.0)
    return float(scale.to(dtype)) if isinstance(scale, Tensor) else float(scale)
