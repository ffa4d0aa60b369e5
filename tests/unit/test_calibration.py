"""Text as tokens: what is packed, that the splits cannot overlap, and that an overlap is seen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.errors import SpectrimError
from spectrim.text.tokens import (
    MOST_SHARED,
    SHINGLE,
    Tokens,
    fingerprints,
    join,
    overlap,
    pack,
    refuse_overlap,
    split,
    split_sizes,
)


def numbered(sequences: int, length: int = 4, first: int = 0) -> Tokens:
    """Sequences in which every token occurs once, so that each says where it came from."""
    count = sequences * length
    return Tokens.full(torch.arange(first, first + count).view(sequences, length))


# packing


def test_documents_become_one_stream_with_an_end_between_them() -> None:
    tokens = pack([[3, 4, 5], [6, 7], [8, 9, 10]], 4, begin=None, end=2)
    assert tokens.ids.tolist() == [[3, 4, 5, 2], [6, 7, 2, 8]]
    assert tokens.mask.all()


def test_without_an_end_documents_follow_each_other() -> None:
    assert pack([[3, 4], [5, 6]], 2, begin=None, end=None).ids.tolist() == [[3, 4], [5, 6]]


def test_the_begin_token_opens_every_sequence() -> None:
    tokens = pack([[3, 4, 5, 6, 7, 8, 9]], 4, begin=1, end=2)
    assert tokens.ids.tolist() == [[1, 3, 4, 5], [1, 6, 7, 8]]


def test_a_short_text_is_padded_and_its_padding_masked() -> None:
    tokens = pack([[3, 4]], 5, begin=1, end=2)
    assert tokens.ids.tolist() == [[1, 3, 4, 0, 0]]
    assert tokens.mask.tolist() == [[True, True, True, False, False]]
    assert tokens.counted() == 3 and len(tokens) == 1


def test_a_text_that_just_fills_one_sequence_is_not_padded() -> None:
    tokens = pack([[3, 4, 5]], 4, begin=1, end=2)
    assert tokens.ids.tolist() == [[1, 3, 4, 5]] and tokens.mask.all()


def test_no_text_gives_no_sequence() -> None:
    for begin in (None, 1):
        assert len(pack([], 4, begin, 2)) == 0


@given(
    lengths=st.lists(st.integers(1, 9), max_size=6),
    length=st.integers(2, 7),
    begin=st.sampled_from([None, 1]),
)
@settings(max_examples=60, deadline=None)
def test_packing_loses_only_the_rest(lengths: list[int], length: int, begin: int | None) -> None:
    documents, first = [], 10
    for count in lengths:
        documents.append(list(range(first, first + count)))
        first += count
    tokens = pack(documents, length, begin, None)
    inside = tokens.ids[:, begin is not None :][tokens.mask[:, begin is not None :]].tolist()
    stream = [token for document in documents for token in document]
    assert inside == stream[: len(inside)]
    assert len(stream) - len(inside) < length


# splitting


@given(
    wanted=st.integers(1, 30),
    more=st.integers(0, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_splits_are_disjoint_stretches_of_the_asked_sizes(
    wanted: int, more: int, seed: int
) -> None:
    sizes = split_sizes(wanted)
    found = split(numbered(sum(sizes) + more, SHINGLE), wanted, seed)
    parts = (found.calibration, found.search, found.report)
    assert tuple(len(part) for part in parts) == sizes
    places = [(part.ids[:, 0] // SHINGLE).tolist() for part in parts]
    assert all(len(set(place)) == len(place) for place in places)
    assert max(places[0]) < min(places[1]) and max(places[1]) < min(places[2])


def test_the_same_seed_draws_the_same_and_another_draws_others() -> None:
    text = numbered(100)
    one, same, other = (split(text, 12, seed) for seed in (0, 0, 1))
    assert torch.equal(one.calibration.ids, same.calibration.ids)
    assert torch.equal(one.report.ids, same.report.ids)
    assert not torch.equal(one.calibration.ids, other.calibration.ids)


def test_too_little_text_says_what_it_would_be_enough_for() -> None:
    with pytest.raises(SpectrimError) as raised:
        split(numbered(30), 48, 0, "my.txt")
    said = str(raised.value)
    assert said == (
        "my.txt gives 30 sequences of 4 tokens and 60 are needed (48 for calibration, 4 for "
        "search, 8 for the report); ask for --tokens 22x4 or bring more text"
    )
    assert len(split(numbered(30), 22, 0).calibration) == 22


def test_a_padded_text_is_too_little() -> None:
    tokens = numbered(16)
    tokens.mask[3, -1] = False
    with pytest.raises(SpectrimError, match="bring more text"):
        split(tokens, 12, 0)


def test_a_text_that_repeats_itself_is_refused() -> None:
    once = numbered(8, 64)
    twice = Tokens.full(once.ids.repeat(2, 1))
    with pytest.raises(SpectrimError, match="the calibration and the report split share 100% of"):
        split(twice, 12, 0)


def test_sequences_shorter_than_a_run_are_split_all_the_same() -> None:
    assert len(split(numbered(16, SHINGLE - 1), 12, 0).calibration) == 12


def test_texts_are_joined_part_by_part() -> None:
    parts = [split(numbered(16, 64, first), 12, 0) for first in (0, 10_000)]
    one, same, other = (join(parts, seed) for seed in (0, 0, 1))
    assert [len(part) for part in (one.calibration, one.search, one.report)] == [24, 4, 4]
    assert torch.equal(one.calibration.ids, same.calibration.ids)
    assert not torch.equal(one.calibration.ids, other.calibration.ids)
    assert set(one.calibration.ids[:, 0].tolist()) == {
        first for part in parts for first in part.calibration.ids[:, 0].tolist()
    }
    refuse_overlap(one.calibration, one.report, "the splits")


# overlap


def drawn(sequences: int, length: int, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return Tokens.full(torch.randint(0, 50_000, (sequences, length), generator=generator))


def test_different_texts_do_not_overlap() -> None:
    assert overlap(drawn(20, 256, 0), fingerprints(drawn(20, 256, 1))) == 0.0


@pytest.mark.parametrize("shift", [0, 1, 17, 31])
def test_a_text_is_known_again_however_it_is_cut(shift: int) -> None:
    text = drawn(1, 64 * 40, 0).ids[0]
    known = fingerprints(Tokens.full(text.view(40, 64)))
    moved = Tokens.full(text[shift : shift + 64 * 39].view(3, 64 * 13))
    assert overlap(moved, known) > 0.9


def test_little_known_text_is_seen_in_much_and_much_in_little() -> None:
    """The part counts of what the shorter text holds, whichever of the two that is."""
    many, few = drawn(200, 64, 0), drawn(4, 64, 1)
    mixed = Tokens.full(torch.cat((many.ids, few.ids)))
    assert overlap(mixed, fingerprints(few)) == 1.0
    assert overlap(few, fingerprints(mixed)) == 1.0
    half = Tokens.full(torch.cat((few.ids[:2], drawn(2, 64, 2).ids)))
    assert overlap(half, fingerprints(mixed)) == pytest.approx(0.5)


def test_an_overlap_is_refused_and_a_repeated_phrase_is_not() -> None:
    first, second = drawn(40, 128, 0), drawn(40, 128, 1)
    second.ids[0, :SHINGLE] = first.ids[0, :SHINGLE]
    assert 0 < overlap(first, fingerprints(second)) < MOST_SHARED
    refuse_overlap(first, second, "both")
    second.ids[:2] = first.ids[:2]
    with pytest.raises(SpectrimError, match="both share 5% of their text"):
        refuse_overlap(first, second, "both")


def test_nothing_is_known_of_sequences_shorter_than_a_run() -> None:
    short = drawn(4, SHINGLE - 1, 0)
    assert len(fingerprints(short)) == 0
    assert overlap(short, fingerprints(drawn(4, 64, 1))) == 0.0
    assert overlap(drawn(4, 64, 1), fingerprints(short)) == 0.0


def test_joined_texts_that_overlap_are_refused() -> None:
    whole = numbered(60, 64)
    moved = Tokens.full(torch.roll(whole.ids, 20, dims=0))
    with pytest.raises(SpectrimError, match="report split share"):
        join([split(whole, 24, seed=0), split(moved, 24, seed=0)], seed=0)
