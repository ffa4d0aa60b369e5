"""ROUGE-S on the example of the paper that defines it (Lin, 2004, section 5), and at its edges."""

from __future__ import annotations

import pytest

from spectrim.metrics.asking.rouge_s import rouge_s

REFERENCE = "police killed the gunman"


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ("police kill the gunman", 3 / 6),
        ("the gunman kill police", 1 / 6),
        ("the gunman police killed", 2 / 6),
        (REFERENCE, 1.0),
        ("gunman the killed police", 0.0),  # every pair the wrong way round
    ],
)
def test_the_example_of_the_paper(summary: str, expected: float) -> None:
    found = rouge_s(REFERENCE.split(), summary.split())
    assert found == pytest.approx(expected)
    assert found == pytest.approx(rouge_s(summary.split(), REFERENCE.split()))


def test_without_a_gap_it_is_the_f1_of_bigrams() -> None:
    # "the gunman" is the only bigram of 3 and 3 that both have
    found = rouge_s(REFERENCE.split(), ["police", "kill", "the", "gunman"], 0)
    assert found == pytest.approx(1 / 3)


@pytest.mark.parametrize(("between", "expected"), [(4, 2 / (15 + 1)), (5, 0.0)])
def test_a_gap_of_four_words_is_still_bridged(between: int, expected: float) -> None:
    reference = ["a", *"12345"[:between], "b"]  # the pairs of 6 words: 15
    assert rouge_s(reference, ["a", "b"], 4) == pytest.approx(expected)
    assert rouge_s(reference, ["a", "b"]) > 0


def test_a_repeated_pair_counts_as_often_as_both_have_it() -> None:
    # "a b a b": ab 3 times, aa, bb, ba; "a b b": ab twice, bb. Common: ab twice, bb.
    assert rouge_s(["a", "b", "a", "b"], ["a", "b", "b"]) == pytest.approx(2 * 3 / (6 + 3))


@pytest.mark.parametrize("few", [[], ["police"]])
def test_a_text_without_pairs_shares_none(few: list[str]) -> None:
    assert rouge_s(few, few) == 0.0
    assert rouge_s(REFERENCE.split(), few) == 0.0
