"""The Pareto front of a model: the best that can be made of it at each of several sizes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spectrim.errors import SpectrimError
from spectrim.model import sources
from spectrim.model.runtime import Size
from spectrim.outputs.manifest import is_page
from spectrim.outputs.refusals import refuse_file, refuse_no_folder, refuse_output
from spectrim.progress import Progress
from spectrim.recipe.recipe import Keep, Recipe
from spectrim.report.page import write_page
from spectrim.verbs import auto
from spectrim.verbs.shrink import shrink


@dataclass(frozen=True)
class Front:
    """The folders that are made, and the sizes that there was no time for."""

    made: list[Path]
    left: list[Keep | Size]


def search(
    asked: Recipe,
    sizes: Sequence[Keep | Size],
    output: Path,
    *,
    minutes: float | None,
    cache: Path,
    progress: Progress,
) -> Front:
    """Make the best model of each size, a folder each in ``output``, and one page about them all.

    What is there is kept: the same call goes on with the sizes that are left. Where one cannot be
    met, the page is about those that are made.
    asked: says model, calibration and seed; its stages do not count.
    minutes: for all sizes together; no size is begun after them, and each learns for its share of
        them, the same however often the search was interrupted. None: no limit, nothing learns.

    Raises:
        SpectrimError: a size cannot be met, what is there was made of something else, or anything
            that ``shrink`` refuses.
    """
    folders = {size: output / _name(size) for size in sizes}
    _refuse(asked, output, folders.values(), cache)
    began = time.monotonic()
    made: list[Path] = []
    left: list[Keep | Size] = []
    try:
        for size, folder in folders.items():
            if not _is_made(folder):
                spent = (time.monotonic() - began) / 60
                if minutes is not None and spent > minutes:
                    left.append(size)
                    continue
                share = None if minutes is None else minutes / len(folders)
                choice = auto.choose(
                    asked, size, folder, cache=cache, progress=progress, minutes=share
                )
                shrink(choice.recipe, folder, cache=cache, why=choice.why, progress=progress)
            made.append(folder)
    finally:
        if made:
            write_page(made[0], output / "report.html", made[1:])
    return Front(made, left)


def _name(size: Keep | Size) -> str:
    if isinstance(size, Size):
        return f"{size.bytes}_bytes"
    return f"{100 * size.fraction:g}_of_{size.of.replace(' ', '_')}"


def _is_made(folder: Path) -> bool:
    return (folder / "scores.json").is_file()


def _refuse(asked: Recipe, output: Path, folders: Iterable[Path], cache: Path) -> None:
    """Raise SpectrimError, before the first size is begun, where one of the outputs is not ours."""
    refuse_no_folder(output)
    refuse_file(output / "report.html", is_page)
    for folder in folders:
        if _is_made(folder):
            _refuse_other(folder, asked)
        else:
            refuse_output(folder, "shrink", cache, sources.local(asked.model))


def _refuse_other(folder: Path, asked: Recipe) -> None:
    """Raise SpectrimError where a folder holds what was made of another model, text or seed."""
    made = Recipe.from_yaml(folder / "recipe.yaml")
    for what in ("model", "calibration", "seed"):
        if getattr(made, what) != getattr(asked, what):
            raise SpectrimError(
                f"{folder} was made with another {what}; name another output, or remove it"
            )
