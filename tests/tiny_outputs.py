"""Output folders of a few small files, written as a verb writes them."""

from __future__ import annotations

from pathlib import Path

from spectrim.outputs.folder import output_folder

THESIS = "years of work"


def write(output: Path, **files: str) -> None:
    """Write an output folder as a verb does."""
    with output_folder(output, "shrink") as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def names(folder: Path) -> list[str]:
    """Return what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())
