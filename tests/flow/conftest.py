"""What the flow tests share: places for bad input, and the demo model with a spoilt copy."""

from __future__ import annotations

import copy
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
    import torch

    from spectrim import sources

    source = sources.resolve("demo", demo_cache)
    dense = sources.model(source)
    noisy = copy.deepcopy(dense)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in noisy.named_parameters():
            if ".layers." in name and weight.ndim == 2:
                noise = torch.randn(weight.shape, generator=drawn) * weight.float().std()
                weight.add_((NOISE * noise).to(weight.dtype))
    return dense, noisy, sources.tokenizer(source)
