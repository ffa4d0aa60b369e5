"""Blocks trained between roundings: less is lost, and an interrupted run ends in the same bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spectrim.errors import SpectrimError
from spectrim.healing import between
from spectrim.job.job import Job
from spectrim.model import sources
from spectrim.model.architectures import Place
from spectrim.stages import compensate
from spectrim.text import documents
from tiny_healing import asked
from tiny_runs import family_folder, files, load, plan_of, shrink, stored
from tiny_trained import trained_folder, write_learnable

WHOLE = "100% of linear"
STEPS = 60


def quantized(**options: object) -> dict[str, Any]:
    """Return a stage that stores all maps in two bits."""
    return {"quantize": {"bits": 2, "group": 32, **options}}


def trained_between(source: Path) -> dict[str, Any]:
    """Return that stage with training between roundings, on the longer text beside a model."""
    text = {"text": str(source.parent / "more.txt"), "tokens": "384x32"}
    return quantized(steps=STEPS, learning_rate=1e-2, **text)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny trained model with its texts beside it."""
    folder = tmp_path_factory.mktemp("trained")
    write_learnable(folder / "text.txt", words=80 * 32)
    write_learnable(folder / "more.txt", words=400 * 32, seed=3)
    return trained_folder(folder / "source")


@pytest.fixture(scope="module")
def learnt(source: Path) -> Path:
    """Return that model rounded with training between roundings."""
    return shrink(asked(source, trained_between(source), keep=WHOLE), source.parent / "learnt")


def divergence(source: Path, folder: Path) -> float:
    """Return KL(dense ‖ small) on words that nobody has learnt from, nats per token."""
    file = write_learnable(folder.parent / "held.txt", words=40 * 32, seed=9)
    tokens = documents.read(str(file), sources.tokenizer(sources.resolve(str(source), folder)), 32)
    dense = sources.model(sources.resolve(str(source), folder))
    with torch.no_grad():
        one, other = (model(input_ids=tokens.ids).logits.log_softmax(-1)
                      for model in (dense, load(folder)))  # fmt: skip
    return float((one.exp() * (one - other)).sum(-1).mean())


def test_less_is_lost_than_without_on_words_that_nobody_has_read(
    source: Path, learnt: Path, tmp_path: Path
) -> None:
    plain = shrink(asked(source, quantized(), keep=WHOLE), tmp_path / "plain")
    assert divergence(source, learnt) < 0.93 * divergence(source, plain)
    note = plan_of(learnt).about["found"]["quantized"]
    assert note["steps"] == STEPS and "steps" not in plan_of(plain).about["found"]["quantized"]
    assert f"trained for {STEPS} steps" in (learnt / "README.md").read_text()


def test_an_interrupted_run_ends_in_the_same_bits(
    source: Path, learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = asked(source, trained_between(source), keep=WHOLE)
    done = 0
    loss = between.Between._loss

    def interrupted(self: between.Between, at: int) -> torch.Tensor:
        nonlocal done
        done += 1
        if done in (3, STEPS // 2, STEPS):  # in both groups, and in one that was begun again
            raise KeyboardInterrupt
        return loss(self, at)

    monkeypatch.setattr(between.Between, "_loss", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            shrink(recipe, tmp_path / "learnt")
    again = shrink(recipe, tmp_path / "learnt")
    assert files(again) == files(learnt)


def test_training_that_diverges_is_told_in_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(self: between.Between, at: int) -> torch.Tensor:
        found = next(iter(self.blocks.values())).parameters()
        return next(one for one in found if one.requires_grad).sum() * math.nan

    monkeypatch.setattr(between.Between, "_loss", diverged)
    with pytest.raises(SpectrimError, match="lower learning_rate of quantize"):
        shrink(asked(source, trained_between(source), keep=WHOLE), tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_what_is_compensated_is_the_rounding_and_not_the_training(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []
    corrected = compensate._corrected

    def watched(module: nn.Module, matrix: torch.Tensor, *rest: Any) -> Any:
        wanted.append(matrix)
        return corrected(module, matrix, *rest)

    monkeypatch.setattr(compensate, "_corrected", watched)
    stages = trained_between(source), {"compensate": {"rank": 4}}
    shrink(asked(source, *stages, keep=WHOLE), tmp_path / "small")
    dense = load_file(source / "model.safetensors")
    same = [any(torch.equal(one, matrix) for one in dense.values()) for matrix in wanted]
    each = len(same) // 3  # of a block; nothing trains the first one
    assert same == [True] * each + [False] * 2 * each


def test_the_final_norm_that_an_earlier_stage_trained_is_trained_with(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    loss = between.Between._loss

    def watched(self: between.Between, at: int) -> torch.Tensor:
        seen.append(self.stream.walk.model.get_parameter("model.norm.weight").clone())
        return loss(self, at)

    monkeypatch.setattr(between.Between, "_loss", watched)
    healed = {"distil": {"steps": 12, "every": 4, "learning_rate": 0.1, "warmup": 2}}
    stages: list[dict[str, Any]] = [{"sparsify": {}}, healed, quantized(steps=2)]
    small = shrink(asked(source, *stages, keep=WHOLE), tmp_path / "small")
    assert plan_of(small).about["found"]["healed"][0]["used"]
    assert torch.equal(seen[0], stored(small)["model.norm.weight"])


@pytest.mark.parametrize(
    ("family", "reading", "said"),
    [
        ("llama", {"text": "text.txt", "tokens": "900x32"}, "ask for fewer with tokens"),
        (
            "llama",
            {"text": "text.txt", "tokens": "70x32"},
            "the healing text and the search split share",
        ),
        ("llama", {"tokens": "8x16"}, "write tokens with that length, or name a text"),
        ("t5", {}, "an encoder and a decoder; leave out steps"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_the_long_work(
    family: str, reading: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(job: Job) -> Path:
        raise AssertionError("statistics are the long work")

    monkeypatch.setattr(Job, "statistics", never)
    source = family_folder(tmp_path / "source", family)
    write_learnable(tmp_path / "text.txt", words=80 * 32)
    if "text" in reading:
        reading = {**reading, "text": str(tmp_path / reading["text"])}
    stages: list[dict[str, Any]] = [{"factorize": {}}, quantized(steps=STEPS, **reading)]
    with pytest.raises(SpectrimError, match=said):
        shrink(asked(source, *stages), tmp_path / "small")


def test_where_no_block_was_trained_none_is_said_to_be(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama")
    write_learnable(tmp_path / "text.txt", words=80 * 32)
    single = {"drop_blocks": {"layers": ["0"]}}
    kept = quantized(protect=["."], ends=8, steps=STEPS)
    for number, stages in enumerate([(single, quantized(steps=STEPS)), (kept,)]):
        small = shrink(asked(source, *stages, keep=WHOLE), tmp_path / f"small-{number}")
        assert "steps" not in plan_of(small).about["found"]["quantized"]
        assert "were trained" not in (small / "README.md").read_text()


def test_zeros_of_a_sparse_model_stay_and_are_held_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks, written = [], []
    loss, enter = between.Between._loss, between.Between.enter

    def watched(self: between.Between, at: int) -> torch.Tensor:
        last = self.blocks[2].get_parameter("mlp.up_proj.weight")
        hooks.append(len(last._backward_hooks or ()))
        return loss(self, at)

    def entered(self: between.Between, place: Place) -> None:
        written.append(self.blocks[place.index].get_parameter("mlp.up_proj.weight").clone())
        enter(self, place)

    monkeypatch.setattr(between.Between, "_loss", watched)
    monkeypatch.setattr(between.Between, "enter", entered)
    stages: list[dict[str, Any]] = [{"sparsify": {}}, quantized(steps=8)]
    shrink(asked(source, *stages, keep=WHOLE), tmp_path / "small")
    assert len(hooks) == 8 and set(hooks) == {1}
    assert all(((one.view(-1, 4) == 0).sum(1) == 2).all() for one in written)
    dense = load_file(source / "model.safetensors")["model.layers.2.mlp.up_proj.weight"]
    assert (written[2] != dense)[written[2] != 0].any()
