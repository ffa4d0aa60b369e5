"""Promises about the structure: small files and functions, levels, no circles, a drawn tree."""

import ast
import tomllib
from pathlib import Path

import grimp
import pytest

MOST_LINES = 300
MOST_LINES_OF_A_FUNCTION = 40
MOST_FILES_IN_THE_ROOT = 10
MOST_LEVELS = 13


@pytest.fixture(scope="module")
def package(root: Path) -> Path:
    """Return the folder of the package."""
    return root / "src" / "spectrim"


def layers(root: Path) -> list[str]:
    """Return the levels that import-linter holds, from the top."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (found,) = (one for one in contracts if one["type"] == "layers")
    assert found["exhaustive"] and found["containers"] == ["spectrim"]
    return list(found["layers"])


def test_the_architecture_draws_the_tree_and_the_levels(root: Path) -> None:
    # test_generated_documents.py holds what stands there against the files
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "<!-- table: tree -->" in text and "<!-- table: levels -->" in text


def test_there_are_few_levels(root: Path) -> None:
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
