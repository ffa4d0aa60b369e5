"""ROUGE by hand, models that copy the reference, and how each kind of model is asked."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import Evaluation, Pair, Score
from spectrim.metrics.summarisation import DATA, EXAMPLES, GAPS, NAMES, measure, rouge
from tiny_writers import Letters, Writer, put_rows, writing

ROWS = [
    {"dialogue": "Ann: Hi!\nTom: Bye!\n", "summary": "Ann greets Tom."},
    {"dialogue": "Eva: Tea?\nJim: Yes.", "summary": "Jim wants tea."},
]
ALL = (*NAMES, *GAPS)


def remembers(prompt: str) -> str:
    said = next(row["summary"] for row in ROWS if row["dialogue"].strip() in prompt)
    return f" {said}\nDialogue: more"


def named(scores: list[Score]) -> dict[str, Score]:
    return {score.name: score for score in scores}


def put(folder: Path, rows: list[dict[str, str]] = ROWS, task: str = "samsum") -> Path:
    put_rows(folder / DATA[task].file, rows)
    return folder


def test_rouge_by_hand() -> None:
    found = rouge("the cat sat on the mat", "the cat on the mat")
    assert found["rouge1"] == pytest.approx(2 * 5 / (6 + 5))
    assert found["rouge2"] == pytest.approx(2 * 3 / (5 + 4))
    assert found["rougeL"] == found["rougeLsum"] == pytest.approx(2 * 5 / (6 + 5))
    assert found["rouge_s"] == found["rouge_s4"] == pytest.approx(2 * 10 / (15 + 10))


def test_sentences_in_another_order_cost_rouge_l_but_not_lsum() -> None:
    found = rouge("Tom eats. Ann sleeps.", "Ann sleeps. Tom eats.")
    assert (found["rougeL"], found["rougeLsum"]) == (0.5, 1.0)


def test_words_are_compared_by_their_stems() -> None:
    assert rouge("Ann sleeps", "ann sleeping") == dict.fromkeys(ALL, 1.0)


def test_an_empty_summary_is_worth_nothing() -> None:
    assert rouge("Ann sleeps", "") == dict.fromkeys(ALL, 0.0)


@pytest.mark.parametrize("task", DATA)
def test_a_model_that_knows_the_summaries_and_one_that_is_silent(tmp_path: Path, task: str) -> None:
    models = {"dense": Writer(remembers), "small": Writer(lambda prompt: "")}
    found = measure(writing(put(tmp_path, task=task), models, task))
    dense, small = named(found["dense"]), named(found["small"])
    assert set(dense) == {*ALL, "summary_tokens"}
    assert set(small) == {*dense, "rougeL_difference_to_dense"}
    change = small["rougeL_difference_to_dense"]
    assert (change.value, change.interval, change.n) == (-1.0, (-1.0, -1.0), 2)
    assert all(dense[name].value == 1.0 and small[name].value == 0.0 for name in ALL)
    assert all(dense[name].n == 2 and dense[name].better == "higher" for name in ALL)
    length = sum(len(row["summary"]) for row in ROWS) / 2
    assert dense["summary_tokens"].value == dense["summary_tokens"].settings["references"] == length
    assert small["summary_tokens"].value == 0
    assert {score.settings["task"] for score in found["small"]} == {task}


def test_a_decoder_is_asked_by_a_prompt_and_the_settings_say_so(tmp_path: Path) -> None:
    model = Writer(remembers)
    found = named(measure(writing(put(tmp_path), {"small": model}, "samsum"))["small"])
    asked = [f"{EXAMPLES}Dialogue:\n{row['dialogue'].strip()}\nSummary:" for row in ROWS]
    assert sorted(model.prompts) == sorted(asked)
    settings = found["rouge1"].settings
    assert model.allowed == {settings["new_tokens"]} == {40}
    assert "train" in settings["split"] and settings["examples"] == 2
    assert settings["decoding"] == "greedy" and settings["stemmer"] is True
    assert settings["rouge-score"] == version("rouge-score")


@pytest.mark.parametrize(("kind", "prefix"), [("t5", "summarize: "), ("bart", "")])
def test_an_encoder_reads_the_dialogue(tmp_path: Path, kind: str, prefix: str) -> None:
    model = Writer(lambda prompt: remembers(prompt).partition("\n")[0], kind=kind)
    found = measure(writing(put(tmp_path), {"small": model}, "samsum", suite="full"))
    assert sorted(model.prompts) == sorted(prefix + row["dialogue"].strip() for row in ROWS)
    assert model.allowed == {128}
    assert named(found["small"])["rouge2"].value == 1.0


def test_long_dialogues_are_left_out_and_counted(tmp_path: Path) -> None:
    long = {"dialogue": "Ann: " + "so " * 200, "summary": "Ann talks."}
    model = Writer(remembers)
    pair = writing(put(tmp_path, [*ROWS, long, long]), {"small": model}, "samsum")
    score = named(measure(pair)["small"])["rouge1"]
    assert score.n == 2 == len(model.prompts)
    assert (score.settings["longer_left_out"], score.settings["dialogue_tokens"]) == (2, 320)


def test_only_long_dialogues_are_refused(tmp_path: Path) -> None:
    long = {"dialogue": "so " * 200, "summary": "So."}
    with pytest.raises(SpectrimError, match="every dialogue of .* is over 320 tokens"):
        measure(writing(put(tmp_path, [long]), {"small": Writer(remembers)}, "samsum"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"dialogue": "Ann: Hi!"}], "row 1 of .* has no 'summary'"),
        ([{"dialogue": ["Ann: Hi!"], "summary": "x"}], "row 1 of .* as 'dialogue'; expected text"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(SpectrimError, match=message):
        measure(writing(put(tmp_path, rows), {"small": Writer(remembers)}, "samsum"))


def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    model = Writer(remembers)
    with pytest.raises(UnavailableError, match="needs the package rouge.score; pip install"):
        measure(writing(put(tmp_path), {"small": model}, "samsum"))
    assert not model.prompts


def test_a_suite_goes_on_without_one_of_the_files(tmp_path: Path) -> None:
    chosen = Evaluation(suite="quick", data=put(tmp_path))
    pair = Pair({"small": Writer(remembers)}, {}, chosen, tokenizer=Letters())  # type: ignore[dict-item, arg-type]
    found = measure(pair)
    assert {score.settings["task"] for score in found["small"]} == {"samsum"}
    assert list(pair.left_out) == ["dialogsum"] and "dialogsum.dev" in pair.left_out["dialogsum"]


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no file .*dialogsum\.dev"):
        measure(writing(put(tmp_path), {"small": Writer(remembers)}, "dialogsum"))
