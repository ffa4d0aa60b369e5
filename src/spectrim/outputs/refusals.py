"""What must not be written over, said before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spectrim.errors import SpectrimError
from spectrim.outputs.manifest import LATER, MANIFEST, are_scores, is_page, manifest, summary

# What `shrink` may write beside weights; a user's file of such a name is in the way.
NAMES = frozenset({
    "config.json", "generation_config.json", "recipe.yaml", "plan.json", "curves.json",
    "calibration.json", "README.md", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "chat_template.jinja", "model.safetensors.index.json",
})  # fmt: skip
UNMARKED = ("config.json", "recipe.yaml", "plan.json", "curves.json")  # as version 0.1.0 left them


def refuse_output(
    output: Path, verb: str, cache: Path | None = None, model: Path | None = None
) -> None:
    """Raise SpectrimError where a folder of results must not go, before anything is computed.

    A link to a folder is followed.

    Args:
        output: the folder to write.
        verb: what is to write there ("shrink").
        cache: what is kept between runs.
        model: the folder or file that is read, where it lies on this machine.

    Raises:
        SpectrimError: there is a file, a device, a pipe or a socket; a folder that we did not write
            or whose files were changed since; a folder that is or holds the cache or the model, or
            lies in one of them; the folder that the process runs in; a link to nothing.
    """
    refuse_no_folder(output)
    target = output.resolve()
    if model is not None:
        _refuse_model(output, model.resolve())
    if cache is not None and cache.resolve().is_relative_to(target):
        raise SpectrimError(
            f"{output} is the cache, or holds it ({cache}); name another output, or another --cache"
        )
    if cache is not None and target.is_relative_to(cache.resolve()):
        raise SpectrimError(f"{output} lies in the cache ({cache}); name another output")
    if not target.exists():
        return
    if Path.cwd().is_relative_to(target):  # which would be moved away under it
        raise SpectrimError(f"{output} is or holds the folder that you are in; name another output")
    if not any(target.iterdir()):
        return
    written = manifest(target)
    unmarked = not os.path.lexists(target / MANIFEST)
    if unmarked and all((target / name).is_file() for name in UNMARKED):
        raise SpectrimError(
            f"{output} was written by an earlier version, which left no list of its "
            "files; move it away, or name another output"
        )
    if written is None or written["verb"] != verb:
        raise SpectrimError(
            f"{output} is there already and was not written by spectrim {verb}; name another output"
        )
    _refuse_changed(output, target, written["files"])
    _refuse_stuck(output, target)


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
    for name, wanted in files.items():
        file = target / name
        if name in LATER and (are_scores(file) or is_page(file)):
            continue  # written anew by a run that was killed before it could say so
        changed = os.path.lexists(file) and (not file.is_file() or summary(file) != wanted)
        if changed or file.resolve() != file:  # through a link, it lies elsewhere
            raise SpectrimError(
                f"{output / name} was changed since spectrim wrote it; move it away, or name "
                "another output"
            )
    for file in sorted(target.iterdir()):
        in_the_way = file.name in NAMES or file.suffix == ".safetensors"
        if file.name not in files and in_the_way:
            raise SpectrimError(
                f"{output / file.name} was not written by spectrim and is in the way; move it "
                "away, or name another output"
            )


def _refuse_stuck(output: Path, target: Path) -> None:
    """Raise SpectrimError where the folder could not be emptied, which would be found too late."""
    for path in (target, *(path for path in target.rglob("*") if path.is_dir())):
        if path.is_symlink():
            continue
        if path != target and path.is_mount():
            raise SpectrimError(f"a disk is mounted in {output} ({path}); name another output")
        if not os.access(path, os.W_OK | os.X_OK):
            raise SpectrimError(f"{path} must not be changed; name another output than {output}")
