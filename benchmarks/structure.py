"""The structure of the package as docs/architecture.md draws it: the tree, and the levels."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

LISTED = frozenset(
    [
        "cli",
        "cutting",
        "healing",
        "job",
        "model",
        "outputs",
        "recipe",
        "rounding",
        "text",
        "verbs",
        "walk",
    ]
)
"""Rooms whose files the tree lists one by one; the others hold plug-ins, or what reports draw."""


def tree(root: Path) -> str:
    """Return the tree of a repository's package: each file with the first line of its docstring."""
    lines = list(_lines(root / "src" / "spectrim"))
    width = max(len(name) for name, _ in lines)
    return fenced(["src/spectrim/", *(f"{name:<{width}}  {said}" for name, said in lines)])


def levels(root: Path) -> str:
    """Return the levels that import-linter holds, from the top."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (found,) = (one for one in contracts if one["type"] == "layers")
    return fenced(found["layers"])


def fenced(lines: list[str]) -> str:
    """Return lines as a fenced block of Markdown."""
    return "\n".join(["```", *lines, "```"])


def _lines(package: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(package.glob("*.py")):
        yield f"  {file.name}", _summary(file)
    for room in sorted(package.glob("*/__init__.py")):
        yield f"  {room.parent.name}/", _summary(room)
        if room.parent.name in LISTED:
            for file in sorted(room.parent.glob("[!_]*.py")):
                yield f"    {file.name}", _summary(file)


def _summary(file: Path) -> str:
    found = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return found.partition("\n")[0].rstrip(".:")
