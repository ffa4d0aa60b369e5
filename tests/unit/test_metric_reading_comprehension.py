"""SQuAD's exact match and F1 by hand, and models that copy the answer or half of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spectrim.errors import SpectrimError
from spectrim.metrics import Score
from spectrim.metrics.asking.squad import exact_match, f1, normalised
from spectrim.metrics.reading_comprehension import DATA, EXAMPLES, measure, of_hub, questions
from tiny_writers import Writer, writing

TASK = "xquad.en"
TEXTS = ["red fox", "blue whale", "grey owl"]


def asked(text: Any, *answers: Any) -> dict[str, Any]:
    found = [{"text": one, "answer_start": 0} for one in answers]
    return {"context": text, "qas": [{"question": "What is it?", "id": "1", "answers": found}]}


def put(folder: Path, content: Any) -> Path:
    file = folder / DATA.file
    file.parent.mkdir(parents=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return file


def put_texts(folder: Path) -> Path:
    paragraphs = [asked(text, "an eel", text) for text in TEXTS]
    return put(folder, {"data": [{"title": "Animals", "paragraphs": paragraphs}]})


def text_of(prompt: str) -> str:
    return prompt.rpartition("Text: ")[2].partition("\n")[0]


def named(scores: list[Score]) -> dict[str, Score]:
    return {score.name: score for score in scores}


def test_normalised_as_the_official_script_does() -> None:
    assert normalised("The U.S.  Army's\tA-Team, an elite") == "us armys ateam elite"
    assert normalised("Theatre and Anna") == "theatre and anna"


@pytest.mark.parametrize(
    ("answer", "gold", "match", "overlap"),
    [
        ("the Broncos!", ["Denver Broncos", "broncos"], True, 1.0),
        ("the Denver Broncos won", ["Denver Broncos"], False, 0.8),
        ("Broncos Broncos", ["Denver Broncos"], False, 0.5),  # a word counts as often as both do
        ("Panthers", ["Denver Broncos"], False, 0.0),
        ("", ["Denver Broncos"], False, 0.0),
        ("Denver", ["Denver Broncos", "city of Denver"], False, 2 / 3),
    ],
)
def test_exact_match_and_f1(answer: str, gold: list[str], match: bool, overlap: float) -> None:
    assert exact_match(answer, gold) is match
    assert f1(answer, gold) == pytest.approx(overlap)


def test_models_that_copy_all_and_half(tmp_path: Path) -> None:
    put_texts(tmp_path)
    models = {
        "dense": Writer(lambda prompt: text_of(prompt) + "\nQuestion"),
        "small": Writer(lambda prompt: text_of(prompt).split()[0]),
    }
    found = measure(writing(tmp_path, models, TASK))
    dense, small = named(found["dense"]), named(found["small"])
    assert (dense["exact_match"].value, dense["f1"].value) == (1.0, 1.0)
    assert (small["exact_match"].value, small["f1"].value) == (0.0, pytest.approx(2 / 3))
    assert small["f1"].interval == pytest.approx((2 / 3, 2 / 3))
    change = small["f1_difference_to_dense"]
    assert change.value == pytest.approx(-1 / 3) and change.n == 3
    assert change.interval == pytest.approx((-1 / 3, -1 / 3))
    assert "f1_difference_to_dense" not in dense
    assert (small["lost"].value, small["f1"].n) == (1.0, 3)
    assert "lost" not in dense
    assert models["dense"].allowed == {12}
    expected = EXAMPLES + "Text: blue whale\nQuestion: What is it?\nAnswer:"
    assert sorted(models["dense"].prompts)[0] == expected
    assert small["f1"].settings["task"] == TASK and small["f1"].settings["new_tokens"] == 12


def test_the_interval_of_f1_lies_around_it(tmp_path: Path) -> None:
    put_texts(tmp_path)
    model = Writer(lambda prompt: "red fox" if text_of(prompt) == "red fox" else "no")
    score = named(measure(writing(tmp_path, {"small": model}, TASK))["small"])["f1"]
    assert score.value == pytest.approx(1 / 3) and score.interval == pytest.approx((0.0, 1.0))


def test_the_hub_s_rows_become_the_file_s(tmp_path: Path) -> None:
    (first, *_) = questions(put_texts(tmp_path))
    row = {
        "context": "red fox",
        "question": "What is it?",
        "answers": {"text": ["an eel", TEXTS[0]]},
    }
    assert of_hub(row) == first


def test_the_real_file_is_read_whole(data: Path) -> None:
    rows = list(questions(data / DATA.file))
    assert len(rows) == 1190
    assert all(answer in row["context"] for row in rows for answer in row["answers"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as data"),
        ([], "cannot be read as data"),
        ({"version": "1.1"}, "cannot be read as data .*'data'"),
        ({"data": []}, "is empty"),
        ({"data": [{"paragraphs": [asked("red fox")]}]}, "no answer to 'What is it.'"),
        ({"data": [{"paragraphs": 5}]}, "cannot be read as data"),
        ({"data": [{"paragraphs": [asked(7, "x")]}]}, "row 1 .* has 7 as 'context'; expected text"),
        (
            {"data": [{"paragraphs": [asked("red fox", "x", 1)]}]},
            "row 1 .* as 'answers'; expected a list of texts",
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: Any, message: str) -> None:
    put(tmp_path, content)
    with pytest.raises(SpectrimError, match=message):
        measure(writing(tmp_path, {"small": Writer(str)}, TASK))
