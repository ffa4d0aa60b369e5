"""What arguments of the command line are checked for before long work begins."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from spectrim.errors import SpectrimError
from spectrim.outputs.refusals import refuse_link_to_nothing
from spectrim.recipe.sizes import in_bytes, parse_bytes

if TYPE_CHECKING:
    from spectrim.model.runtime import Size
    from spectrim.recipe.recipe import Keep


def task_names(tasks: str | None) -> tuple[str, ...]:
    """Return the names in a list with commas; SpectrimError where it is given and names none."""
    found = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
    if tasks is not None and not found:
        raise SpectrimError("--tasks names no task; see 'spectrim list tasks'")
    return found


def data_folder(folder: Path | None) -> Path | None:
    """Return the folder of data sets, from the environment where none is given."""
    if folder is None:
        named = os.environ.get("SPECTRIM_DATA")
        folder = Path(named) if named else None
    if folder is not None and not folder.is_dir():
        raise SpectrimError(f"there is no folder of data '{folder}'; check the path")
    return folder


def api_key(key: str | None) -> str | None:
    """Return the key that a server asks for, from the environment where none is given."""
    found = os.environ.get("SPECTRIM_API_KEY") if key is None else key
    if found is not None and not found.strip():
        raise SpectrimError("--api-key is empty; give a key, or leave it out")
    return found


def size(text: str) -> Keep | Size:
    """Return the size that '600MB', '25%' or '25% of linear bytes' asks for.

    SpectrimError where it is neither bytes nor a part of the model.
    """
    from spectrim.model.runtime import Size
    from spectrim.recipe.recipe import Keep

    return Size(bytes=parse_bytes(text)) if in_bytes(text) else Keep.parse(text, "size")


def minutes(number: float) -> None:
    """Raise SpectrimError where a number is no time to learn for."""
    if not 0 < number < inf:
        raise SpectrimError(f"--minutes {number:g} leaves no time; give a number above 0")


def parse_sizes(text: str) -> tuple[float, ...]:
    """Return the parts that a text such as "75%,50%" names; SpectrimError where it is none."""
    found = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", word, re.ASCII)
        if not match or not 0 < float(match[1]) < 100:
            raise SpectrimError(
                f"'{word.strip()}' is no size to cut to; expected parts of each map's numbers "
                "above 0% and below 100%, such as '75%,50%,25%'"
            )
        found.append(float(match[1]) / 100)
    return tuple(dict.fromkeys(found))


def refuse_beside_plan(plan: Path, said: Mapping[str, object]) -> None:
    """Raise SpectrimError where there is no plan, or an option is given that the plan decides."""
    if not plan.is_file():
        raise SpectrimError(f"there is no plan file '{plan}'; check the path")
    for name, value in said.items():
        if value is not None:
            raise SpectrimError(f"--plan already says the {name}; leave out --{name}")


def refuse_beside_size(said: Mapping[str, object], by: str = "size") -> None:
    """Raise SpectrimError where an option is given that --size, --fits or --for decides."""
    for name, value in said.items():
        if value is not None:
            raise SpectrimError(f"--{by} chooses the {name} itself; leave out --{name}, or --{by}")


def prove_writable(target: Path) -> None:
    """Prove that the target can be made, before hours are spent on what goes there."""
    refuse_link_to_nothing(target)
    parent = target.resolve().parent
    while not parent.exists():
        parent = parent.parent
    try:
        # Permission bits say nothing to root, or about a read-only disk; trying does. The file has
        # no name, so that nothing is left even where the process is killed here.
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise SpectrimError(f"cannot write '{target}'; {error.strerror}: '{parent}'") from error
