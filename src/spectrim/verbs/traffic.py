"""What decoding has to read: a model's bytes per token, and how fast this machine reads bytes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from gguf import GGUFReader

from spectrim.errors import SpectrimError
from spectrim.metrics.size import tensor_bytes
from spectrim.model import gguf, sources
from spectrim.model.architectures import architecture_of
from spectrim.model.tensor_files import stored
from spectrim.verbs.runnable import Runnable

_BYTES = 2**29  # far more than caches hold
_TRIES = 4


@dataclass(frozen=True)
class Weights:
    """How large a model's weights are."""

    disk: int
    """Bytes of its files."""
    token: int
    """Bytes that decoding a token reads: all but an embedding that is no head, of which it reads
    one row. All experts of a mixture are counted."""


def weights(model: Runnable) -> Weights:
    """Return how large a model's weights are, in whichever form.

    Raises:
        SpectrimError: its files are damaged or incomplete, or it is of an unknown family.
    """
    if model.path.is_file():
        return Weights(
            model.path.stat().st_size, _read(_of_gguf(model.path), "token_embd", "output")
        )
    if model.engine != "transformers":
        graphs = [file for file in model.path.iterdir() if ".onnx" in file.name]
        size = sum(file.stat().st_size for file in graphs)
        return Weights(size, size)
    entries = stored(model.path)
    files = {entry.file for entry in entries.values()}
    settings = sources.config(sources.Source(model.name, model.path, ""))
    family = architecture_of(settings)
    disk = sum(file.stat().st_size for file in files)
    return Weights(disk, _read(tensor_bytes(model.path), family.embed, family.head))


def _of_gguf(file: Path) -> dict[str, int]:
    gguf.metadata(file)
    try:
        return {str(one.name): int(one.n_bytes) for one in GGUFReader(file).tensors}
    except (ValueError, KeyError, IndexError, TypeError) as error:  # as the package has it
        raise SpectrimError(f"{file} is damaged or cut off; export it again") from error


def bandwidth(threads: int) -> float:
    """Return the bytes that so many threads read in a second, the best of a few tries."""
    parts = np.array_split(np.ones(_BYTES // 4, dtype=np.float32), threads)
    taken = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_TRIES):
            start = perf_counter()
            _all(pool.map(np.max, parts))
            taken.append(perf_counter() - start)
    return _BYTES / min(taken)


def _all(results: Iterable[object]) -> None:
    for _ in results:
        pass


def _read(sizes: dict[str, int], embedding: str, head: str) -> int:
    """Return the bytes of all tensors, without the embedding's where the head has its own."""
    untied = any(name.startswith(f"{head}.") for name in sizes)
    return sum(
        size for name, size in sizes.items() if not (untied and name.startswith(f"{embedding}."))
    )
