"""Long work as a line in the terminal: what is done, how far it is, how long it will take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def shown() -> Iterator[Callable[[int, int, str], None]]:
    """Give a callable ``progress(done, total, what)``; each ``what`` gets a line with an estimate.

    Lines go to standard error, so that standard output stays for results; where that is no
    terminal, one plain line says when a piece of work begins.
    """
    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    if not console.is_terminal:
        seen: set[str] = set()

        def say(done: int, total: int, what: str) -> None:
            if what not in seen:
                seen.add(what)
                print(f"{what} ...", file=sys.stderr, flush=True)

        yield say
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:

        def advance(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance
