"""The table of sites in the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


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
