"""What the command line shows while it works, and the table of sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.table import Table


@contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """Give a function to call as `report(done, total, what)`; each `what` is a bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed())
    bars = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, TaskID] = {}

    def report(done: int, total: int, what: str) -> None:
        if what not in tasks:
            bars.start()  # not before: without a bar it would leave an empty line
            tasks[what] = bars.add_task(what)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


def show_sites(found: dict[str, Any]) -> None:
    """Print what `pipeline.inspect` found: a line for each site, and the total."""
    terminal = Console()
    # Where nobody sets a width, as in a file, names are not to be broken.
    (terminal if terminal.is_terminal else Console(width=120)).print(sites(found))


def sites(found: dict[str, Any]) -> Table:
    """Return what `pipeline.inspect` found as a table: a line for each site, and the total."""
    table = Table(title=found["model"], caption="numbers stored, biases apart", box=SIMPLE_HEAD)
    for name in ("site", "role", "dense shape", "stored as", "rank"):
        table.add_column(name, overflow="fold")
    for name in ("numbers", "kept"):
        table.add_column(name, justify="right")
    for site in found["sites"]:
        table.add_row(*_cells(site))
    stored, dense = (sum(site[key] for site in found["sites"]) for key in ("stored", "dense"))
    table.add_section()
    table.add_row("total", "", "", "", "", f"{stored:,}", f"{stored / dense:.1%}")
    return table


def _cells(site: dict[str, Any]) -> list[str]:
    shape = f"{site['out_features']} x {site['in_features']}"
    rank = "" if site["format"] == "dense" else str(site["rank"])
    part = f"{site['stored'] / site['dense']:.1%}"
    return [site["site"], site["role"], shape, site["format"], rank, f"{site['stored']:,}", part]
