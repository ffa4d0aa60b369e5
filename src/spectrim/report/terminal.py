"""The scores as tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spectrim.report import notes, points, tasks
from spectrim.report import table as scores_table
from spectrim.report.folder import clean
from spectrim.report.words import GAP

# How cells are broken over lines, from not at all to as narrow as can be, and how wide names get.
_BREAKS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("; ", "\n"),),
    (("; ", "\n"), (" (", "\n(")),
    (("; ", "\n"), (" (", "\n("), (" ±", "\n±"), (", ", ",\n"), ("not ", "not\n"),
     (f"p{GAP}<{GAP}", "p<")),
)  # fmt: skip
_NAME = 27  # letters of the longest measure that is listed; titles of tasks may be longer


def show(scores: dict[str, Any], console: Console | None = None) -> None:
    """Print the table of scores; ``console`` is where, the standard output by default."""
    console = console or Console()
    console.print(render(scores, console.width))


def render(scores: dict[str, Any], width: int = 80) -> RenderableType:
    """Return the scores as Rich shows them in ``width`` columns.

    Measures come first, then texts, tasks, and what is to be known.
    """
    parts: list[RenderableType] = [_fitting(_scores, scores, width), ""]
    if len(scores_table.texts(scores)) > 1:
        parts += [_texts(scores), ""]
    if tasks.lines(scores):
        parts += [_fitting(_tasks, scores, width), ""]
    found = points.points(scores)
    parts += [Text(clean(said)) for said in points.verdicts(found)]
    parts += [Text(clean(said), style="dim") for said in notes.sentences(scores)]
    parts += [Text(clean(said), style="dim") for said in tasks.unmeasured(scores)]
    parts += [Text(f"! {clean(warning)}", style="yellow") for warning in scores["warnings"]]
    return Group(*parts)


def _fitting(
    made: Callable[[dict[str, Any], int], Table], scores: dict[str, Any], width: int
) -> Table:
    """Return the table with as few broken cells as the width allows."""
    endless = Console(width=10_000)
    tables = (made(scores, level) for level in range(len(_BREAKS)))
    # Where none fits, Rich folds the names of the last.
    return next((one for one in tables if endless.measure(one).maximum <= width), None) or made(
        scores, len(_BREAKS) - 1
    )


def _scores(scores: dict[str, Any], level: int) -> Table:
    settings = scores["settings"]
    title = clean(f"{scores['model']} on {settings['text']}")
    table = _table(title, caption=Text(f"\n{clean(_measured(settings))}"))
    _name_columns(table, scores_table.columns(scores), level)
    table.add_column("change", justify="right", no_wrap=True)
    group = ""
    for line in scores_table.lines(scores):
        if group and line.group != group:
            table.add_section()
        group = line.group
        cells = [_broken(cell, level) for cell in line.cells]
        table.add_row(_name(line.name), line.arrow, *cells, line.change)
    return table


def _texts(scores: dict[str, Any]) -> Table:
    table = _table("Loss by text, nats/token")
    table.add_column("text", overflow="fold")  # a path has no spaces to break at
    for title in ("dense", "small", "excess", "KL", "agreement"):
        table.add_column(title, justify="right", no_wrap=True)
    for line in scores_table.texts(scores):
        table.add_row(Text(clean(line.name)), *line.cells[:5])
    return table


def _tasks(scores: dict[str, Any], level: int) -> Table:
    table = _table("Tasks")
    _name_columns(table, tasks.columns(scores), level)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    task = ""
    for line in tasks.lines(scores):
        if line.task != task:
            table.add_section()
            task = line.task
            table.add_row(Text(clean(task), style="bold"))
        cells = [_broken(cell, level) for cell in line.cells]
        table.add_row(_name(f"  {line.name}"), line.arrow, *cells, line.change, line.count)
    return table


def _table(title: str, caption: Text | None = None) -> Table:
    """Return an empty table without margins, which would cost names their place."""
    return Table(
        box=SIMPLE_HEAD,
        title=Text(title),
        title_style="bold",
        caption=caption,
        caption_justify="left",
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )


def _name_columns(table: Table, labels: list[str], level: int) -> None:
    """Add columns of a measure's name, its arrow, and one for every model."""
    table.add_column("", min_width=14, max_width=_NAME if level else None)
    table.add_column("", no_wrap=True)
    for label in labels:
        heading = clean(label).replace(" ", "\n") if level == len(_BREAKS) - 1 else clean(label)
        table.add_column(Text(heading), justify="right", no_wrap=True)


def _name(name: str) -> RenderableType:
    """Return a measure's name, all of its lines as far in as it begins."""
    inner = name.lstrip(" ")
    return Padding(Text(clean(inner)), (0, 0, 0, len(name) - len(inner)))


def _broken(cell: str, level: int) -> Text:
    """Return a cell, its parts on lines of their own as the level has it."""
    for part, apart in _BREAKS[level]:
        cell = cell.replace(part, apart)
    return Text(cell)


def _measured(settings: dict[str, Any]) -> str:
    dtypes = settings.get("dtype", {})
    names = ", ".join(sorted(set(dtypes.values()))) if isinstance(dtypes, dict) else str(dtypes)
    return (
        "↓ lower is better, ↑ higher; ± is half a 95 % interval. "
        f"{settings.get('tokens', '?')} tokens, window {settings.get('window', '?')}, "
        f"stride {settings.get('stride', '?')}; {names}; "
        f"{settings.get('threads', '?')} thread(s) of {settings.get('machine', '?')}"
    )
