"""One GGUF file for llama.cpp, Ollama, LM Studio and Jan: packed maps keep their codes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
)

from spectrim.exporters._dense_tensors import DenseTensors
from spectrim.exporters._gguf_end import close_whole
from spectrim.exporters._gguf_families import family_of
from spectrim.exporters._gguf_layout import Layout, layout_of, tell
from spectrim.exporters._gguf_notes import file_type, notes
from spectrim.exporters._gguf_tensors import stored_tensors
from spectrim.exporters._gguf_types import Choose, Stored, as_held, encoded
from spectrim.exporters._gguf_vocabulary import tell_vocabulary
from spectrim.exporters._words import bytes_beside
from spectrim.model import sources
from spectrim.model.licence import licence_of
from spectrim.model.sources import Source
from spectrim.outputs.manifest import MAKER
from spectrim.progress import Progress
from spectrim.version import __version__

WRITES = "file"

_NUMPY = np.dtype(np.float32)  # of what comes in the blocks of a type, for the writer


def gguf(
    source: Path, output: Path, progress: Progress | None, choose: Choose = as_held
) -> list[str]:
    """Write a model folder as one GGUF file and return what a user should know of it.

    choose: the type of each tensor; by default that which keeps what the folder holds.

    Raises:
        SpectrimError: llama.cpp does not run such a model, or its tokenizer.
    """
    held = DenseTensors(source)
    family = family_of(held.stock.config)
    layout = layout_of(held, family)
    tensors = stored_tensors(held, family, layout)
    kinds = [choose(one) for one in tensors]
    writer = GGUFWriter(output, MODEL_ARCH_NAMES[layout.arch])
    try:
        told = _tell(writer, source, held, layout)
        family.tell(writer, held.stock.config)
        writer.add_file_type(file_type(tensors, kinds))
        written = _write(writer, tensors, kinds, progress)
        close_whole(writer)
    finally:
        writer.close()
    return [*told, *notes(held, layout, tensors, kinds), bytes_beside(written, held.bytes())]


def _tell(writer: GGUFWriter, source: Path, held: DenseTensors, layout: Layout) -> list[str]:
    """Write the metadata: who made the file, what it holds, and its tokenizer."""
    writer.add_quantized_by(f"{MAKER}{__version__}")
    writer.add_name(source.resolve().name)
    if (known := licence_of(source)) is not None:
        writer.add_license(known)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    config = held.stock.config
    tell(writer, config, layout)
    generation = getattr(held.model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None) or []
    ends = [ends] if isinstance(ends, int) else list(ends)
    tokenizer = sources.tokenizer(Source(str(source), source, ""))
    return tell_vocabulary(writer, tokenizer, config.vocab_size, ends)


def _write(
    writer: GGUFWriter,
    tensors: list[Stored],
    kinds: list[GGMLQuantizationType],
    progress: Progress | None,
) -> int:
    """Write the tensors one by one and return how many bytes they take."""
    total = 0
    for one, kind in zip(tensors, kinds, strict=True):
        block, size = GGML_QUANT_SIZES[kind]
        count = math.prod(one.shape) // block * size
        writer.add_tensor_info(one.name, one.shape, _NUMPY, count, raw_dtype=kind)
        total += count
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (one, kind) in enumerate(zip(tensors, kinds, strict=True), start=1):
        writer.write_tensor_data(encoded(one, kind))
        if progress is not None:
            progress(done, len(tensors), "writing tensors")
    return total
