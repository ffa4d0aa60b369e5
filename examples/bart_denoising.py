"""BART's own pre-training: text with holes is read, and the text without them is written.

Lewis et al., "BART" (1910.13461), section 2.2, text infilling. Used by bart_training.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

TEXTS = ("lm/exllamav2_cal/tiny.utf8", "lm/exllamav2_cal/c4.utf8", "lm/exllamav2_cal/wiki.utf8")
LENGTH = 40  # tokens of a piece
HOLES = 0.3  # part of the tokens that is taken out
SPAN = 3.0  # mean length of a hole, Poisson distributed


def pieces(
    data: Path, rows: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerFast
) -> list[list[int]]:
    """Return pieces of the dialogues in ``rows`` and of what the folder holds of TEXTS."""
    found = [data / name for name in TEXTS if (data / name).is_file()]
    texts = [row["dialogue"] for row in rows]
    texts += [file.read_text(encoding="utf-8", errors="replace") for file in found]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    return [one[at : at + LENGTH] for one in ids for at in range(0, len(one) - LENGTH // 2, LENGTH)]


def with_holes(
    piece: Sequence[int], tokenizer: PreTrainedTokenizerFast, drawn: random.Random
) -> tuple[list[int], list[int]]:
    """Return (what is read, what is to be written), both ending in </s>; a hole is one <mask>."""
    end, mask = tokenizer.eos_token_id, tokenizer.mask_token_id
    read: list[int] = []
    at = 0
    while at < len(piece):
        if drawn.random() < HOLES / SPAN:
            read.append(mask)
            at += _poisson(drawn)
        if at < len(piece):
            read.append(piece[at])
            at += 1
    return [*read, end], [*piece, end]


def _poisson(drawn: random.Random) -> int:
    """Return a draw of mean SPAN (Knuth's product of uniforms)."""
    count, left = 0, drawn.random()
    while left > math.exp(-SPAN):
        count, left = count + 1, left * drawn.random()
    return count
