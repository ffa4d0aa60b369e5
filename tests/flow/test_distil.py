"""The smaller model trained on the answers of the dense one: kept where it gains, resumable."""

from __future__ import annotations

import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_processes
from spectrim.errors import SpectrimError
from spectrim.healing import end_to_end
from tiny_healing import CUT, asked, note
from tiny_models import logits, tokens
from tiny_runs import equal, family_folder, files, load, shrink, stored, write_text
from tiny_trained import trained_folder, write_learnable

QUICK: dict[str, Any] = {"steps": 12, "every": 4, "learning_rate": 0.1, "warmup": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny trained model with its text beside it."""
    folder = tmp_path_factory.mktemp("trained")
    write_learnable(folder / "text.txt", words=80 * 32)
    write_learnable(folder / "other.txt", words=30 * 32, seed=7)
    return trained_folder(folder / "source")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"divergence": "reverse", "accumulation": 2},
        {"divergence": "js", "temperature": 2.0},
        {"hidden": 1.0, "top_k": 3},
        {"text": "other.txt", "tokens": "24x32", "next_token": 0.5},
        {"text": "sampled", "tokens": "24x32"},
    ],
    ids=["forward", "reverse", "js", "hidden", "text", "sampled"],
)
def test_the_loss_on_text_set_aside_falls(
    how: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    if how.get("text", "").endswith(".txt"):
        how = {**how, "text": str(source.parent / how["text"])}
    small = shrink(asked(source, CUT, {"distil": {**QUICK, **how}}), tmp_path / "small")
    loss = note(small)["search_loss"]
    assert note(small)["used"] and loss["after"] < loss["before"] - 0.05
    assert "/" not in note(small)["text"]


def test_what_is_trained_and_what_stays(source: Path, tmp_path: Path) -> None:
    cut = shrink(asked(source, CUT), tmp_path / "cut")
    healed = shrink(asked(source, CUT, {"distil": QUICK}), tmp_path / "healed")
    before, after = stored(cut), stored(healed)
    assert {k: (t.shape, t.dtype) for k, t in before.items()} == {
        k: (t.shape, t.dtype) for k, t in after.items()
    }
    same = {name for name in before if torch.equal(before[name], after[name])}
    outside = {name for name in before if ".layers." not in name}
    assert same - {n for n in same if n.endswith(".order")} <= outside - {"model.norm.weight"}
    assert "model.embed_tokens.weight" in same and "model.norm.weight" not in same


def test_whole_numbers_are_trained_where_that_is_asked(source: Path, tmp_path: Path) -> None:
    few = {"quantize": {"bits": 2, "group": 32}}
    found = {}
    for numbers in (False, True):
        stage = {"distil": {**QUICK, "learning_rate": 0.02, "numbers": numbers}}
        made = shrink(asked(source, few, stage, keep="100%"), tmp_path / f"{numbers}")
        assert note(made)["used"]
        found[numbers] = stored(made)
    rounded = stored(shrink(asked(source, few, keep="100%"), tmp_path / "rounded"))
    packed = [name for name in rounded if name.endswith(".packed")]
    assert all(torch.equal(found[False][name], rounded[name]) for name in packed)
    assert not any(torch.equal(found[True][name], rounded[name]) for name in packed)


@pytest.mark.parametrize("few", [False, True], ids=["factors", "packed"])
@pytest.mark.parametrize("family", ["gpt2", "mixtral", "bart", "t5"])
def test_every_family(family: str, few: bool, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", family, dtype=torch.bfloat16)
    write_text(tmp_path / "text.txt", words=80 * 32)
    stage = {"distil": {"steps": 4, "every": 2, "hidden": 0.1, "numbers": few}}
    stages = (CUT, {"quantize": {"group": 32}}, stage) if few else (CUT, stage)
    small = shrink(asked(source, *stages, keep="70% of linear"), tmp_path / "small")
    assert set(note(small)["search_loss"]) == {"before", "after"}
    assert logits(load(small), tokens()).isfinite().all()


def test_a_dense_model_is_healed_as_a_control(source: Path, tmp_path: Path) -> None:
    stage = {"distil": {**QUICK, "next_token": 1.0, "learning_rate": 5e-3}}
    small = shrink(asked(source, stage, keep="100% of linear"), tmp_path / "small")
    assert note(small)["used"]
    assert stored(small).keys() == stored(source).keys()
    assert not equal(stored(small), stored(source))


def test_zeros_stay_zeros(source: Path, tmp_path: Path) -> None:
    stages = ({"sparsify": {"pattern": "2:4"}}, {"distil": QUICK})
    healed = stored(shrink(asked(source, *stages), tmp_path / "healed"))
    for name in (name for name in healed if name.endswith("proj.weight")):
        assert float((healed[name] == 0).float().mean()) == 0.5, name


def test_divergence_stops_and_keeps_the_last_good_weights(source: Path, tmp_path: Path) -> None:
    stage = {"distil": {**QUICK, "learning_rate": 1e4, "warmup": 0}}
    cut = shrink(asked(source, CUT), tmp_path / "cut")
    healed = shrink(asked(source, CUT, stage), tmp_path / "healed")
    assert note(healed)["stopped"].startswith("diverged")
    assert note(healed)["best_step"] == 0 and not note(healed)["used"]
    assert equal(stored(cut), stored(healed))


def test_training_ends_where_nothing_is_gained(source: Path, tmp_path: Path) -> None:
    stage = {"distil": {**QUICK, "learning_rate": 1e-12, "patience": 2, "every": 1}}
    healed = shrink(asked(source, CUT, stage), tmp_path / "healed")
    assert note(healed)["steps"] < 12 and "nothing more was gained" in note(healed)["stopped"]


# kill -9


@pytest.mark.parametrize(
    ("name", "how", "few"),
    [
        ("distil", {}, ()),
        ("distil", {"numbers": True}, ({"quantize": {"group": 32}},)),
        ("distil", {}, ({"quantize": {"group": 32}},)),
        ("low_memory", {}, ({"quantize": {"group": 32}},)),
        ("lora", {"rank": 2}, ()),
    ],
)
def test_killed_while_healing_it_ends_in_the_same_bits(
    name: str, how: dict[str, Any], few: tuple[Any, ...], source: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    stage = {name: {**QUICK, "steps": 60, "every": 3, "patience": 100, **how}}
    recipe.write_text(asked(source, CUT, *few, stage).to_yaml())
    whole, killed = tmp_path / "whole" / "small", tmp_path / "killed" / "small"

    def start(output: Path) -> ForkServerProcess:
        output.parent.mkdir(exist_ok=True)
        words = ["shrink", "--recipe", str(recipe), "--no-evaluate", "-o", str(output)]
        words += ["--cache", str(output.parent / "cache")]
        return tiny_processes.start(words, output.parent / "log")

    def ends(process: ForkServerProcess, output: Path) -> None:
        process.join()
        assert process.exitcode == 0, (output.parent / "log").read_text()

    ends(start(whole), whole)
    kills = 0
    for _ in range(3):
        process = start(killed)
        seen = checkpoint_of(killed.parent)
        while process.is_alive() and checkpoint_of(killed.parent) in (seen, 0.0):
            time.sleep(0.005)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills == 3
    ends(start(killed), killed)
    assert files(killed) == files(whole)


def checkpoint_of(folder: Path) -> float:
    """Return when the checkpoint of a run was last written, 0 where there is none."""
    found = list(folder.glob("cache/work/*/*/training/checkpoint.safetensors"))
    return max((file.stat().st_mtime_ns for file in found), default=0.0)


# bad input


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            {"tokens": "20x16"},
            "the calibration has sequences of 32 tokens, not 16; write tokens with that length, "
            "or name a text",
        ),
        (
            {"tokens": "900x32"},
            "the healing text gives 48 sequences of 32 tokens and 900 are wanted; ask for fewer "
            "with tokens, or bring more text",
        ),
        (
            {"text": "text.txt", "tokens": "80x32"},
            "the healing text and the search split share 100% of their text, so the result would "
            "be flattered; measure on text that was not used",
        ),
    ],
    ids=["length", "few", "overlap"],
)
def test_what_cannot_be_is_said_in_a_line(
    how: dict[str, Any], said: str, source: Path, tmp_path: Path
) -> None:
    if "text" in how:
        how = {**how, "text": str(source.parent / how["text"])}
    with pytest.raises(SpectrimError) as caught:
        shrink(asked(source, CUT, {"distil": how}), tmp_path / "small")
    assert str(caught.value) == said


def test_an_amount_of_tokens_that_is_none(source: Path) -> None:
    with pytest.raises(SpectrimError, match="'many' is no amount of tokens; write sequences x"):
        asked(source, {"distil": {"tokens": "many"}})


def test_a_model_without_a_loss_is_not_healed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_to_end, "_evaluate", lambda *_: float("nan"))
    with pytest.raises(SpectrimError, match="is no number, so it cannot be healed; cut it less"):
        shrink(asked(source, CUT, {"distil": QUICK}), tmp_path / "small")
