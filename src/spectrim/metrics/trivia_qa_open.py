"""TriviaQA open book: the shortest text that came with the question is given with it.

Joshi et al., "TriviaQA: A Large Scale Distantly Supervised Challenge Dataset for Reading
Comprehension" (1705.03551).
"""

from __future__ import annotations

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import Measurement, Pair
from spectrim.metrics._examples import DataSet, Row
from spectrim.metrics._trivia import of_hub, scored
from spectrim.metrics._writing import origin

TASKS = ("trivia_qa_open",)

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
)


def measure(pair: Pair) -> Measurement:
    """Return the share of answers that match exactly, as a substring, and in 80 % of the words.

    Raises:
        UnavailableError: there is neither the file nor the hub's data set; or there is no file and
            a quick suite would have to fetch the hub's.
        SpectrimError: the file is empty or damaged, or none of its questions has a passage.
    """
    chosen = pair.evaluation
    if chosen.suite == "quick" and not chosen.tasks and DATA.local(pair) is None:
        raise UnavailableError(
            f"no file {DATA.file} in the folder of data, and the hub's texts are gigabytes, too "
            f"many for the quick suite; bring the file, or ask with --tasks {TASKS[0]}"
        )
    rows = [row for row in DATA.rows(pair, None) if row["passage"].strip()]
    if not rows:
        raise SpectrimError(f"no question of {DATA.file} has a passage; expected one in each row")
    told = {
        **origin(pair, DATA, "as in the file"),
        "prompt": "'Passage: …\\n\\nQuestion: …\\nAnswer:'",
        "passage": f"the shortest of the question's texts, its first {PASSAGE_WORDS} words",
        "examples": 0,
    }
    return scored(pair, TASKS[0], rows[: pair.items(quick=24)], prompt, told)


def prompt(row: Row) -> str:
    """Return the passage, cut, and then the question."""
    passage = " ".join(row["passage"].split()[:PASSAGE_WORDS])
    return f"Passage: {passage}\n\n{row['context']}"
