"""Additions of low rank, merged: the loss falls and nothing of peft remains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spectrim.errors import SpectrimError
from tiny_healing import CUT, asked, note
from tiny_models import logits, tokens
from tiny_runs import family_folder, load, shrink, stored, write_text
from tiny_trained import trained_folder, write_learnable

HOW: dict[str, Any] = {"steps": 12, "every": 4, "learning_rate": 1e-2, "warmup": 2, "rank": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny trained model with its text beside it."""
    folder = tmp_path_factory.mktemp("trained")
    write_learnable(folder / "text.txt", words=80 * 32)
    return trained_folder(folder / "source")


def test_the_loss_falls_and_nothing_of_it_remains(source: Path, tmp_path: Path) -> None:
    cut = shrink(asked(source, CUT), tmp_path / "cut")
    small = shrink(asked(source, CUT, {"lora": HOW}), tmp_path / "small")
    loss = note(small)["search_loss"]
    assert note(small)["used"] and loss["after"] < loss["before"] - 0.05
    shapes = [{k: (t.shape, t.dtype) for k, t in stored(at).items()} for at in (cut, small)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "t5"])
def test_every_kind_of_family(family: str, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", family)
    write_text(tmp_path / "text.txt", words=80 * 32)
    stage = {"lora": {**HOW, "steps": 2, "every": 1}}
    small = shrink(asked(source, CUT, stage, keep="70% of linear"), tmp_path / "small")
    assert logits(load(small), tokens()).isfinite().all()


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            [{"sparsify": {}}, {"lora": HOW}],
            "lora would fill the zeros that sparsify made; take distil instead",
        ),
        (
            [{"drop_blocks": {"layers": ["0-1", "0-1"]}}, {"lora": HOW}],
            "some blocks are stored once and run twice, and lora would part them; take distil",
        ),
        (
            [{"lora": {**HOW, "targets": ["nowhere"]}}],
            "no matrix is targeted by lora; take other targets, such as 'down'",
        ),
        (
            [{"lora": HOW}, CUT],
            "factorize needs the maps as they came, and an earlier stage has changed them; "
            "put factorize first",
        ),
    ],
    ids=["zeros", "repeats", "targets", "order"],
)
def test_what_cannot_be_is_said_in_a_line(
    stages: list[object], said: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpectrimError) as caught:
        shrink(asked(source, *stages), tmp_path / "small")
    assert str(caught.value) == said
