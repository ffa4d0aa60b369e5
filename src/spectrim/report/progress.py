"""Long work as a line in the terminal: what is done, how far it is, how long it will take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from time import monotonic

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

from spectrim.processes import process

PAUSE = 10.0  # seconds between two plain lines on the same work, its end apart


@contextmanager
def shown() -> Iterator[Callable[[int, int, str], None]]:
    """Give a callable ``progress(done, total, what)``; each ``what`` gets a line with an estimate.

    Lines go to standard error, so that standard output stays for results. Where that is no
    terminal whose lines can be drawn again, plain lines follow each other: count, total and time
    left, every ten seconds at most, and one at the end of each piece of work. A total of 0 is not
    known: the count alone is told.
    """
    if process():  # the first one of several says it for all
        yield lambda done, total, what: None
        return
    console = Console(stderr=True)
    # Rich calls a log a terminal where FORCE_COLOR is set, as many build machines do.
    if not (sys.stderr.isatty() and console.is_interactive):
        yield _Lines().say
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:

        def advance(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield advance


@dataclass
class _Work:
    """One piece of work: when it was first heard of and how far it was; what was said last."""

    began: float
    first: int
    said: float
    done: int


class _Lines:
    """Progress as plain lines, for files and logs."""

    def __init__(self) -> None:
        self._known: dict[str, _Work] = {}

    def say(self, done: int, total: int, what: str) -> None:
        """Write a line where the work is new, ends, or was not spoken of for a while."""
        now = monotonic()
        work = self._known.get(what)
        if work is None or done < work.done:
            said = now - PAUSE if work is None else work.said  # begun anew: no sooner than due
            work = self._known[what] = _Work(now, done, said, done - 1)
        ends = 0 < total <= done and work.done < total
        if ends or (done < (total or inf) and now - work.said >= PAUSE):
            told = f"{done}/{total}{_times(work, done, total, now)}" if total else str(done)
            print(f"{what} {told}", file=sys.stderr, flush=True)
            work.said = now
        work.done = done


def _times(work: _Work, done: int, total: int, now: float) -> str:
    """Return the time that is left, or at the end what it took; nothing where neither is known."""
    spent = now - work.began
    if done <= work.first:
        return ""
    if done >= total:
        return f", took {_clock(spent)}"
    return f", {_clock(spent * (total - done) / (done - work.first))} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
