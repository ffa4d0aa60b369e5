"""Speed of models beside each other, as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spectrim.report.folder import clean
from spectrim.report.words import GAP, bytes_, plain, share, times

_COLUMNS = (
    "decode\ntokens/s", "prefill\ntokens/s", "first\ntoken", "peak\nmemory", "on\ndisk",
    "read per\ntoken",
)  # fmt: skip


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what `spectrim bench` found; ``console`` is where, the standard output by default."""
    (console or Console()).print(render(found))


def render(found: dict[str, Any]) -> Table:
    """Return the table: one line a model, the one that others are compared with first."""
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True,
        caption=Text(f"\n{clean(_measured(found['settings']))}"), caption_justify="left",
    )  # fmt: skip
    table.add_column("", overflow="fold", min_width=12)
    for title in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for row in found["rows"]:
        table.add_row(Text(clean(f"{row['model']}\n{row['engine']}")), *_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        _compared(row, "decode"),
        _compared(row, "prefill"),
        f"{plain(1000 * row['first_token'])}{GAP}ms",
        bytes_(row["peak_memory"]),
        bytes_(row["disk"]),
        f"{bytes_(row['bytes_per_token'])}\n{share(row['bandwidth_used'], 0)}",
    ]


def _compared(row: dict[str, Any], name: str) -> str:
    """Return a speed and, below it, how many times that of the reference it is."""
    ratio = row.get(f"{name}_ratio")
    return plain(row[name]) + (f"\n{times(ratio)}" if ratio is not None else "")


def _measured(settings: dict[str, Any]) -> str:
    against = f"; × is against {settings['against']}" if settings["against"] else ""
    return (
        f"Medians of {settings['rounds']} rounds in turn: {settings['prompt']} tokens read, then "
        f"{settings['new']} decoded{against}. {settings['threads']} thread(s) of "
        f"{settings['machine']}, which read {bytes_(settings['bandwidth'])}/s of memory; "
        "per cent are of that."
    )
