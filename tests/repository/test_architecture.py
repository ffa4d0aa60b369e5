"""Promises about the structure: small files and functions, levels, no circles, a drawn tree."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

LISTED = frozenset(
    ["cli", "cutting", "healing", "job", "model", "recipe", "rounding", "text", "verbs", "walk"]
)
"""Rooms whose files the tree lists one by one; the others hold plug-ins, or what reports draw."""
MOST_LINES = 300
MOST_LINES_OF_A_FUNCTION = 40
MOST_FILES_IN_THE_ROOT = 10
MOST_LEVELS = 13


@pytest.fixture(scope="module")
def package(root: Path) -> Path:
    """Return the folder of the package."""
    return root / "src" / "spectrim"


@pytest.fixture(scope="module")
def drawn(root: Path) -> list[str]:
    """Return the fenced blocks of docs/architecture.md: the flow, the tree, the levels."""
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^```\n(.*?)^```", text, re.M | re.S)


def summary(file: Path) -> str:
    """Return the first line of a file's docstring, without the stop."""
    found = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return found.partition("\n")[0].rstrip(".:")


def tree(package: Path) -> Iterator[tuple[str, str]]:
    """Yield name and summary of the root's files, of the rooms, and of the listed rooms' files."""
    for file in sorted(package.glob("*.py")):
        yield f"  {file.name}", summary(file)
    for room in sorted(package.glob("*/__init__.py")):
        yield f"  {room.parent.name}/", summary(room)
        if room.parent.name in LISTED:
            for file in sorted(room.parent.glob("[!_]*.py")):
                yield f"    {file.name}", summary(file)


def written_tree(package: Path) -> str:
    """Return the tree as docs/architecture.md draws it."""
    lines = list(tree(package))
    width = max(len(name) for name, _ in lines)
    return "src/spectrim/\n" + "".join(f"{name:<{width}}  {said}\n" for name, said in lines)


def layers(root: Path) -> list[str]:
    """Return the levels that import-linter holds, from the top."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (found,) = (one for one in contracts if one["type"] == "layers")
    assert found["exhaustive"] and found["containers"] == ["spectrim"]
    return list(found["layers"])


def test_the_drawn_tree_is_the_tree(package: Path, drawn: list[str]) -> None:
    assert drawn[1] == written_tree(package)


def test_the_drawn_levels_are_the_levels(root: Path, drawn: list[str]) -> None:
    assert drawn[2].splitlines() == layers(root)
    assert len(layers(root)) <= MOST_LEVELS


def test_the_root_has_few_files(package: Path) -> None:
    assert len(list(package.glob("*.py"))) <= MOST_FILES_IN_THE_ROOT


def test_no_file_is_long(root: Path) -> None:
    files = [file for folder in ("src", "benchmarks") for file in (root / folder).rglob("*.py")]
    lines = {str(file.relative_to(root)): len(file.read_text().splitlines()) for file in files}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_function_is_long(root: Path) -> None:
    long = {}
    for file in sorted((root / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lines = lines_of_code(node)
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long[f"{file.relative_to(root)}: {node.name}"] = lines
    assert long == {}


def lines_of_code(function: ast.FunctionDef) -> int:
    """Return the lines of a function, its decorators and docstring apart."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    said = function.body[0]
    assert said.end_lineno is not None
    return lines - (said.end_lineno - said.lineno + 1)


def test_no_import_circle_between_any_two_files() -> None:
    graph = grimp.build_graph("spectrim", cache_dir=None)
    # The package itself hands out the public names lazily; only users import it.
    names = graph.modules - {"spectrim"}
    imported = {name: graph.find_modules_directly_imported_by(name) & names for name in names}
    assert len(imported) > 200
    done: set[str] = set()
    while ready := {name for name, below in imported.items() if below <= done} - done:
        done |= ready
    assert sorted(imported.keys() - done) == [], "these import each other, or what does"
