"""What can be run: names of models → a file or folder, and the engine for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spectrim.engines import engine_of
from spectrim.errors import SpectrimError
from spectrim.model import gguf, sources


@dataclass(frozen=True)
class Runnable:
    """A model that an engine runs."""

    name: str
    """What it is called: the last part of its path, or the name that was given."""
    path: Path
    engine: str


def runnable(name: str, cache: Path | None = None) -> Runnable:
    """Return what runs a model: a folder of ours or an ordinary one, a GGUF file, an ONNX folder.

    Raises:
        SpectrimError: there is no such model, or nothing runs it.
    """
    path = sources.local(name)
    if path is not None:
        engine = engine_of(path)
        if engine == "llama_cpp":
            gguf.checked(path)  # llama.cpp ends the process where it is lied to
        if engine != "transformers":
            return Runnable(path.resolve().name, path, engine)
    source = sources.resolve(name, cache or sources.default_cache())
    called = name if path is None else path.resolve().name
    return Runnable(called, source.folder, engine_of(source.folder))


def checked_threads(threads: int | None) -> int:
    """Return how many threads to take: as many as this process may use where none are given."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if threads is not None and threads < 1:
        raise SpectrimError(f"--threads {threads} runs nothing; expected 1 or more")
    return threads or usable or 1
