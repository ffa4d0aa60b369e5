"""What is ours: the manifest of an output folder, and the marks of scores and pages.

The manifest, ``spectrim.json``, has size and SHA-256 of every file that we wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from spectrim.processes import own
from spectrim.version import __version__

MANIFEST = "spectrim.json"
GENERATOR = '<meta name="generator" content="spectrim'
MAKER = "spectrim "  # and the version, in a file's field of who made it
HEAD = 4096  # bytes of a page, or of a model, within which its generator is named
LARGEST = 2**28  # bytes of scores; what is larger, such as weights, is not read to find out
LATER = ("scores.json", "report.html")  # what `evaluate` and `report` write into an output


def are_scores(file: Path) -> bool:
    """Return whether a file is JSON that `spectrim evaluate` or `shrink` wrote: it says so."""
    if not file.is_file() or file.stat().st_size > LARGEST:
        return False
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return "spectrim" in found["settings"]["versions"] and isinstance(found["rows"], list)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def is_page(file: Path) -> bool:
    """Return whether a file is a page of ours: it names its generator."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return GENERATOR.encode() in stream.read(HEAD)


def is_export(file: Path) -> bool:
    """Return whether a single file is a model that we wrote: its beginning names its maker.

    It is to be a GGUF besides, as a text about us has our name, too.
    """
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    return head.startswith(b"GGUF") and MAKER.encode() in head


def record(folder: Path, verb: str) -> None:
    """Write the manifest of a folder: every file in it is ours."""
    files = {
        path.relative_to(folder).as_posix(): summary(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    said = {"spectrim": __version__, "verb": verb, "files": files}
    (folder / MANIFEST).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def recorded(file: Path) -> None:
    """Bring the manifest of the folder that a file of ours was written into up to date."""
    target = file.resolve()
    written = manifest(target.parent)
    if written is not None and target.name in (*written["files"], *LATER):
        written["files"][target.name] = summary(target)
        write_manifest(target.parent, written)


def write_manifest(folder: Path, said: dict[str, Any]) -> None:
    """Write a manifest, whole or not at all."""
    beside = folder / own(f".{MANIFEST}.partial")
    beside.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, folder / MANIFEST)


def manifest(folder: Path) -> dict[str, Any] | None:
    """Return what the manifest of a folder says; None where there is none that can be read."""
    if not (folder / MANIFEST).is_file():  # opening a pipe would wait for ever
        return None
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(found["files"], dict):
            return None
        names = [Path(name) for name in found["files"]]
        inside = all(not name.is_absolute() and ".." not in name.parts for name in names)
        return found if inside and isinstance(found["verb"], str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def summary(file: Path) -> dict[str, Any]:
    """Return what the manifest says of a file: its bytes and their SHA-256."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
