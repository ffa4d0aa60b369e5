"""Packages that only some metrics need: loaded when those are measured, missed in plain words."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from spectrim.errors import UnavailableError

DISTRIBUTIONS = {"sklearn": "scikit-learn"}
"""Where the name to install differs from the one to import."""


def package(module: str, purpose: str) -> Any:
    """Return an imported module, such as ``sklearn.cluster``.

    Args:
        module: its dotted name.
        purpose: what needs it, as the subject of the message, in the singular.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        raise UnavailableError(
            f"{purpose} needs the package {DISTRIBUTIONS.get(root, root)}; "
            "pip install 'spectrim[evaluation]'"
        ) from error
