"""A tokenizer as llama.cpp wants it: tokens, kinds, merges or scores, and how text is split."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from transformers import PreTrainedTokenizerBase

from spectrim.errors import SpectrimError

_GPT2 = ("ByteLevel",)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    _GPT2: "gpt-2",
    ("Digits one by one", "ByteLevel"): "smollm",
    (_LLAMA3,): "llama-bpe",
    (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),): "qwen2",
    (_TEKKEN,): "tekken",
    ("Punctuation", "ByteLevel", "Digits", "[0-9][0-9][0-9]"): "falcon",
}
"""How a tokenizer splits text before it merges → what llama.cpp calls that."""
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def tell_vocabulary(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, ends: list[int]
) -> list[str]:
    """Write a tokenizer into the metadata and return what a user should know of it.

    rows: of the embedding; what it has more than the tokenizer are tokens that nothing uses.
    ends: further tokens at which generation stops, beside the tokenizer's own end.

    Raises:
        SpectrimError: it does not merge pairs, so that llama.cpp cannot run it, or text may become
            a token that has no row.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        said = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
        with _unsaid():
            special = SpecialVocab(folder, load_merges=not _pieces(said), n_vocab=rows)
    if said["model"]["type"] != "BPE":
        raise SpectrimError(
            f"the tokenizer is of type {said['model']['type']}, and only those that merge pairs "
            "(BPE) are written into a GGUF; export --to dense"
        )
    tokens, types, lost = _tokens(said, rows)
    told = _tell_pieces(writer, said, tokens) if _pieces(said) else _tell_merges(writer, said)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    first, last = _added(tokenizer)
    special.add_special_token = {"bos": first, "eos": last}
    special.add_to_gguf(writer, quiet=True)
    more = [one for one in ends if one != special.special_token_ids.get("eos")]
    # Ends of turn and of message: there are no other places for tokens that end an answer.
    for tell, end in zip((writer.add_eot_token_id, writer.add_eom_token_id), more, strict=False):
        tell(end)
    untold = [f"token {end} ends an answer here, but not in the file" for end in more[2:]]
    return [*told, *lost, *untold]


@contextmanager
def _unsaid() -> Iterator[None]:
    """Keep what gguf says of templates for pairs of texts off the screen; none is written."""
    logger = logging.getLogger("gguf.vocab")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def split_of(said: dict[str, Any]) -> str | None:
    """Return what llama.cpp calls the splitting of a tokenizer.json; None where it has no name."""
    step = said.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    found = tuple(words for one in steps if (words := _split(one)) is not None)
    return SPLITS.get(found)


def _split(step: dict[str, Any]) -> str | None:
    """Return one step of splitting in a word or its regular expression; None if it splits not."""
    kind = str(step.get("type"))
    if kind == "Split":
        pattern = step["pattern"]
        return str(pattern.get("Regex", pattern.get("String")))
    if kind == "ByteLevel" and not step.get("use_regex", True):
        return None
    return "Digits one by one" if step.get("individual_digits") else kind


def _pieces(said: dict[str, Any]) -> bool:
    """Return whether tokens are SentencePiece's, which spells bytes that it lacks as <0x00>."""
    return bool(said["model"].get("byte_fallback"))


def _tokens(said: dict[str, Any], rows: int) -> tuple[list[str], list[int], list[str]]:
    """Return tokens and their kinds, one a row, and a line on those added that have no row."""
    known: dict[int, str] = {place: token for token, place in said["model"]["vocab"].items()}
    added = {one["id"]: one for one in said.get("added_tokens") or ()}
    known |= {place: one["content"] for place, one in added.items()}
    beyond = {place for place in known if place >= rows}
    if not beyond <= set(added):
        raise SpectrimError(
            f"the tokenizer has token {max(known)}, but the embedding only {rows} rows; put the "
            "model's tokenizer right"
        )
    unknown = said["model"].get("unk_token")
    types = [_type(known.get(place), added.get(place), unknown, said) for place in range(rows)]
    lost = ", ".join(repr(known[place]) for place in sorted(beyond))
    told = [f"the embedding has no row for {lost}, which the file leaves out"] if lost else []
    return [known.get(place, f"[PAD{place}]") for place in range(rows)], types, told


def _type(
    token: str | None, added: dict[str, Any] | None, unknown: str | None, said: dict[str, Any]
) -> int:
    if token is None:
        return TokenType.UNUSED
    if _pieces(said) and token == unknown:
        return TokenType.UNKNOWN
    if _pieces(said) and _BYTE.fullmatch(token):
        return TokenType.BYTE
    if added is not None:
        return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return TokenType.NORMAL


def _tell_merges(writer: GGUFWriter, said: dict[str, Any]) -> list[str]:
    name = split_of(said)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name or "gpt-2")
    if name is not None:
        return []
    return [
        "llama.cpp has no name for how this tokenizer splits text, so it is told to split as GPT-2 "
        "does; compare the tokens of a text before you use the file"
    ]


def _tell_pieces(writer: GGUFWriter, said: dict[str, Any], tokens: list[str]) -> list[str]:
    """Write SentencePiece's scores, of which the highest is merged first: the order of merges."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(said["model"]["merges"]):
        left, right = pair if isinstance(pair, list) else pair.split(" ")
        ranks.setdefault(left + right, rank)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(ranks.get(token, len(ranks))) for token in tokens])
    writer.add_add_space_prefix("Prepend" in json.dumps(said.get("normalizer")) or _first(said))
    return []


def _first(said: dict[str, Any]) -> bool:
    """Return whether a space is put before a text by the step that splits it."""
    return (said.get("pre_tokenizer") or {}).get("prepend_scheme") in ("first", "always")


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Return whether a text gets the token of its beginning, and that of its end."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[:1] == [tokenizer.bos_token_id], ids[-1:] == [tokenizer.eos_token_id]
