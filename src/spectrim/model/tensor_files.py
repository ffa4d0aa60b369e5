"""Where each tensor of a safetensors checkpoint lies, and reading one of them.

The files are read with plain reads instead of being mapped: what a process then needs, in memory
and in address space, is the tensors that it asked for, whatever the size of the files.
Format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectrim.errors import SpectrimError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_COMPARED = 1 << 20  # bytes compared at a time


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies on disk."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, from the start of the file."""
    size: int
    """Number of bytes."""


def stored(folder: Path) -> dict[str, Entry]:
    """Return where every tensor of a model folder lies, by its name in the files.

    Raises SpectrimError if there are no safetensors, a shard is missing, or a file is damaged.
    """
    if (folder / SINGLE).is_file():
        return stored_in(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise no_weights(str(folder), [path.name for path in folder.iterdir()])
    places = shards_of(folder / INDEX)
    shards = {shard: stored_in(folder / shard) for shard in sorted(set(places.values()))}
    for name, shard in places.items():
        if name not in shards[shard]:
            raise SpectrimError(
                f"{folder / INDEX} places '{name}' in {shard}, which does not hold it; "
                "fetch the model again"
            )
    return {name: entry for entries in shards.values() for name, entry in entries.items()}


def stored_in(file: Path) -> dict[str, Entry]:
    """Return where every tensor of one safetensors file lies.

    Raises SpectrimError if the file is missing, cut off, or not what the format says.
    """
    if not file.is_file():
        raise SpectrimError(f"{file} is missing; fetch the model again")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > size - 8:
            raise SpectrimError(
                f"{file} is cut off inside its header, or no safetensors file; fetch it again"
            )
        header = _header(file, stream.read(length))
    entries = {name: _entry(file, name, field, 8 + length) for name, field in header.items()}
    _check_layout(file, entries, 8 + length, size)
    return entries


def head(entry: Entry, size: int) -> bytes:
    """Return the first bytes of a tensor, all of them where it has no more."""
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        return stream.read(min(size, entry.size))


def read(stream: FileIO, entry: Entry) -> Tensor:
    """Return one tensor, which owns its memory, from its open file.

    Raises SpectrimError if the file has become shorter since its header was read.
    """
    flat = torch.empty(math.prod(entry.shape), dtype=entry.dtype)
    rest = flat.view(torch.uint8).numpy().data
    stream.seek(entry.start)
    while rest:  # one call reads 2 GB at most
        count = stream.readinto(rest)
        if not count:
            raise SpectrimError(f"{entry.file} has become shorter while it was read; run again")
        rest = rest[count:]
    return flat.reshape(entry.shape)


def same_content(one: Entry, other: Entry) -> bool:
    """Return whether two tensors are equal bit for bit, without holding either in memory."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs = zip(_pieces(one), _pieces(other), strict=True)
    return all(piece == twin for piece, twin in pairs)


def main_dtype(entries: Iterable[Entry]) -> torch.dtype:
    """Return the floating-point type that takes the most bytes, float32 where there is none."""
    sizes: Counter[torch.dtype] = Counter({torch.float32: 0})
    for entry in entries:
        if entry.dtype.is_floating_point:
            sizes[entry.dtype] += entry.size
    return max(sizes, key=lambda dtype: sizes[dtype])


def no_weights(where: str, names: Iterable[str]) -> SpectrimError:
    """Return the error for a model without safetensors, whose files are ``names``."""
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if not pickles:
        return SpectrimError(f"{where} has no weights; expected {SINGLE} or {INDEX}")
    return SpectrimError(
        f"{where} has its weights only as a pickle ({pickles[0]}), which can run any code when it "
        "is loaded; expected safetensors"
    )


def shards_of(index: Path) -> dict[str, str]:
    """Return the shard that each tensor lies in; SpectrimError where the index is damaged."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(shard) for name, shard in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SpectrimError(
            f"{index} is damaged; expected JSON with a 'weight_map', fetch it again"
        ) from error


def _header(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SpectrimError(f"{file} has a header that is not JSON; fetch it again") from error
    if not isinstance(header, dict):
        raise SpectrimError(f"{file} has a header that names no tensors; fetch it again")
    header.pop("__metadata__", None)
    return header


def _entry(file: Path, name: str, field: Any, base: int) -> Entry:
    try:
        code, shape, (begin, end) = field["dtype"], tuple(field["shape"]), field["data_offsets"]
        well_formed = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        well_formed = False
    if not well_formed:
        raise SpectrimError(f"{file} describes tensor '{name}' wrongly; fetch it again")
    if code not in DTYPES:
        known = ", ".join(DTYPES)
        raise SpectrimError(f"{file} holds tensor '{name}' as {code}; expected one of {known}")
    needed = math.prod(shape) * DTYPES[code].itemsize
    if end - begin != needed:
        raise SpectrimError(
            f"{file} gives tensor '{name}' {end - begin} bytes, but its shape {list(shape)} takes "
            f"{needed}; fetch it again"
        )
    return Entry(file, DTYPES[code], shape, base + begin, end - begin)


def _check_layout(file: Path, entries: Mapping[str, Entry], base: int, size: int) -> None:
    end, last = base, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start < end:
            raise SpectrimError(f"in {file} '{last}' and '{name}' overlap; fetch it again")
        end, last = entry.start + entry.size, name
    if end > size:
        raise SpectrimError(
            f"{file} is cut off: tensor '{last}' ends at byte {end}, the file at byte {size}; "
            "fetch it again"
        )
    if end < size:
        raise SpectrimError(
            f"{file} goes on for {size - end} bytes behind its last tensor; fetch it again"
        )


def _pieces(entry: Entry) -> Iterator[bytes]:
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        for offset in range(0, entry.size, _COMPARED):
            yield stream.read(min(_COMPARED, entry.size - offset))
