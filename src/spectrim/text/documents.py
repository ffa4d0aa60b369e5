"""Calibration text: files, JSONL, hub data sets, and a default mix for those who bring none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from spectrim.errors import SpectrimError
from spectrim.model.conversion import first_line
from spectrim.text.tokens import Tokens, pack

COLUMNS = ("text", "content", "messages", "article")  # in this order, where none is asked for


def read(name: str, tokenizer: PreTrainedTokenizerBase, length: int, at_most: int = 0) -> Tokens:
    """Return a text as full sequences of ``length`` tokens.

    name: a text file; a .jsonl file with a text column or chat "messages"; or a hub data set as
        "name", "name:config" or "name:config:split". at_most: sequences to read from a data set,
        0 for all.

    Raises:
        SpectrimError: no such text, an empty one, or a JSONL file without a text column.
    """
    documents = texts(name, tokenizer, at_most * length * 5)
    tokens = encode(documents, tokenizer, length)
    if len(tokens) == 0:
        raise SpectrimError(f"{name} is empty; calibration and evaluation need text")
    return tokens


def texts(name: str, tokenizer: PreTrainedTokenizerBase, characters: int = 0) -> list[str]:
    """Return the documents of a text, named as for `read`.

    characters: of a data set, about so many, 0 for all.

    Raises:
        SpectrimError: no such text, or a JSONL file without a text column.
    """
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return _lines(path, tokenizer) if path.suffix == ".jsonl" else [_text(path)]
    if path.exists():
        raise SpectrimError(f"{name} is a folder; give a text file, a .jsonl file or a data set")
    if path.suffix or name.startswith((".", "/", "~")):
        raise SpectrimError(f"there is no text file {name}; check the path")
    return hub_documents(name, characters)


def encode(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Tokens:
    """Return documents as full sequences, opened and parted as the tokenizer does it."""
    ids = [
        tokenizer(document, add_special_tokens=False, verbose=False).input_ids
        for document in documents
    ]
    return pack([found for found in ids if found], length, begin(tokenizer), tokenizer.eos_token_id)


def begin(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that this tokenizer puts before every text, None where it puts none."""
    opened: list[int] = tokenizer("").input_ids
    first = tokenizer.bos_token_id
    return first if first is not None and opened[:1] == [first] else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a mark before the text
    except UnicodeDecodeError as error:
        raise SpectrimError(f"{path} is not UTF-8 text ({error.reason}); convert it") from error


def _lines(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    documents = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SpectrimError(f"line {number} of {path} is not JSON ({error.msg})") from error
        documents.append(_document(row, f"line {number} of {path}", tokenizer))
    return documents


def _document(row: object, where: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    names = list(row) if isinstance(row, dict) else []
    column = next((name for name in COLUMNS if name in names), None)
    if column is None or not isinstance(row, dict):
        raise SpectrimError(f"{where} has no text; expected one of {', '.join(COLUMNS)}")
    value = row[column]
    chat = column == "messages" and not isinstance(value, str)
    if tokenizer is not None and (chat or (column == "messages" and tokenizer.chat_template)):
        return _chat(value, where, tokenizer)
    if not isinstance(value, str):
        raise SpectrimError(f"'{column}' in {where} is no text; expected a string")
    return value


def _chat(messages: object, where: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a chat as the model reads it."""
    if not tokenizer.chat_template:
        raise SpectrimError(
            f"{where} is a chat, but the model's tokenizer has no chat template; expected a "
            "column 'text'"
        )
    try:
        if not isinstance(messages, list):
            raise TypeError("'messages' is no list")
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # templates are programs of their own
        raise SpectrimError(
            f"the model's chat template refuses {where} ({first_line(error)}); put that chat "
            "right, or leave it out"
        ) from error


def hub_documents(name: str, characters: int) -> list[str]:
    """Return the first documents of a hub data set, up to about so many characters (0: all).

    Raises:
        SpectrimError: the data set cannot be had, or has no text column.
    """
    import datasets

    repository, _, rest = name.partition(":")
    config, _, part = rest.partition(":")
    try:
        rows = datasets.load_dataset(
            repository, config or None, split=part or "train", streaming=True
        )
        documents: list[str] = []
        held = 0
        for row in rows:
            documents.append(_document(row, f"data set {name}", None))
            held += len(documents[-1])
            if 0 < characters <= held:
                break
    except SpectrimError:
        raise
    except Exception as error:  # the hub, the network and each file format fail in their own ways
        reason = " ".join(str(error).split())[:120]
        raise SpectrimError(
            f"no text named '{name}': neither a file nor a data set that can be had ({reason})"
        ) from error
    return documents
