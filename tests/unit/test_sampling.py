"""Tokens are drawn as often as they are likely, and text comes in whole letters."""

from __future__ import annotations

import numpy as np
import pytest

from spectrim.serve.sampling import Sampler, Sampling, log_probabilities
from spectrim.serve.text_stream import TextStream

LOGITS = np.log(np.array([0.1, 0.2, 0.4, 0.3], dtype=np.float32)) + 5


def drawn(count=8000, **options):
    sampler = Sampler(Sampling(seed=1, **options))
    return np.bincount([sampler.draw(LOGITS) for _ in range(count)], minlength=4) / count


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.2, 0.4, 0.3]),
        ({"temperature": 0.5}, np.array([1, 4, 16, 9]) / 30),
        ({"top_p": 0.65}, [0, 0, 4 / 7, 3 / 7]),
        ({"top_p": 0.0}, [0, 0, 1, 0]),
        ({"temperature": 0.0}, [0, 0, 1, 0]),
        ({"temperature": 1e-310}, [0, 0, 1, 0]),
    ],
)
def test_tokens_are_drawn_by_their_probability(options, expected):
    np.testing.assert_allclose(drawn(**options), expected, atol=0.02)


def test_the_nucleus_of_a_flat_vocabulary_is_looked_for_in_all_of_it():
    flat = np.zeros(4000, dtype=np.float32)
    sampler = Sampler(Sampling(top_p=0.5, seed=1))
    found = {sampler.draw(flat) for _ in range(6000)}
    assert 1800 < len(found) <= 2000


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_nothing_is_drawn_from_what_is_no_number(number):
    with pytest.raises(FloatingPointError):
        Sampler(Sampling()).draw(np.array([0.0, number], dtype=np.float32))


def test_log_probabilities_are_told_before_temperature():
    chosen = log_probabilities(LOGITS, 1, 2)
    assert chosen.logprob == pytest.approx(np.log(0.2), abs=1e-6)
    assert [token for token, _ in chosen.likeliest] == [2, 3]


def of_bytes(tokens):
    return bytes(tokens).decode(errors="replace")


def test_letters_of_several_tokens_come_whole():
    text = "naïve 🦊 ß"
    stream = TextStream(of_bytes, ())
    pieces = [stream.push(byte) for byte in text.encode()]
    assert "".join(pieces) + stream.finish() == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_letter_that_never_ends_is_told_at_last():
    stream = TextStream(of_bytes, ())
    assert stream.push(0xF0) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("stop", ["lo, w", "hel", "d", "world!"])
def test_text_up_to_a_stop_sequence(stop):
    stream, text = TextStream(of_bytes, ("zzz", stop)), "hello, world"
    found = "".join(stream.push(byte) for byte in text.encode() if not stream.stopped)
    found += "" if stream.stopped else stream.finish()
    assert found == text.partition(stop)[0]
    assert stream.stopped == (stop in text)
