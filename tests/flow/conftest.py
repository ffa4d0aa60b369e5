"""What the flow tests share: places for bad input, and the demo model with a spoilt copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tiny_folders import tiny_folder
from tiny_places import Place
from tiny_runs import write_text

NOISE = 0.5  # standard deviations of each weight matrix


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    """Return a place with a tiny model and a text to shrink it by."""
    made = Place(tmp_path, capsys)
    tiny_folder(made.source)
    write_text(made.text)
    return made


@pytest.fixture(scope="session")
def demo_models(demo_cache: Path) -> tuple[Any, Any, Any]:
    """Return the demo model, a copy with noise on the weights of its blocks, and the tokenizer."""
    from noise import with_noise
    from spectrim.model import sources

    source = sources.resolve("demo", demo_cache)
    dense = sources.model(source)
    return dense, with_noise(dense, NOISE), sources.tokenizer(source)
