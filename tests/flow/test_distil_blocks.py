"""Blocks trained to give what the dense ones give: the loss falls, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny_healing import CUT, asked, note
from tiny_models import logits, tokens
from tiny_runs import equal, family_folder, files, load, shrink, stored, write_text
from tiny_trained import trained_folder, write_learnable


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny trained model with its text beside it."""
    folder = tmp_path_factory.mktemp("trained")
    write_learnable(folder / "text.txt", words=80 * 32)
    return trained_folder(folder / "source")


@pytest.mark.parametrize("inputs", ["propagated", "dense", "both"])
@pytest.mark.parametrize(("window", "metric"), [(1, "plain"), (2, "loss")])
def test_the_loss_on_text_set_aside_falls(
    inputs: str, window: int, metric: str, source: Path, tmp_path: Path
) -> None:
    how = {"inputs": inputs, "window": window, "metric": metric, "learning_rate": 1e-4}
    small = shrink(asked(source, CUT, {"distil_blocks": how}), tmp_path / "small")
    loss = note(small)["search_loss"]
    # what the dense model delivers is not what a block behind cut ones will read
    assert note(small)["used"] or inputs == "dense"
    assert (loss["after"] < loss["before"]) == note(small)["used"]
    assert note(small)["windows"] == {1: 3, 2: 2}[window]


def test_sizes_names_and_types_stay(source: Path, tmp_path: Path) -> None:
    stage = {"distil_blocks": {"steps": 20}}
    cut = shrink(asked(source, CUT), tmp_path / "cut")
    healed = shrink(asked(source, CUT, stage), tmp_path / "healed")
    one, other = stored(cut), stored(healed)
    shapes = [{k: (t.shape, t.dtype) for k, t in held.items()} for held in (one, other)]
    assert shapes[0] == shapes[1] and not equal(one, other)
    outside = [name for name in one if ".layers." not in name]
    assert outside and all(torch.equal(one[name], other[name]) for name in outside)


def test_the_same_bits_twice(source: Path, tmp_path: Path) -> None:
    stage = {"distil_blocks": {"learning_rate": 3e-3, "steps": 8, "window": 2}}
    made = []
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        made.append(files(shrink(asked(source, CUT, stage), tmp_path / place / "small")))
    assert made[0] == made[1]


@pytest.mark.parametrize("family", ["gpt2", "falcon", "mixtral", "bart", "t5", "gemma2"])
def test_every_family(family: str, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", family, dtype=torch.bfloat16)
    write_text(tmp_path / "text.txt", words=80 * 32)
    stage = {"distil_blocks": {"steps": 4, "metric": "loss"}}
    small = shrink(asked(source, CUT, stage, keep="70% of linear"), tmp_path / "small")
    assert set(note(small)["search_loss"]) == {"before", "after"}
    assert logits(load(small), tokens()).isfinite().all()


def test_a_dense_model_has_nothing_to_learn_from_itself(source: Path, tmp_path: Path) -> None:
    small = shrink(asked(source, "distil_blocks", keep="100% of linear"), tmp_path / "small")
    assert not note(small)["used"]
    assert equal(stored(small), stored(source))


def test_zeros_stay_zeros(source: Path, tmp_path: Path) -> None:
    stages = ({"sparsify": {"pattern": "1:4"}}, {"distil_blocks": {"steps": 50}})
    sparse = shrink(asked(source, stages[0]), tmp_path / "sparse")
    healed = shrink(asked(source, *stages), tmp_path / "healed")
    assert note(healed)["used"]
    before, after = stored(sparse), stored(healed)
    changed = 0
    for name in (name for name in before if name.endswith("proj.weight")):
        assert torch.equal(before[name] == 0, after[name] == 0), name
        changed += not torch.equal(before[name], after[name])
    assert changed > 10


def test_a_learning_rate_far_too_high_leaves_the_model_as_it_was(
    source: Path, tmp_path: Path
) -> None:
    stage = {"distil_blocks": {"learning_rate": 1e6, "steps": 5}}
    cut = shrink(asked(source, CUT), tmp_path / "cut")
    healed = shrink(asked(source, CUT, stage), tmp_path / "healed")
    assert not note(healed)["used"]
    assert equal(stored(cut), stored(healed))


def test_repeated_blocks_stay_the_same_and_are_stored_once(source: Path, tmp_path: Path) -> None:
    stages = ({"drop_blocks": {"layers": ["0-1", "1-2"]}}, {"sparsify": {"pattern": "2:4"}})
    healed = {"distil_blocks": {"learning_rate": 3e-3, "window": 2}}
    small = shrink(asked(source, *stages, healed, keep="100% of linear"), tmp_path / "small")
    plain = shrink(asked(source, *stages, keep="100% of linear"), tmp_path / "plain")
    assert stored(small).keys() == stored(plain).keys()
