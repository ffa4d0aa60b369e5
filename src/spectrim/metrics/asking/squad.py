"""Exact match and F1 between short answers, as SQuAD's evaluation defines them.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (1606.05250),
section 6.1, and the script that comes with version 1.1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

NORMALISED = "SQuAD 1.1: lower case, no punctuation, no articles, single spaces"

_UNPUNCTUATED = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Return the text in lower case without ASCII punctuation, articles and needless spaces."""
    bare = text.lower().translate(_UNPUNCTUATED)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(answer: str, gold: Sequence[str]) -> bool:
    """Return whether the answer, normalised, is one of the right ones."""
    return normalised(answer) in {normalised(one) for one in gold}


def f1(answer: str, gold: Sequence[str]) -> float:
    """Return the F1 of the answer's words against the right answer that they fit best, 0 to 1."""
    return max(_f1(normalised(answer).split(), normalised(one).split()) for one in gold)


def _f1(answer: list[str], gold: list[str]) -> float:
    common = (Counter(answer) & Counter(gold)).total()
    return 2 * common / (len(answer) + len(gold)) if common else 0.0
