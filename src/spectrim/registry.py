"""Plug-ins by file name: a folder of modules is the registry, and nothing else has to be edited."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import keyword
import os
import pkgutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from spectrim.errors import SpectrimError, unknown


def _same(name: str) -> str:
    return name


@lru_cache(maxsize=512)
def _read(file: Path, changed: int) -> ast.Module:
    """Return a parsed file; ``changed`` is when it was written, so that a change is noticed."""
    return ast.parse(file.read_text(encoding="utf-8"))


@lru_cache(maxsize=64)
def _listed(folders: tuple[str, ...], changed: tuple[int, ...]) -> dict[str, str]:
    """Return plug-in name → module name; ``changed`` as in `_read`, of the folders."""
    found = pkgutil.iter_modules(folders)
    stems = [info.name for info in found if not info.ispkg and not info.name.startswith("_")]
    return {stem.removesuffix("_"): stem for stem in stems}


class Registry:
    """The plug-ins of one kind: one module each in a package, named like the module.

    kind: the word in messages, in the singular ("method").
    package: dotted name of the folder ("spectrim.methods").
    attribute: plug-in name → name of what its module offers ("low_rank" → "LowRank");
        by default the same name.

    A trailing underscore of a file is dropped (`global_.py` is "global", for Python's keywords) and
    files that start with one are no plug-ins. Names are read from the folder, so that listing and
    checking them imports no plug-in (and therefore no torch).
    """

    def __init__(self, kind: str, package: str, attribute: Callable[[str], str] = _same) -> None:
        self.kind = kind
        self.package = package
        self.attribute = attribute

    def names(self) -> list[str]:
        """Return the names of all plug-ins, sorted; none where the package does not exist."""
        return sorted(self._modules())

    def check(self, name: str) -> str:
        """Return the name as it is; SpectrimError with the nearest name where there is no such."""
        known = self._modules()
        if name not in known:
            raise unknown(self.kind, name, known)
        return name

    def get(self, name: str) -> Any:
        """Import the plug-in and return what it offers.

        SpectrimError where the name is unknown, or its module lacks the attribute that it promises.
        """
        stem = self._modules()[self.check(name)]
        module = importlib.import_module(f"{self.package}.{stem}")
        wanted = self.attribute(name)
        wanted += "_" * keyword.iskeyword(wanted)
        if not hasattr(module, wanted):
            raise SpectrimError(
                f"{self.kind} '{name}' offers no '{wanted}'; define it in {stem}.py"
            )
        return getattr(module, wanted)

    def summary(self, name: str) -> str:
        """Return the first line of the plug-in's docstring, read from its file without import."""
        return (ast.get_docstring(self._tree(self._modules()[self.check(name)])) or "").partition(
            "\n"
        )[0]

    def constant(self, name: str, wanted: str) -> Any:
        """Return a literal that the plug-in's file assigns, read without import; None if none.

        What it imports by this name from another file of its folder is read there.
        """
        return self._literal(self._modules()[self.check(name)], wanted)

    def _literal(self, stem: str, wanted: str) -> Any:
        for node in self._tree(stem).body:
            if isinstance(node, ast.ImportFrom) and any(one.name == wanted for one in node.names):
                module = "." * node.level + (node.module or "")
                package, _, other = importlib.util.resolve_name(module, self.package).rpartition(
                    "."
                )
                if package == self.package:
                    return self._literal(other, wanted)
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            if any(isinstance(one, ast.Name) and one.id == wanted for one in targets):
                return ast.literal_eval(node.value)  # type: ignore[attr-defined]
        return None

    def _tree(self, stem: str) -> ast.Module:
        files = [Path(folder) / f"{stem}.py" for folder in self._folders()]
        file = next(file for file in files if file.exists())
        return _read(file, file.stat().st_mtime_ns)

    def _folders(self) -> list[str]:
        # find_spec imports the parent package only, never the folder's own __init__.
        spec = importlib.util.find_spec(self.package)
        return list(spec.submodule_search_locations or []) if spec else []

    def _modules(self) -> dict[str, str]:
        """Return plug-in name → module name."""
        folders = tuple(self._folders())
        return _listed(folders, tuple(os.stat(folder).st_mtime_ns for folder in folders))
