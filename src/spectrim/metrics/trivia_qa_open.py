"""TriviaQA open book: the shortest text that came with the question is given with it.

Where no texts of TriviaQA are at hand, neither in a file nor on the hub, questions and passages are
those of XQuAD, judged in the same three tiers; the task is then named so.

Joshi et al., "TriviaQA: A Large Scale Distantly Supervised Challenge Dataset for Reading
Comprehension" (1705.03551).
"""

from __future__ import annotations

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import Measurement, Pair
from spectrim.metrics.asking.examples import DataSet, Row
from spectrim.metrics.asking.trivia import of_hub, scored
from spectrim.metrics.asking.writing import origin
from spectrim.metrics.reading_comprehension import DATA as XQUAD

TASKS = ("trivia_qa_open",)
ON_XQUAD = "trivia_qa_open, on XQuAD"

PASSAGE_WORDS = 400


def with_passage(row: Row) -> Row:
    """Return the hub's row as the file's, with its shortest text, empty where it has none."""
    texts = [
        *(row.get("entity_pages") or {}).get("wiki_context", ()),
        *(row.get("search_results") or {}).get("search_context", ()),
    ]
    shortest = min((text for text in texts if text and text.strip()), key=len, default="")
    return {**of_hub(row), "passage": shortest}


DATA = DataSet(
    file="qa/triviaqa_open.jsonl",
    hub="mandarjoshi/trivia_qa:rc:validation",
    columns=("context", "passage", "answer", "aliases"),
    adapt=with_passage,
    lists=("aliases",),
)


def measure(pair: Pair) -> Measurement:
    """Return the share of answers that match exactly, as a substring, and in 80 % of the words.

    Raises:
        UnavailableError: there is neither a file of TriviaQA's, nor the hub's data set, nor a file
            of XQuAD; a quick suite does not fetch the hub's.
        SpectrimError: the file is empty or damaged, or none of its questions has a passage.
    """
    limit = pair.items(quick=24)
    try:
        task, rows, told = TASKS[0], _own(pair)[:limit], origin(pair, DATA, "as in the file")
        told["passage"] = f"the shortest of the question's texts, its first {PASSAGE_WORDS} words"
    except UnavailableError:
        if XQUAD.local(pair) is None:
            raise
        task, rows, told = ON_XQUAD, XQUAD.rows(pair, limit), origin(pair, XQUAD, "validation")
        rows = [of_xquad(row) for row in rows]
        told["questions"] = "XQuAD's, with its passages: no TriviaQA passages are at hand"
        told["passage"] = f"the paragraph, its first {PASSAGE_WORDS} words"
    how = {"prompt": "'Passage: …\\n\\nQuestion: …\\nAnswer:'", "examples": 0}
    return scored(pair, task, rows, prompt, {**told, **how})


def _own(pair: Pair) -> list[Row]:
    """Return the questions of TriviaQA that have a passage."""
    chosen = pair.evaluation
    if chosen.suite == "quick" and not chosen.tasks and DATA.local(pair) is None:
        raise UnavailableError(
            f"no file {DATA.file} in the folder of data, and the hub's texts are gigabytes, too "
            f"many for the quick suite; bring the file, or ask with --tasks {TASKS[0]}"
        )
    rows = [row for row in DATA.rows(pair, None) if row["passage"].strip()]
    if not rows:
        raise SpectrimError(f"no question of {DATA.file} has a passage; expected one in each row")
    return rows


def of_xquad(row: Row) -> Row:
    """Return a question of XQuAD as one of TriviaQA's file."""
    first, *others = row["answers"]
    return {
        "context": f"Question: {row['question']}\nAnswer:",
        "passage": row["context"],
        "answer": first,
        "aliases": others,
    }


def prompt(row: Row) -> str:
    """Return the passage, cut, and then the question."""
    passage = " ".join(row["passage"].split()[:PASSAGE_WORDS])
    return f"Passage: {passage}\n\n{row['context']}"
