"""The scores as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from spectrim.report import points, tasks
from spectrim.report import table as scores_table
from spectrim.report.folder import clean

_MANY = 3  # columns of models from which numbers and their intervals stand below each other


def show(scores: dict[str, Any], console: Console | None = None) -> None:
    """Print the table of scores; ``console`` is where, the standard output by default."""
    (console or Console()).print(render(scores))


def render(scores: dict[str, Any]) -> RenderableType:
    """Return the scores as Rich shows them: measures, texts, tasks, then what is to be known."""
    parts: list[RenderableType] = [_scores(scores)]
    if len(scores_table.texts(scores)) > 1:
        parts.append(_texts(scores))
    if tasks.lines(scores):
        parts.append(_tasks(scores))
    found = points.points(scores)
    parts += [Text(clean(said)) for said in points.verdicts(found)]
    parts += [Text(clean(said), style="dim") for said in tasks.unmeasured(scores)]
    parts += [Text(f"! {clean(warning)}", style="yellow") for warning in scores["warnings"]]
    return Group(*parts)


def _scores(scores: dict[str, Any]) -> Table:
    settings = scores["settings"]
    table = Table(
        box=SIMPLE_HEAD,
        title=Text(clean(f"{scores['model']} on {settings['text']}")),
        caption=Text(clean(_measured(settings))),
        caption_justify="left",
    )
    labels = scores_table.columns(scores)
    many = len(labels) >= _MANY
    _name_columns(table, labels)
    table.add_column("change", justify="right", no_wrap=True)
    group = ""
    for line in scores_table.lines(scores):
        if group and line.group != group:
            table.add_section()
        group = line.group
        cells = [_narrow(cell, many) for cell in line.cells]
        table.add_row(Text(clean(line.name)), line.arrow, *cells, line.change)
    return table


def _texts(scores: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="Loss by text, nats/token")
    table.add_column("text", overflow="fold")  # a path has no spaces to break at
    for title in ("dense", "small", "excess", "KL", "agreement"):
        table.add_column(title, justify="right")
    for line in scores_table.texts(scores):
        table.add_row(Text(clean(line.name)), *line.cells[:5])
    return table


def _tasks(scores: dict[str, Any]) -> Table:
    labels = tasks.columns(scores)
    table = Table(box=SIMPLE_HEAD, title="Tasks")
    many = len(labels) >= _MANY
    _name_columns(table, labels)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    task = ""
    for line in tasks.lines(scores):
        if line.task != task:
            table.add_section()
            task = line.task
            table.add_row(Text(clean(task), style="bold"))
        cells = [_narrow(cell, many) for cell in line.cells]
        name = Text(f"  {clean(line.name)}")
        table.add_row(name, line.arrow, *cells, line.change, line.count)
    return table


def _name_columns(table: Table, labels: list[str]) -> None:
    """Add columns of a measure's name, its arrow, and one for every model."""
    many = len(labels) >= _MANY
    table.add_column("", min_width=14 if many else 20)
    table.add_column("", no_wrap=True)
    for label in labels:
        heading = clean(label).replace(" ", "\n") if many else clean(label)
        table.add_column(Text(heading), justify="right", no_wrap=True)


def _narrow(cell: str, many: bool) -> Text:
    """Return a cell, its parts on lines of their own where there are ``many`` columns."""
    cell = cell.replace("; ", "\n")
    if many:
        cell = cell.replace(" ±", "\n±").replace(", ", ",\n").replace("not ", "not\n")
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
