"""Other forms of a made model, for the engines that people run: one file each.

An exporter is one file with a function of its name, ``(source, output, progress)``: it reads a
model folder, ours or an ordinary one, fills what it is given (a folder or a file, as its constant
``WRITES`` says) and returns what the form gains or loses against the folder, one line each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spectrim.progress import Progress
from spectrim.registry import Registry

Export = Callable[[Path, Path, Progress | None], list[str]]
"""(model folder, folder or file to fill, progress) → what a user should know of the result."""

exporters = Registry("export", "spectrim.exporters")
