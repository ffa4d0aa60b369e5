"""A GGUF file with some of its matrices in other types, everything else copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from gguf import (
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf.quants import dequantize

from spectrim.errors import SpectrimError
from spectrim.exporters._gguf_end import close_whole

ALIGNED = 32  # bytes, at which every tensor of a GGUF file begins
_OWN = ("GGUF.", "general.architecture", "general.file_type")  # said anew
_ENDINGS = (".weight", ".bias")

Packed = tuple[np.ndarray, GGMLQuantizationType]
"""Blocks, uint8 [rows, row_bytes], in the order of rows of the model's own matrix; their type."""


class Splice:
    """A GGUF file of a dense model, and which of its tensors is which of the model's matrices."""

    def __init__(self, file: Path, parameters: list[str]) -> None:
        self.reader = GGUFReader(str(file))
        self.tensors = {one.name: one for one in self.reader.tensors}
        self.architecture = self._text("general.architecture")
        names = self._names(parameters)
        self.names = {parameter: names[parameter] for parameter in parameters}

    def fixed(self) -> int:
        """Return the bytes of the file that no matrix takes, and what lies between them at most."""
        whole = Path(self.reader.data.filename).stat().st_size  # type: ignore[arg-type]
        matrices = sum(self.tensors[name].n_bytes for name in self.names.values())
        return whole - matrices + ALIGNED * (len(self.names) + 1) + 256  # and a few entries more

    def write(
        self,
        file: Path,
        packed: Callable[[str], Packed | None],
        values: Callable[[str], np.ndarray],
    ) -> None:
        """Write the file anew.

        packed: the blocks of a parameter, None where it stays. values: its numbers, float32, from
            which the order of rows is told that the file has.
        """
        writer = GGUFWriter(str(file), self.architecture)
        self._copy_entries(writer)
        parameters = {tensor: parameter for parameter, tensor in self.names.items()}
        for tensor in self.reader.tensors:
            made = packed(parameters[tensor.name]) if tensor.name in parameters else None
            if made is None:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
                continue
            blocks, kind = made
            held = dequantize(tensor.data, tensor.tensor_type)
            order = row_order(values(parameters[tensor.name]), held, tensor.name)
            writer.add_tensor(
                tensor.name, blocks if order is None else blocks[order], raw_dtype=kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        close_whole(writer)

    def _names(self, parameters: list[str]) -> Mapping[str, str]:
        known = {name: one for one, name in MODEL_ARCH_NAMES.items()}
        blocks = int(self.reader.get_field(f"{self.architecture}.block_count").contents())  # type: ignore[union-attr]
        table = get_tensor_name_map(known[self.architecture], blocks)
        found = {}
        for parameter in parameters:
            name = table.get_name(parameter, try_suffixes=_ENDINGS)
            if name not in self.tensors:
                raise SpectrimError(
                    f"{parameter} has no tensor of its own in a GGUF file of architecture "
                    f"'{self.architecture}', so no type can be chosen for it; export the model "
                    "with 'spectrim export --to gguf' instead"
                )
            found[parameter] = name
        return found

    def _text(self, key: str) -> str:
        field = self.reader.get_field(key)
        assert field is not None
        return str(field.contents())

    def _copy_entries(self, writer: GGUFWriter) -> None:
        for name, field in self.reader.fields.items():
            if name.startswith(_OWN):
                continue
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
        writer.add_file_type(LlamaFileType.GUESSED)  # of many types


def row_order(ours: np.ndarray, theirs: np.ndarray, name: str) -> np.ndarray | None:
    """Return which of our rows each of their rows is; None where they lie alike.

    llama.cpp turns pairs of neighbours where transformers turns halves, so that the rows of queries
    and keys lie in another order there.

    Raises:
        SpectrimError: they are not the same rows.
    """
    if ours.shape == theirs.shape:
        mine, other = ours.astype(np.float16), theirs.astype(np.float16)
        if np.array_equal(mine, other):
            return None
        places = {row.tobytes(): at for at, row in enumerate(mine)}
        found = [places.get(row.tobytes(), -1) for row in other]
        if min(found) >= 0:
            return np.array(found)
    raise SpectrimError(
        f"{name} holds other numbers in a GGUF file than in the model, so no type can be chosen "
        "for it; export the model with 'spectrim export --to gguf' instead"
    )
