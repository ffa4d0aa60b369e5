"""An output folder that appears whole or not at all, and keeps what its user has put into it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from spectrim.errors import SpectrimError
from spectrim.outputs.manifest import (
    MANIFEST,
    are_scores,
    is_page,
    manifest,
    record,
    recorded,
    summary,
    write_manifest,
)
from spectrim.outputs.refusals import refuse_output
from spectrim.processes import own
from spectrim.version import __version__


@contextmanager
def output_folder(output: Path, verb: str) -> Iterator[Path]:
    """Give a folder to fill, empty but for its manifest; it takes the output's place, or is gone.

    Files that lie in the output and that we did not write are carried over.

    Raises:
        SpectrimError: what has come to lie there meanwhile is not ours; the result is then kept
            beside it, under a name that the error says.
    """
    target = output.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _undo_killed(target)
    partial = _unfinished(target, verb)
    try:
        yield partial
        record(partial, verb)
        _take_the_place(output, target, verb, partial)
    except BaseException:
        _undo_killed(target)
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; it takes the file's place at the end. A link to a file is followed.

    Where it lies in an output folder, and is one of its files, the manifest says what it is now.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _unfinished_file(target)
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    recorded(target)


def _take_the_place(output: Path, target: Path, verb: str, partial: Path) -> None:
    """Give a finished folder its name, the user's files of an older one carried over."""
    try:
        refuse_output(output, verb)
        if target.is_dir():
            _refuse_both(output, target, partial)
    except SpectrimError as error:
        named = (target.with_name(f"{target.name}-{number}") for number in count(1))
        spare = next(path for path in named if not path.exists())
        os.replace(partial, spare)
        raise SpectrimError(f"{error}; what was made is in {spare}") from None
    old = None
    if target.exists() and any(target.iterdir()):
        old = next(path for path in _beside(target, "old") if not os.path.lexists(path))
        write_manifest(target, {**(manifest(target) or {}), "aside": True})
        os.replace(target, old)
    os.replace(partial, target)
    if old is not None:
        _carry_over(old, target)


def _refuse_both(output: Path, target: Path, partial: Path) -> None:
    """Raise SpectrimError where a file of the user has the name of one that was made."""
    ours = {MANIFEST, *(manifest(target) or {"files": ()})["files"]}
    for path in sorted(partial.rglob("*")):
        name = path.relative_to(partial).as_posix()
        there = target / name
        if path.is_dir() or name in ours or not os.path.lexists(there):
            continue
        if not (are_scores(there) if there.suffix == ".json" else is_page(there)):
            raise SpectrimError(
                f"{output / name} was not written by spectrim and is in the way; name another "
                "output"
            )


def _carry_over(old: Path, target: Path) -> None:
    """Move what is not ours out of an older output, and remove the rest of it."""
    for name, wanted in (manifest(old) or {"files": {}})["files"].items():
        file = old / name
        if file.resolve() == file and file.is_file() and summary(file) == wanted:
            file.unlink()
    for path in sorted(old.rglob("*"), key=lambda path: len(path.parts)):
        there = target / path.relative_to(old)
        if path == old / MANIFEST:  # goes last: by it a killed run's folder is known
            continue
        if path.is_dir() and not path.is_symlink() and there.is_dir():
            continue
        if os.path.lexists(path):
            there.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, _free(there))
    shutil.rmtree(old, ignore_errors=True)


def _free(path: Path) -> Path:
    """Return a path that nothing has yet: itself, or with `.kept` behind it."""
    while os.path.lexists(path):
        path = path.with_name(f"{path.name}.kept")
    return path


def _beside(target: Path, kind: str) -> Iterator[Path]:
    """Yield hidden names beside an output, one after the other."""
    return _numbered(target, own(f".{target.name}.{kind}"))


def _numbered(target: Path, name: str) -> Iterator[Path]:
    """Yield a name beside an output, then that name with numbers."""
    yield target.with_name(name)
    yield from (target.with_name(f"{name}.{number}") for number in count(1))


def _unfinished(target: Path, verb: str) -> Path:
    """Make the folder that an output is written in; one that a killed run of ours left is removed.

    It has a manifest from the beginning, which says which process fills it.
    """
    for partial in _beside(target, "partial"):
        known = manifest(partial)
        if known is not None and not _runs(known.get("process")):
            shutil.rmtree(partial)
        if not os.path.lexists(partial):
            break
    partial.mkdir()
    said = {"spectrim": __version__, "verb": verb, "files": {}, "process": os.getpid()}
    (partial / MANIFEST).write_text(json.dumps(said), encoding="utf-8")
    return partial


def _unfinished_file(target: Path) -> Path:
    """Return the path that an output is written to, which no other process takes.

    What a killed run of ours left is removed: the name says which process wrote it.
    """
    mark = f".{target.name}.partial-"
    for path in target.parent.iterdir():
        process = path.name.removeprefix(mark)
        written = path.name.startswith(mark) and process.isdecimal()
        if written and path.is_file() and not path.is_symlink() and not _runs(int(process)):
            path.unlink()
    own_names = _numbered(target, f"{mark}{os.getpid()}")
    return next(path for path in own_names if not os.path.lexists(path))


def _runs(process: object) -> bool:
    """Return whether another process of that number runs on this machine."""
    if not isinstance(process, int) or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


def _undo_killed(target: Path) -> None:
    """Put an output back that a run of ours had moved aside when it was killed."""
    for old in _beside(target, "old"):
        if not os.path.lexists(old):
            return
        known = manifest(old)
        if known is None or "aside" not in known:  # whoever's it is
            continue
        if target.exists():
            _carry_over(old, target)
        else:
            os.replace(old, target)
            del known["aside"]
            write_manifest(target, known)
