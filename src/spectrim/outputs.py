"""What a user names as an output: refused unless new, empty or ours; then replaced whole.

A folder of ours has a manifest, ``spectrim.json``: size and SHA-256 of every file that we wrote.
Only these are replaced; whatever else lies in the folder stays where it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from spectrim.errors import SpectrimError
from spectrim.processes import own
from spectrim.version import __version__

MANIFEST = "spectrim.json"
# What `shrink` may write beside weights and tokenizer; a user's file of such a name is in the way.
NAMES = frozenset({"config.json", "recipe.yaml", "plan.json", "curves.json", "calibration.json",
                   "README.md", "generation_config.json"})  # fmt: skip
GENERATOR = '<meta name="generator" content="spectrim'
HEAD = 4096  # bytes of a page within which its generator is named
UNMARKED = ("config.json", "recipe.yaml", "plan.json", "curves.json")  # as version 0.1.0 left them
LARGEST = 2**28  # bytes of scores; what is larger, such as weights, is not read to find out
LATER = ("scores.json", "report.html")  # what `evaluate` and `report` write into an output


def refuse_output(
    output: Path, verb: str, cache: Path | None = None, model: str | None = None
) -> None:
    """Raise SpectrimError where a folder of results must not go, before anything is computed.

    A link to a folder is followed.

    Args:
        output: the folder to write.
        verb: what is to write there ("shrink").
        cache: what is kept between runs.
        model: what is read, as the user named it; counts where that is a folder or a file.

    Raises:
        SpectrimError: there is a file, a device, a pipe or a socket; a folder that we did not write
            or whose files were changed since; a folder that is or holds the cache or the model, or
            lies in one of them; a link to nothing.
    """
    refuse_no_folder(output)
    target = output.resolve()
    if model is not None and Path(model).exists():
        _refuse_model(output, Path(model).resolve())
    if cache is not None and cache.resolve().is_relative_to(target):
        raise SpectrimError(
            f"{output} is the cache, or holds it ({cache}); name another output, or another --cache"
        )
    if cache is not None and target.is_relative_to(cache.resolve()):
        raise SpectrimError(f"{output} lies in the cache ({cache}); name another output")
    if not target.exists() or not any(target.iterdir()):
        return
    written = manifest(target)
    if written is None and all((target / name).is_file() for name in UNMARKED):
        raise SpectrimError(
            f"{output} was written by an earlier version, which left no list of its "
            "files; move it away, or name another output"
        )
    if written is None or written["verb"] != verb:
        raise SpectrimError(
            f"{output} is there already and was not written by spectrim {verb}; name another output"
        )
    _refuse_changed(output, target, written["files"])


def refuse_no_folder(output: Path) -> None:
    """Raise SpectrimError where a folder must not go: a file, a device, a pipe, a whole disk."""
    refuse_link_to_nothing(output)
    target = output.resolve()
    if target.exists() and not target.is_dir():
        kind = "a file" if target.is_file() else "neither a file nor a folder"
        raise SpectrimError(f"{output} is there already and is {kind}; name another output")
    if target.is_mount():
        raise SpectrimError(f"{output} is where a disk is mounted; name a folder in it")


def refuse_file(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raise SpectrimError where a single file must not be written: what is there is not ours.

    is_ours: whether an existing file is one that the same option wrote before.
    """
    refuse_link_to_nothing(path)
    target = path.resolve()
    if not target.exists():
        return
    if not target.is_file():
        kind = "a folder" if target.is_dir() else "neither a file nor a folder"
        raise SpectrimError(f"{path} is there already and is {kind}; name another file")
    if target.stat().st_size and not is_ours(target):  # an empty one may be filled, as of mktemp
        raise SpectrimError(
            f"{path} is there already and was not written by spectrim; name another file"
        )


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


@contextmanager
def output_folder(output: Path, verb: str) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the output's place at the end, whole, or is gone.

    Files that lie in the output and that we did not write are carried over.

    Raises:
        SpectrimError: what has come to lie there meanwhile is not ours; the result is then kept
            beside it, under a name that the error says.
    """
    target = output.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (target.with_name(own(f".{target.name}.{kind}")) for kind in ("partial", "old"))
    _undo_killed(target, old)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        record(partial, verb)
        _take_the_place(output, target, verb, partial, old)
    except BaseException:
        _undo_killed(target, old)
        shutil.rmtree(partial, ignore_errors=True)
        raise


def record(folder: Path, verb: str) -> None:
    """Write the manifest of a folder: every file in it is ours."""
    files = {
        path.relative_to(folder).as_posix(): _summary(path)
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
        written["files"][target.name] = _summary(target)
        beside = target.with_name(own(f".{MANIFEST}.partial"))
        beside.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, target.parent / MANIFEST)


def manifest(folder: Path) -> dict[str, Any] | None:
    """Return what the manifest of a folder says; None where there is none that can be read."""
    if not (folder / MANIFEST).is_file():  # opening a pipe would wait for ever
        return None
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = [Path(name) for name in found["files"]]
        inside = all(not name.is_absolute() and ".." not in name.parts for name in names)
        return found if inside and isinstance(found["verb"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_model(output: Path, model: Path) -> None:
    if model.is_relative_to(output.resolve()):
        raise SpectrimError(f"{output} holds the model that is read; name another output")
    if model.is_dir() and output.resolve().is_relative_to(model):
        raise SpectrimError(
            f"{output} lies in the folder of the model that is read; name another output"
        )


def refuse_link_to_nothing(path: Path) -> None:
    """Raise SpectrimError where a link leads nowhere: what it meant is not to be guessed."""
    if path.is_symlink() and not path.exists():  # such as to a disk that is not mounted
        raise SpectrimError(
            f"{path} is a link to nothing; make what it points to, or name another output"
        )


def _refuse_changed(output: Path, target: Path, files: dict[str, Any]) -> None:
    for name, summary in files.items():
        file = target / name
        if file.is_symlink() or file.exists() and (not file.is_file() or _summary(file) != summary):
            raise SpectrimError(
                f"{output / name} was changed since spectrim wrote it; move it away, or name "
                "another output"
            )
    for file in sorted(target.iterdir()):
        in_the_way = file.name in NAMES or file.name.startswith("model") or "token" in file.name
        if file.name not in files and in_the_way:
            raise SpectrimError(
                f"{output / file.name} was not written by spectrim and is in the way; move it "
                "away, or name another output"
            )


def _take_the_place(output: Path, target: Path, verb: str, partial: Path, old: Path) -> None:
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
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
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
    if not old.exists():
        return
    for name, summary in (manifest(old) or {"files": {}})["files"].items():
        if (old / name).is_file() and _summary(old / name) == summary:
            (old / name).unlink()
    (old / MANIFEST).unlink(missing_ok=True)
    for path in sorted(old.rglob("*"), key=lambda path: len(path.parts)):
        there = target / path.relative_to(old)
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


def _undo_killed(target: Path, old: Path) -> None:
    """Put an output back that a run had moved aside when it was killed."""
    if old.is_dir() and not target.exists():
        os.replace(old, target)
    elif old.is_dir():
        _carry_over(old, target)


def _summary(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
