"""Which model an output folder's model was made from."""

from __future__ import annotations

import re
from pathlib import PurePath

from spectrim.report.folder import Output

DEMO = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def named(output: Output) -> str:
    """Return what the dense model was called by whoever made it smaller: a name or a path."""
    return str(output.scores.get("model") or output.plan.get("model") or output.name)


def full_name(output: Output) -> str:
    """Return the dense model's name as the hub has it; the last part of a path elsewhere."""
    name = named(output)
    return f"{DEMO} (demo)" if name == "demo" else without_path(name)


def without_path(name: str) -> str:
    """Return a model's name as the hub has it; the last part of a path elsewhere."""
    return name if HUB_NAME.fullmatch(name) else PurePath(name).name or name
