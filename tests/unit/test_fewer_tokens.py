"""Tokenizers with fewer tokens: the same pieces for every text that needs no others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from spectrim.errors import SpectrimError
from spectrim.model.fewer_tokens import needed, trimmed
from spectrim.text import used_tokens
from tiny_words import ENGLISH, KINDS, RUSSIAN, tiny_words


def without(whole: Tokenizer, text: str) -> tuple[Tokenizer, list[int]]:
    """Return a tokenizer with what a text needs alone, and the ids that its tokens had."""
    said = json.loads(whole.to_str())
    kept = needed(said, whole.encode(text).ids)
    return Tokenizer.from_str(json.dumps(trimmed(said, kept))), kept


def parts(text: str) -> list[str]:
    """Return a text, its lines, and its words."""
    return [text, *text.splitlines(keepends=True), *text.split(" ")]


@pytest.mark.parametrize("text", [ENGLISH, RUSSIAN], ids=["english", "russian"])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_texts_have_the_same_pieces(kind: str, text: str) -> None:
    whole = tiny_words(kind)
    small, kept = without(whole, text)
    assert small.get_vocab_size() == len(kept) < whole.get_vocab_size() - 30
    old, new = whole.encode(text), small.encode(text)
    assert [kept[one] for one in new.ids] == old.ids
    assert new.tokens == old.tokens
    assert small.decode(new.ids) == whole.decode(old.ids)
    assert kind == "unigram" or small.decode(new.ids) == text  # which drops a second space
    for token, place in small.get_vocab().items():
        assert whole.token_to_id(token) == kept[place]


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "llama", "gemma"])
def test_all_other_text_is_written_in_bytes(kind: str) -> None:
    whole = tiny_words(kind)
    small, _ = without(whole, ENGLISH)
    other = RUSSIAN + "日本語 🙂"
    ids = small.encode(other).ids
    assert small.decode(ids) == whole.decode(whole.encode(other).ids) == other
    assert len(ids) > len(whole.encode(other).ids)


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_and_those_around_a_text_stay(kind: str) -> None:
    small, _ = without(tiny_words(kind), RUSSIAN)
    ids = small.encode("<tool>").ids
    assert [small.id_to_token(one) for one in ids][:1] == ["<s>"]
    assert small.id_to_token(ids[-1]) == "<tool>"


def test_words_that_no_merge_reaches_stay() -> None:
    # Llama 3 looks a word up before it merges anything.
    model = models.BPE({"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "bc": 5}, [("b", "c")])
    model.ignore_merges = True
    small, kept = without(Tokenizer(model), "abc")
    assert kept == [0, 1, 2, 4, 5] and small.encode("abc").tokens == ["abc"]


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_a_script_keeps_all_that_its_texts_may_become(kind: str) -> None:
    whole = tiny_words(kind)
    words = PreTrainedTokenizerFast(tokenizer_object=whole)
    said = json.loads(whole.to_str())
    kept = needed(said, used_tokens.of_scripts(["Latin"], words))
    small = Tokenizer.from_str(json.dumps(trimmed(said, kept)))
    assert whole.get_vocab_size() - len(kept) > 0
    for text in parts(ENGLISH):
        assert [kept[one] for one in small.encode(text).ids] == whole.encode(text).ids


def test_what_is_no_script_is_refused() -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=tiny_words("gpt2"))
    with pytest.raises(SpectrimError, match="no script among Elvish .*; write names such as Latin"):
        used_tokens.of_scripts(["Elvish"], words)


@pytest.mark.parametrize(
    ("model", "reason"),
    [({"type": "WordPiece"}, "is of type WordPiece"),
     ({"type": "BPE", "end_of_word_suffix": "</w>"}, "has a end_of_word_suffix")],
)  # fmt: skip
def test_what_cannot_be_trimmed_is_refused(model: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpectrimError, match=f"{reason}.*; leave out trim_vocabulary"):
        needed({"model": model}, [0])
