"""Calibration text from files and data sets: what is read, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from spectrim.errors import SpectrimError
from spectrim.text.documents import COLUMNS, begin, encode, read

TEMPLATE = "{% for m in messages %}w3 {{ m.content }} w4 {% endfor %}"


def tokenizer(*, opens: bool = False) -> PreTrainedTokenizerFast:
    """A word a token: w5 is 5. opens: puts its first token before every text."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{index}": index for index in range(3, 40)}
    plain = Tokenizer(WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    if opens:
        plain.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **special)


def rows(file: Path, *found: Any) -> str:
    file.write_text("\n".join(json.dumps(row) for row in found) + "\n")
    return str(file)


def refused(name: str | Path) -> str:
    with pytest.raises(SpectrimError) as raised:
        read(str(name), tokenizer(), 3)
    return str(raised.value)


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "my.txt"
    file.write_text("w5 w6\n\nw7 w8 w9")
    assert read(str(file), tokenizer(), 2).ids.tolist() == [[5, 6], [7, 8]]


def test_each_line_of_jsonl_is_a_document(tmp_path: Path) -> None:
    file = tmp_path / "my.jsonl"
    name = rows(file, {"text": "w5 w6"}, {"text": "w7 w8 w9"})
    file.write_text(file.read_text() + "\n\n")
    assert read(name, tokenizer(), 3).ids.tolist() == [[5, 6, 2], [7, 8, 9]]


@pytest.mark.parametrize("column", COLUMNS)
def test_the_text_is_found_in_any_known_column(tmp_path: Path, column: str) -> None:
    name = rows(tmp_path / "my.jsonl", {"id": 1, column: "w5 w6 w7"})
    assert read(name, tokenizer(), 3).ids.tolist() == [[5, 6, 7]]


def test_the_first_known_column_counts(tmp_path: Path) -> None:
    name = rows(tmp_path / "my.jsonl", {"article": "w9 w9 w9", "text": "w5 w6 w7"})
    assert read(name, tokenizer(), 3).ids.tolist() == [[5, 6, 7]]


def test_messages_go_through_the_chat_template(tmp_path: Path) -> None:
    chats = tokenizer()
    chats.chat_template = TEMPLATE
    said = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]
    name = rows(tmp_path / "my.jsonl", {"messages": said})
    assert read(name, chats, 6).ids.tolist() == [[3, 5, 4, 3, 6, 4]]
    assert f"line 1 of {name} is a chat, but the model's tokenizer has no chat template" in refused(
        name
    )


STRICT = (
    TEMPLATE + "{% if messages[0].role != 'user' %}{{ raise_exception('a user first') }}{% endif %}"
)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ([{"role": "system", "content": "w5"}], "refuses line 2 of .* (a user first); put that"),
        ('[{"role": "user"}]', "refuses line 2 of .* ('messages' is no list); put that chat"),
        ([5], "refuses line 2 of "),
    ],
)
def test_chats_that_the_template_refuses(tmp_path: Path, said: object, line: str) -> None:
    chats = tokenizer()
    chats.chat_template = STRICT
    fine = {"messages": [{"role": "user", "content": "w5"}]}
    name = rows(tmp_path / "my.jsonl", fine, {"messages": said})
    with pytest.raises(SpectrimError, match=line.replace("(", r"\(").replace(")", r"\)")):
        read(name, chats, 6)


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    for name, text in (("my.txt", "w5 w6"), ("my.jsonl", '{"text": "w5 w6"}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read(str(tmp_path / name), tokenizer(), 2).ids.tolist() == [[5, 6]]


def test_the_first_token_is_put_where_the_tokenizer_puts_it(tmp_path: Path) -> None:
    file = tmp_path / "my.txt"
    file.write_text("w5 w6 w7 w8")
    assert begin(tokenizer()) is None
    assert begin(tokenizer(opens=True)) == 1
    found = read(str(file), tokenizer(opens=True), 3)
    assert found.ids.tolist() == [[1, 5, 6], [1, 7, 8]]


def test_special_words_in_a_text_are_read_as_the_tokenizer_reads_them(tmp_path: Path) -> None:
    documents = ["w5", "", "w6"]
    assert encode(documents, tokenizer(), 3).ids.tolist() == [[5, 2, 6]]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe")
    assert refused(empty) == f"{empty} is empty; calibration and evaluation need text"
    assert refused(binary).startswith(f"{binary} is not UTF-8 text (invalid start byte); convert")
    assert refused(tmp_path) == (
        f"{tmp_path} is a folder; give a text file, a .jsonl file or a data set"
    )
    for name in ("none.txt", "./none", "/none", "~none/x", "folder/none.jsonl"):
        assert refused(name) == f"there is no text file {name}; check the path"


def test_lines_that_are_no_documents_are_named(tmp_path: Path) -> None:
    file = tmp_path / "my.jsonl"
    known = "expected one of text, content, messages, article"
    rows(file, {"text": "w5"}, {"words": "w6"})
    assert refused(file) == f"line 2 of {file} has no text; {known}"
    rows(file, ["text"])
    assert refused(file) == f"line 1 of {file} has no text; {known}"
    rows(file, {"text": 5})
    assert refused(file) == f"'text' in line 1 of {file} is no text; expected a string"
    file.write_text('{"text": "w5"}\n{"text": ')
    assert refused(file) == f"line 2 of {file} is not JSON (Expecting value)"


# data sets, without a network


class Hub:
    """Stands in for the hub: notes what was asked for and gives rows one by one."""

    def __init__(self, *found: dict[str, Any]) -> None:
        self.found, self.asked, self.given = found, (), 0

    def __call__(self, *asked: Any, **options: Any) -> Iterator[dict[str, Any]]:
        self.asked = (*asked, options)
        for row in self.found:
            self.given += 1
            yield row


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("someone/set", ("someone/set", None, "train")),
        ("someone/set:en", ("someone/set", "en", "train")),
        ("someone/set:en:test", ("someone/set", "en", "test")),
        ("someone/set::test", ("someone/set", None, "test")),
    ],
)
def test_a_data_set_is_named_with_config_and_split(
    monkeypatch: pytest.MonkeyPatch, name: str, asked: tuple[str, str | None, str]
) -> None:
    hub = Hub({"text": "w5 w6 w7"})
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert read(name, tokenizer(), 3).ids.tolist() == [[5, 6, 7]]
    assert hub.asked == (*asked[:2], {"split": asked[2], "streaming": True})


def test_no_more_of_a_data_set_is_read_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(*[{"text": "w5 w6 w7 w8"}] * 100)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert len(read("someone/set", tokenizer(), 4, at_most=2)) >= 2
    assert hub.given == 4  # of 11 characters, until 2 x 4 x 5 are there


def test_a_data_set_that_cannot_be_had_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the hub\n  cannot be reached")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert refused("someone/set") == (
        "no text named 'someone/set': neither a file nor a data set that can be had "
        "(the hub cannot be reached)"
    )
    monkeypatch.setattr(datasets, "load_dataset", Hub({"label": 1}))
    assert refused("someone/set").startswith("data set someone/set has no text; expected one of")
