"""Files of the folder of data, in the columns that lm-eval's own tasks expect.

The YAML files of ``lm_eval_tasks`` repeat lm-eval's own prompts and functions; ``documents`` gives
them the rows as the hub's data sets have them. lm-eval's own command runs them too, where spectrim
is installed: ``--include_path <lm_eval_tasks> --metadata '{"data": "<folder>"}'``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from spectrim.errors import SpectrimError
from spectrim.metrics.asking.examples import DAMAGED, DataSet, Row

LETTERS = "ABCDEFGHIJ"
COPA_TRAINING = 400  # SuperGLUE trains on the first 400 of COPA's development set


@dataclass(frozen=True)
class Local:
    """A file of the folder of data, and how its rows become lm-eval's documents by split."""

    data: DataSet
    adapt: Callable[[Row], Row]
    splits: Callable[[list[Row]], dict[str, list[Row]]]

    def documents(self, folder: Path) -> dict[str, list[Row]]:
        """Return the documents of every split, in the file's order.

        Raises:
            SpectrimError: the file is empty, is damaged, or a row lacks what it needs.
        """
        path = folder / self.data.file
        found = []
        for number, row in enumerate(self.data.of_file(path), start=1):
            try:
                found.append(self.adapt(row))
            except DAMAGED as error:
                raise SpectrimError(
                    f"row {number} of {path} is not one of this task ({error!r}); get it again"
                ) from error
        return self.splits(found)


def documents(task: str, data: str, **_: Any) -> Any:
    """Return a local task's documents as lm-eval wants them: split → ``datasets.Dataset``.

    lm-eval calls it with all the metadata that it has; only the folder of data matters.

    Raises:
        SpectrimError: the file is damaged, or a column holds values of several sorts.
    """
    from datasets import Dataset

    splits = LOCAL[task].documents(Path(data))
    try:
        return {split: Dataset.from_list(rows) for split, rows in splits.items()}
    except DAMAGED as error:  # all that pyarrow raises for such rows is one of these
        raise SpectrimError(
            f"the rows of {Path(data) / LOCAL[task].data.file} hold values of several sorts in a "
            f"column ({str(error).partition(chr(10))[0]}); get it again"
        ) from error


def _arc(row: Row) -> Row:
    choices = [str(one) for one in row["choices"]]
    return {
        "question": row["query"].removeprefix("Question: "),
        "choices": {"text": choices, "label": list(LETTERS[: len(choices)])},
        "answerKey": LETTERS[range(len(choices)).index(row["gold"])],
    }


def _boolq(row: Row) -> Row:
    # SuperGLUE's passages begin with the article's title.
    passage = f"{row['title']} -- {row['passage']}"
    return {"question": row["question"], "passage": passage, "label": int(row["answer"])}


def _winogrande(row: Row) -> Row:
    first, second = row["context_options"]
    start = commonprefix([first, second]).rfind(" ") + 1
    return {
        "sentence": f"{first[:start]}_ {row['continuation']}",
        "option1": first[start:],
        "option2": second[start:],
        "answer": str(1 + range(2).index(row["gold"])),
    }


def _openbookqa(row: Row) -> Row:
    choices = row["question"]["choices"]
    labels = [one["label"] for one in choices]
    labels.index(row["answerKey"])
    return {
        "question_stem": row["question"]["stem"],
        "choices": {"text": [one["text"] for one in choices], "label": labels},
        "answerKey": row["answerKey"],
    }


def _copa(row: Row) -> Row:
    return {
        "premise": row["p"],
        "choice1": row["a1"],
        "choice2": row["a2"],
        "question": row["asks-for"],
        "label": ["1", "2"].index(row["most-plausible-alternative"]),
    }


def _copa_rows(path: Path) -> Iterable[Row]:
    from xml.etree import ElementTree

    try:
        items = ElementTree.parse(path).getroot().iter("item")
    except ElementTree.ParseError as error:
        raise ValueError(error) from error
    return [{**item.attrib, **{part.tag: part.text for part in item}} for item in items]


def _truthfulqa(row: Row) -> Row:
    """Return the choices as the benchmark's own code makes them (Lin et al., 2109.07958)."""
    best = _closed(row["Best Answer"])[:1]
    true, false = _closed(row["Correct Answers"]), _closed(row["Incorrect Answers"])
    if not (best and true and false):
        raise ValueError("an answer is missing")
    return {
        "question": row["Question"],
        "mc1_targets": _marked(best, false),
        "mc2_targets": _marked(true, false),
    }


def _closed(answers: str) -> list[str]:
    parts = [part.strip() for part in answers.split(";")]
    return [part if part.endswith(".") else f"{part}." for part in parts if part]


def _marked(true: list[str], false: list[str]) -> Row:
    return {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)}


def _in(split: str) -> Callable[[list[Row]], dict[str, list[Row]]]:
    return lambda rows: {split: rows}


def _copa_splits(rows: list[Row]) -> dict[str, list[Row]]:
    found = {"train": rows[:COPA_TRAINING], "validation": rows[COPA_TRAINING:]}
    return found if found["validation"] else {"train": rows, "validation": rows}


_TRUTHFULQA = Local(
    DataSet(
        file="qa/truthfulqa/TruthfulQA.csv",
        hub="",
        columns=("Question", "Best Answer", "Correct Answers", "Incorrect Answers"),
    ),
    _truthfulqa,
    _in("validation"),
)

LOCAL = {
    "arc_easy": Local(
        DataSet("qa/llmfoundry_icl/arc_easy.jsonl", "", ("query", "choices", "gold")),
        _arc,
        _in("test"),
    ),
    "boolq": Local(
        DataSet("qa/boolq/dev.jsonl", "", ("question", "title", "passage", "answer")),
        _boolq,
        _in("validation"),
    ),
    "winogrande": Local(
        DataSet(
            "qa/llmfoundry_icl/winogrande.jsonl", "", ("context_options", "continuation", "gold")
        ),
        _winogrande,
        _in("validation"),
    ),
    "openbookqa": Local(
        DataSet("qa/openbookqa/test.jsonl", "", ("question", "answerKey")),
        _openbookqa,
        _in("test"),
    ),
    "copa": Local(
        DataSet(
            "qa/copa/copa-dev.xml",
            "",
            ("p", "a1", "a2", "asks-for", "most-plausible-alternative"),
            parse=_copa_rows,
        ),
        _copa,
        _copa_splits,
    ),
    "truthfulqa_mc1": _TRUTHFULQA,
    "truthfulqa_mc2": _TRUTHFULQA,
}
