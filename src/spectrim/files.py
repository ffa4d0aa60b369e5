"""Files that appear whole or not at all, locks on folders of the cache, and records that grow."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from spectrim.processes import own


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file gets its name at the end, and goes where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(own(f".{path.name}.partial"))
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from filling the same folder of the cache; one waits for the other."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        yield


class Record:
    """Values by key in a file that grows line by line; a line that was cut short is forgotten."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.values: dict[str, dict[str, float]] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            with atomic_file(file) as partial:
                partial.write_text(whole, encoding="utf-8")
        for line in whole.splitlines():
            key, values = json.loads(line)
            self.values[key] = values

    def add(self, key: str, values: dict[str, float]) -> None:
        """Keep values, at once."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, values]) + "\n")
        self.values[key] = values


def key_of(*parts: object) -> str:
    """Return a short name for a combination of values, the same in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]
