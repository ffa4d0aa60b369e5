"""What the terminal shows of a model's sites, of a profile, and of what can be named."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from spectrim.cli.help_texts import LM_EVAL
from spectrim.model.architectures import ARCHITECTURES
from spectrim.registry import Registry
from spectrim.report.profile import agreed, totals
from spectrim.report.words import increase, share, stored_as, whole

FEW = 3  # blocks shown at each end


def show_sites(found: dict[str, Any]) -> None:
    """Print what `inspect` found: totals by role, a line for each site, and the total."""
    terminal = Console()
    # Where nobody sets a width, as in a file, names are not to be broken.
    terminal = terminal if terminal.is_terminal else Console(width=120)
    terminal.print(roles(found), "", sites(found))


def roles(found: dict[str, Any]) -> Table:
    """Return the totals of every role as a table: how many sites, how many cut, numbers, part."""
    table = Table(title="by role", box=SIMPLE_HEAD, show_edge=False)
    table.add_column("role", overflow="fold")
    for name in ("sites", "cut", "numbers", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    for role in dict.fromkeys(site["role"] for site in found["sites"]):
        here = [site for site in found["sites"] if site["role"] == role]
        cut = sum(site["format"] != "dense" for site in here)
        stored, dense = (sum(site[key] for site in here) for key in ("stored", "dense"))
        part = f"{stored / dense:.1%}"
        table.add_row(Text(role), str(len(here)), str(cut), f"{stored:,}", part)
    return table


def sites(found: dict[str, Any]) -> Table:
    """Return what `inspect` found as a table: a line for each site, and the total."""
    table = Table(
        title=Text(found["model"]),
        caption="numbers stored, biases apart",
        box=SIMPLE_HEAD,
        show_edge=False,  # what margins would take, names need
        padding=0,
    )
    for name in ("site", "role", "dense shape", "stored as"):
        table.add_column(name, overflow="fold")
    for name in ("rank", "numbers", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    for site in found["sites"]:
        table.add_row(*_cells(site))
    stored, dense = (sum(site[key] for site in found["sites"]) for key in ("stored", "dense"))
    table.add_section()
    table.add_row("total", "", "", "", "", f"{stored:,}", f"{stored / dense:.1%}")
    return table


def _cells(site: dict[str, Any]) -> list[str | Text]:
    shape = f"{site['out_features']} x {site['in_features']}"
    rank = "" if site["format"] in ("dense", "trellis") else whole(site.get("rank"))
    part = f"{site['stored'] / site['dense']:.1%}"
    return [
        Text(site["site"]),
        site["role"],
        shape,
        stored_as(site),
        rank,
        f"{site['stored']:,}",
        part,
    ]


def show_profile(found: dict[str, Any]) -> None:
    """Print the roles and blocks that `profile` found most and least sensitive."""
    terminal = Console()
    for size in found["sizes"]:
        terminal.print(sensitivities(found, size))


def sensitivities(found: dict[str, Any], size: float) -> Group:
    """Return every role, and the blocks at both ends, by what cutting their parts costs."""
    title = (
        f"{found['model']}: increase of the {found['metric']}, {found['unit']}, "
        f"each {found['by']} cut alone to {share(size)} of its numbers"
    )
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("sum over", overflow="fold")
    for name in ("predicted", "measured"):
        table.add_column(name, justify="right")
    rows = [one for one in found["rows"] if one["size"] == size]
    if found["by"] != "block":
        _add(table, totals(rows, "role"))
    if found["by"] != "role":
        blocks = totals(rows, "block")
        few = len(blocks) <= 2 * FEW
        _add(table, blocks if few else [*blocks[:FEW], None, *blocks[-FEW:]])
    agreement = next(one for one in found["agreement"] if one["size"] == size)
    return Group(Text(title, style="italic"), table, Text(agreed(agreement), style="dim"), "")


def _add(table: Table, lines: list[Any]) -> None:
    for one in lines:
        if one is None:
            table.add_row("…", "", "")
        else:
            table.add_row(Text(one["name"]), increase(one["predicted"]), increase(one["measured"]))
    table.add_section()


def entries(kind: str) -> list[tuple[str, str]]:
    """Return what can be named of a kind, such as "methods", with a line on each.

    Formats that only a stage leaves, as their ``STAGE`` says, cannot be named.
    """
    if kind == "families":
        return [(name, "") for name in sorted(ARCHITECTURES)]
    if kind == "tasks":
        return _tasks(Registry("metric", "spectrim.metrics"))
    registry = Registry(kind.removesuffix("s"), f"spectrim.{kind}")
    chosen = [name for name in registry.names() if not registry.constant(name, "STAGE")]
    return [(name, registry.summary(name)) for name in chosen]


def _tasks(metrics: Registry) -> list[tuple[str, str]]:
    """Return every task once, with each metric that answers it on a line of its own."""
    answering: dict[str, list[str]] = {}
    for metric in metrics.names():
        for task in metrics.constant(metric, "TASKS") or ():
            answering.setdefault(task, []).append(metric)
    return [
        ("" if place else task, f"{LM_EVAL.get(task) or metrics.summary(metric)} [{metric}]")
        for task, answers in answering.items()
        for place, metric in enumerate(answers)
    ]
