"""The scores as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from spectrim.report import table as scores_table
from spectrim.report.folder import clean


def show(scores: dict[str, Any], console: Console | None = None) -> None:
    """Print the table of scores; ``console`` is where, the standard output by default."""
    (console or Console()).print(render(scores))


def render(scores: dict[str, Any]) -> RenderableType:
    """Return the scores as Rich shows them: dense beside small, then texts, then warnings."""
    parts: list[RenderableType] = [_scores(scores)]
    if len(scores_table.texts(scores)) > 1:
        parts.append(_texts(scores))
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
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for label in scores_table.columns(scores):
        table.add_column(Text(clean(label)), justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    group = ""
    for line in scores_table.lines(scores):
        if group and line.group != group:
            table.add_section()
        group = line.group
        table.add_row(line.name, line.arrow, *line.cells, line.change)
    return table


def _texts(scores: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="Loss by text, nats/token")
    table.add_column("text")
    for title in ("dense", "small", "excess", "KL", "agreement"):
        table.add_column(title, justify="right")
    for line in scores_table.texts(scores):
        table.add_row(Text(clean(line.name)), *line.cells)
    return table


def _measured(settings: dict[str, Any]) -> str:
    dtypes = settings.get("dtype", {})
    names = ", ".join(sorted(set(dtypes.values()))) if isinstance(dtypes, dict) else str(dtypes)
    return (
        "↓ lower is better, ↑ higher; ± is half a 95 % interval. "
        f"{settings.get('tokens', '?')} tokens, window {settings.get('window', '?')}, "
        f"stride {settings.get('stride', '?')}; {names}; "
        f"{settings.get('threads', '?')} thread(s) of {settings.get('machine', '?')}"
    )
