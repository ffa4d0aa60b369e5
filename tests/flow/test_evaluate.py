"""Evaluating a tiny smaller model: what is compared, kept, refused and remembered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spectrim.errors import SpectrimError
from spectrim.metrics import Evaluation
from spectrim.metrics.asking import answers
from spectrim.model import sources
from spectrim.verbs.evaluate import evaluate
from tiny_folders import tiny_folder
from tiny_runs import recipe, shrink, write_text

SIZE = "4x32"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a tiny smaller model beside what it was made from and its cache."""
    source = tiny_folder(tmp_path / "source")
    return shrink(recipe(source, write_text(tmp_path / "text.txt")), tmp_path / "small")


def measure(small: Path, *texts: Path, **chosen: Any) -> dict[str, Any]:
    names = [str(text) for text in texts]
    cache = small.parent / "cache"
    asked = Evaluation(rounds=1, new_tokens=2, prompt_tokens=8, sample_tokens=0, **chosen)
    return evaluate(str(small), text=names, tokens=SIZE, tasks=asked, cache=cache)


def test_dense_small_and_both_baselines_on_every_text(small: Path) -> None:
    held_out, other = (write_text(small.parent / f"{seed}.txt", seed=seed) for seed in (1, 2))
    found = measure(small, held_out, other)
    assert [row["label"] for row in found["rows"]] == ["dense", "small", "int8", "int4"]
    names = [f"{small.parent.name}/{seed}.txt" for seed in (1, 2)]
    for row in found["rows"]:
        assert [text for text in row["texts"] if text in names] == names
    dense, little, eight, four = (row["bytes_of_weights"]["value"] for row in found["rows"])
    assert four < eight < dense and little < dense
    excess = [row["excess_loss"]["value"] for row in found["rows"][1:]]
    assert abs(excess[1]) < abs(excess[2])  # int8 is nearer to dense than int4


def test_a_second_time_nothing_is_read_again_unless_asked(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = write_text(small.parent / "held_out.txt", seed=1)
    first = measure(small, held_out)
    read: list[int] = []
    plain = answers.read

    def counted(models: Any, ids: Any, **rest: Any) -> Any:
        read.append(len(ids))
        return plain(models, ids, **rest)

    monkeypatch.setattr(answers, "read", counted)
    again = measure(small, held_out)
    assert not read
    assert [row["texts"] for row in again["rows"]] == [row["texts"] for row in first["rows"]]
    measure(small, held_out, fresh=True)
    assert read


def test_another_tokenizer_is_another_question(small: Path) -> None:
    held_out = write_text(small.parent / "held_out.txt", seed=1)
    measure(small, held_out)
    kept = small.parent / "cache" / "answers"
    before = set(kept.glob("*.jsonl"))
    for folder in (small, small.parent / "source"):
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 77}))
    measure(small, held_out)
    assert set(kept.glob("*.jsonl")) > before


def test_text_that_was_calibrated_on_is_refused(small: Path) -> None:
    with pytest.raises(SpectrimError, match="calibrated on share"):
        measure(small, small.parent / "text.txt")


def test_the_best_earlier_run_is_remembered(small: Path) -> None:
    held_out = write_text(small.parent / "held_out.txt", seed=1)
    assert measure(small, held_out)["earlier"] is None
    asked = recipe(small.parent / "source", small.parent / "text.txt", "90% of linear")
    larger = shrink(asked, small.parent / "larger")
    found = measure(larger, held_out)["earlier"]
    assert found["name"] == str(small)
    assert measure(small, held_out)["earlier"] is None  # the larger one has more bytes


def test_a_task_that_cannot_be_had_is_an_error_when_asked_for(small: Path, tmp_path: Path) -> None:
    held_out = write_text(small.parent / "held_out.txt", seed=1)
    with pytest.raises(SpectrimError, match="crows_pairs"):
        measure(small, held_out, tasks=("crows_pairs",), data=tmp_path / "source")
    with pytest.raises(SpectrimError, match="did you mean 'crows_pairs'"):
        measure(small, held_out, tasks=("crows_pair",), data=tmp_path / "source")


@pytest.mark.parametrize("name", ["crows_pair", "mmlu_nothing"])
def test_an_unknown_task_is_refused_before_a_model_is_looked_for(
    small: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    touched: list[Any] = []
    for part in ("resolve", "tokenizer", "model"):
        monkeypatch.setattr(sources, part, lambda *args, **rest: touched.append(args))
    with pytest.raises(SpectrimError, match=f"no task named '{name}'"):
        measure(small, tasks=("copa", name))
    assert not touched


def test_each_model_s_weights_are_hashed_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = write_text(small.parent / "held_out.txt", seed=1)
    hashed: list[Path] = []
    plain = sources.fingerprint
    monkeypatch.setattr(sources, "fingerprint", lambda one: hashed.append(one) or plain(one))
    measure(small, held_out)
    assert sorted(hashed) == sorted([small, small.parent / "source"])


def test_models_that_read_differently_are_not_compared(small: Path) -> None:
    held_out = write_text(small.parent / "held_out.txt", seed=1)
    other = tiny_folder(small.parent / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"w9"', '"x9"'))
    with pytest.raises(SpectrimError, match="do not share a tokenizer"):
        evaluate(str(small), text=str(held_out), against=str(other), tokens=SIZE)


@pytest.mark.parametrize(
    ("words", "told"),
    [(20, "gives 0 full windows of 32 tokens"), (100, "gives 3 full windows"), (0, "is empty")],
)
def test_text_that_is_too_short_is_refused(small: Path, words: int, told: str) -> None:
    held_out = write_text(small.parent / "held_out.txt", words=words, seed=1)
    with pytest.raises(SpectrimError, match=told):
        measure(small, held_out)
