"""The Pareto front of a model: the best that can be made of it at each of several sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spectrim import auto, pipeline
from spectrim.job import Progress
from spectrim.recipe import Calibration, Keep
from spectrim.report.page import write_page


@dataclass(frozen=True)
class Front:
    """The folders that are made, and the sizes that there was no time for."""

    made: list[Path]
    left: list[Keep]


def search(
    model: str,
    sizes: Sequence[Keep],
    output: Path,
    *,
    calibration: Calibration,
    seed: int,
    minutes: float | None,
    cache: Path,
    progress: Progress,
) -> Front:
    """Make the best model of each size, a folder each in ``output``, and one page about them all.

    What is there is kept: the same call goes on with the sizes that are left.
    minutes: no size is begun after so many; None for no limit.

    Raises:
        SpectrimError: a size cannot be met, or anything that ``pipeline.shrink`` refuses.
    """
    began = time.monotonic()
    made: list[Path] = []
    left: list[Keep] = []
    for size in sizes:
        folder = output / f"{100 * size.fraction:g}_of_{size.of.replace(' ', '_')}"
        if not (folder / "scores.json").is_file():
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                left.append(size)
                continue
            choice = auto.choose(
                model, size, calibration=calibration, seed=seed, cache=cache, progress=progress
            )
            pipeline.shrink(choice.recipe, folder, cache=cache, why=choice.why, progress=progress)
        made.append(folder)
    if made:
        write_page(made[0], output / "report.html", made[1:])
    return Front(made, left)
