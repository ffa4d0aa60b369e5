"""ROUGE-S: the word pairs, in order but with gaps, that a summary shares with its reference.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (ACL workshop, 2004), section 5,
equations 16 to 18 with beta = 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def rouge_s(reference: Sequence[str], summary: Sequence[str], gap: int | None = None) -> float:
    """Return the F1 of the skip-bigrams of two texts, 0 to 1; 0 where either has none.

    A pair that occurs several times counts as often as it does in both.

    Args:
        reference: words of the reference.
        summary: words of what is judged.
        gap: most words between the two of a pair; 0 leaves plain bigrams, None sets no limit.
    """
    wanted, found = _pairs(reference, gap), _pairs(summary, gap)
    common = (wanted & found).total()
    return 2 * common / (wanted.total() + found.total()) if common else 0.0


def _pairs(words: Sequence[str], gap: int | None) -> Counter[tuple[str, str]]:
    reach = len(words) if gap is None else gap + 1
    return Counter(
        (first, second)
        for place, first in enumerate(words)
        for second in words[place + 1 : place + 1 + reach]
    )
