"""TriviaQA: the three tiers by hand, and models of which it is known what they know."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import Evaluation, Pair, Score, trivia_qa, trivia_qa_open
from spectrim.metrics.asking.trivia import TIERS, tiers
from spectrim.metrics.reading_comprehension import DATA as XQUAD
from tiny_writers import Letters, Writer, put_rows, writing

KNOWN = {"Lima?": "Peru", "Oslo?": "Norway", "Cairo?": "Egypt", "Quito?": "Ecuador"}
ROWS = [
    {"context": f"Question: {asked}\nAnswer:", "answer": right, "aliases": [right, "The"]}
    for asked, right in KNOWN.items()
]


def knows(prompt: str) -> str:
    """Answer rightly, and go on as models do."""
    asked = prompt.rpartition("Question: ")[2].partition("\n")[0]
    return f" {KNOWN[asked]}.\nQuestion"


def knows_half(prompt: str) -> str:
    return knows(prompt) if "o?" not in prompt else " no"


def named(scores: list[Score]) -> dict[str, Score]:
    return {score.name: score for score in scores}


@pytest.mark.parametrize(
    ("answer", "gold", "reached"),
    [
        ("The Beatles!", ["beatles"], 3),
        ("beatles", ["Wings", "Beatles"], 3),
        ("I think it was Jane Austen", ["Jane Austen"], 2),
        ("language", ["age"], 0),
        ("four three two one", ["one two three four five"], 1),
        ("three two one", ["one two three four five"], 0),
        ("", ["Jane Austen"], 0),
        ("", ["The"], 0),
        ("anything", ["The", "?"], 0),
    ],
)
def test_each_tier_holds_those_before_it(answer: str, gold: list[str], reached: int) -> None:
    found = tiers(answer, gold)
    assert list(found) == list(TIERS)
    assert list(found.values()) == [reached >= 3, reached >= 2, reached >= 1]


def test_shares_and_flips_of_models_that_know_all_and_half(tmp_path: Path) -> None:
    put_rows(tmp_path / trivia_qa.DATA.file, ROWS)
    models = {"dense": Writer(knows), "small": Writer(knows_half)}
    found = trivia_qa.measure(writing(tmp_path, models, "trivia_qa", limit=4))
    dense, small = named(found["dense"]), named(found["small"])
    for tier in TIERS:
        assert dense[tier].value == 1.0
        assert small[tier].value == 0.25  # of Lima alone
        assert small[tier].n == 4 and small[tier].better == "higher"
    assert (small["lost"].value, small["gained"].value) == (0.75, 0.0)
    assert small["mcnemar_p"].value == pytest.approx(2 * 0.5**3)
    assert "lost" not in dense and small["lost"].settings["of"] == "words"
    assert {score.settings["task"] for score in found["small"]} == {"trivia_qa"}


def test_the_prompt_shows_examples_and_ends_with_the_question(tmp_path: Path) -> None:
    put_rows(tmp_path / trivia_qa.DATA.file, ROWS)
    model = Writer(knows)
    found = trivia_qa.measure(writing(tmp_path, {"small": model}, "trivia_qa"))
    assert sorted(model.prompts) == sorted(trivia_qa.EXAMPLES + str(row["context"]) for row in ROWS)
    assert model.allowed == {16}
    settings = named(found["small"])["exact"].settings
    assert settings["new_tokens"] == 16 and settings["data"] == trivia_qa.DATA.file
    assert settings["seed"] == 0 and "SQuAD" in settings["normalisation"]


def test_the_full_suite_lets_write_fifty_tokens(tmp_path: Path) -> None:
    put_rows(tmp_path / trivia_qa.DATA.file, ROWS)
    model = Writer(knows)
    trivia_qa.measure(writing(tmp_path, {"small": model}, "trivia_qa", suite="full"))
    assert model.allowed == {50} and len(model.prompts) == 4


def test_open_book_reads_the_answer_from_the_passage(tmp_path: Path) -> None:
    rows = [{**row, "passage": f"{row['answer']} it is."} for row in ROWS]
    put_rows(tmp_path / trivia_qa_open.DATA.file, [*rows, {**rows[0], "passage": " "}])
    model = Writer(lambda prompt: prompt.split()[1])
    chosen = Evaluation(suite="quick", data=tmp_path)
    pair = Pair({"small": model}, {}, chosen, tokenizer=Letters())  # type: ignore[dict-item, arg-type]
    scores = named(trivia_qa_open.measure(pair)["small"])
    assert scores["exact"].value == 1.0
    assert scores["exact"].n == 4  # the question without a passage is left out
    assert "Passage: Peru it is.\n\nQuestion: Lima?\nAnswer:" in model.prompts


def test_a_long_passage_loses_its_end() -> None:
    found = trivia_qa_open.prompt({**ROWS[0], "passage": "so " * 399 + "kept lost"})
    assert found.endswith(" so kept\n\nQuestion: Lima?\nAnswer:")


def test_the_hub_s_row_gives_its_shortest_text() -> None:
    row = {
        "question": "Capital of Peru?",
        "answer": {"value": "Lima", "aliases": ["Ciudad"]},
        "entity_pages": {"wiki_context": ["a long text", " "]},
        "search_results": {"search_context": ["short", "longer one"]},
    }
    found = trivia_qa_open.with_passage(row)
    assert found["passage"] == "short"
    assert found["context"] == "Question: Capital of Peru?\nAnswer:"
    assert (found["answer"], found["aliases"]) == ("Lima", ["Ciudad"])
    assert trivia_qa_open.with_passage({**row, "entity_pages": {}, "search_results": {}})[
        "passage"
    ] == ("")


def test_a_quick_suite_does_not_fetch_the_open_book(tmp_path: Path) -> None:
    pair = Pair({"small": Writer(knows)}, {}, Evaluation(suite="quick", data=tmp_path))  # type: ignore[dict-item]
    with pytest.raises(UnavailableError, match="triviaqa_open.jsonl.*--tasks trivia_qa_open"):
        trivia_qa_open.measure(pair)


def put_xquad(folder: Path) -> None:
    asked = [
        {"question": "Lima?", "answers": [{"text": "Peru"}, {"text": "the Republic of Peru"}]},
        {"question": "Oslo?", "answers": [{"text": "Norway"}]},
    ]
    paragraphs = [{"context": "Peru and Norway are far apart.", "qas": asked}]
    file = folder / XQUAD.file
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")


@pytest.mark.parametrize("asked", [(), ("trivia_qa_open",)])
def test_without_passages_of_triviaqa_those_of_xquad_are_read_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", no_hub := ModuleType("datasets"))
    no_hub.load_dataset = unreachable  # type: ignore[attr-defined]
    put_xquad(tmp_path)
    model = Writer(lambda prompt: " Peru, I think")
    chosen = Evaluation(suite="quick", data=tmp_path, tasks=asked)
    pair = Pair({"small": model}, {}, chosen, tokenizer=Letters())  # type: ignore[dict-item, arg-type]
    scores = named(trivia_qa_open.measure(pair)["small"])
    assert [scores[tier].value for tier in TIERS] == [0, 0.5, 0.5]  # the other asks for Norway
    assert "Passage: Peru and Norway are far apart.\n\nQuestion: Lima?\nAnswer:" in model.prompts
    settings = scores["exact"].settings
    assert settings["task"] == "trivia_qa_open, on XQuAD" and settings["data"] == XQUAD.file
    assert "no TriviaQA passages are at hand" in settings["questions"]


def unreachable(*names: Any, **settings: Any) -> None:
    raise ConnectionError("no network")


def test_its_own_passages_go_before_those_of_xquad(tmp_path: Path) -> None:
    put_xquad(tmp_path)
    put_rows(tmp_path / trivia_qa_open.DATA.file, [{**ROWS[0], "passage": "Peru."}])
    found = trivia_qa_open.measure(writing(tmp_path, {"small": Writer(knows)}, "trivia_qa_open"))
    assert {score.settings["task"] for score in found["small"]} == {"trivia_qa_open"}
    assert "questions" not in found["small"][0].settings


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"context": "Question: x"}], "row 1 of .* has no 'answer'"),
        ([{**ROWS[0], "answer": 1969}], "row 1 of .* has 1969 as 'answer'; expected text"),
        ([{**ROWS[0], "aliases": "Lima"}], "row 1 of .* as 'aliases'; expected a list of texts"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    put_rows(tmp_path / trivia_qa.DATA.file, rows)
    with pytest.raises(SpectrimError, match=message):
        trivia_qa.measure(writing(tmp_path, {"small": Writer(knows)}, "trivia_qa"))


def test_passages_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    put_rows(tmp_path / trivia_qa_open.DATA.file, [{**row, "passage": ""} for row in ROWS])
    with pytest.raises(SpectrimError, match="no question of .* has a passage"):
        trivia_qa_open.measure(writing(tmp_path, {"small": Writer(knows)}, "trivia_qa_open"))


def test_without_a_tokenizer_nothing_can_be_written(tmp_path: Path) -> None:
    put_rows(tmp_path / trivia_qa.DATA.file, ROWS)
    pair = Pair({"small": Writer(knows)}, {}, Evaluation(data=tmp_path))  # type: ignore[dict-item]
    with pytest.raises(UnavailableError, match="no tokenizer"):
        trivia_qa.measure(pair)
