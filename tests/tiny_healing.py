"""Recipes that heal a tiny trained model, and what they noted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectrim.recipe.recipe import Recipe
from tiny_runs import plan_of

CUT: dict[str, Any] = {"factorize": {"refine": "off", "method": "whitened_svd"}}


def asked(source: Path, *stages: object, keep: str = "50% of linear") -> Recipe:
    """Return a recipe of these stages on the text beside a model."""
    changes = {
        "model": str(source),
        "keep": keep,
        "stages": list(stages),
        "calibration.text": str(source.parent / "text.txt"),
        "calibration.tokens": "48x32",
    }
    return Recipe.build(None, changes)


def note(folder: Path) -> dict[str, Any]:
    """Return what the last stage that heals noted."""
    found: dict[str, Any] = plan_of(folder).about["found"]["healed"][-1]
    return found
