"""Packages that only some metrics need: loaded when those are measured, missed in plain words."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from spectrim.errors import UnavailableError

DISTRIBUTIONS = {"sklearn": "scikit-learn", "rouge_score": "rouge-score", "lm_eval": "lm-eval"}
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


def versions(*distributions: str) -> dict[str, str]:
    """Return the installed version of each, under the name to install; "unknown" without one."""
    return {name: _version(name) for name in distributions}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
