"""What the flow tests of bad input and of bad places share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_folders import tiny_folder
from tiny_places import Place
from tiny_runs import write_text


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    """Return a place with a tiny model and a text to shrink it by."""
    made = Place(tmp_path, capsys)
    tiny_folder(made.source)
    write_text(made.text)
    return made
