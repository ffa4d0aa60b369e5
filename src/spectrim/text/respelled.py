"""Sequences of tokens written anew by a tokenizer that has fewer: other pieces, the same text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from spectrim.text.tokens import Tokens

_BETWEEN = re.compile(r"(?<=\S) (?=\S)")  # where no tokenizer makes one piece of both sides


def respelled(
    tokens: Tokens,
    whole: PreTrainedTokenizerBase,
    fewer: PreTrainedTokenizerBase,
    *,
    kept: Sequence[int],
    most: int,
) -> Tokens:
    """Return sequences as the tokenizer with fewer tokens writes their text, padded at the end.

    A sequence all of whose tokens are kept only has them numbered anew.
    kept: by the new numbers the old ones. most: tokens of a sequence; what is longer is cut off.
    """
    new = {old: place for place, old in enumerate(kept)}
    rows = []
    for ids, mask in zip(tokens.ids, tokens.mask, strict=True):
        row = ids[mask].tolist()
        if all(one in new for one in row):
            rows.append([new[one] for one in row])
        else:
            text = said(whole, row)
            rows.append(fewer(text, add_special_tokens=False, verbose=False).input_ids[:most])
    width = max(map(len, rows))
    made = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        made[at, : len(row)], mask[at, : len(row)] = torch.tensor(row), True
    return Tokens(made, mask)


def whole_words(tokens: Tokens, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts of sequences without what stands before and behind their outermost spaces.

    There words may have been cut in two; sequences without spaces are left out.
    """
    texts = []
    for ids, mask in zip(tokens.ids, tokens.mask, strict=True):
        text = said(tokenizer, ids[mask].tolist())
        places = [found.start() for found in _BETWEEN.finditer(text)]
        if len(places) > 1:
            texts.append(text[places[0] : places[-1]])
    return texts


def said(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of tokens, special ones among it, as it is."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
