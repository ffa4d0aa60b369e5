"""Text as token batches: calibration, search and report splits that cannot overlap."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from spectrim.errors import SpectrimError

SHINGLE = 32  # tokens: a run this long that occurs in two texts means they share a passage
MOST_SHARED = 0.02  # real texts repeat boilerplate now and then; a shared passage shows as more
_PRIME = 1_000_003


@dataclass(frozen=True)
class Tokens:
    """Sequences of token ids, [sequences, length] int64, and which of them are text."""

    ids: Int[Tensor, "sequences length"]
    mask: Bool[Tensor, "sequences length"]

    @classmethod
    def full(cls, ids: Int[Tensor, "sequences length"]) -> Tokens:
        """Return sequences without padding."""
        return cls(ids, torch.ones_like(ids, dtype=torch.bool))

    def counted(self) -> int:
        """Return how many tokens are text."""
        return int(self.mask.sum())

    def digest(self) -> str:
        """Return a SHA-256 of ids and mask, in hexadecimal."""
        held = self.ids.numpy().tobytes() + self.mask.numpy().tobytes()
        return hashlib.sha256(held).hexdigest()

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.ids)


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one text: for statistics, for choices, and for the report."""

    calibration: Tokens
    search: Tokens
    report: Tokens


def pack(documents: list[list[int]], length: int, begin: int | None, end: int | None) -> Tokens:
    """Return the documents as one stream cut into full sequences of ``length`` tokens.

    ``end`` stands between documents; ``begin``, where the tokenizer uses one, opens each sequence.
    A text shorter than one sequence becomes a single padded one, its padding masked.
    """
    stream: list[int] = []
    for document in documents:
        if stream and end is not None:
            stream.append(end)
        stream.extend(document)
    step = length - (begin is not None)
    if 0 < len(stream) < step:
        return _padded(stream, length, begin)
    count = len(stream) // step
    ids = torch.tensor(stream[: count * step], dtype=torch.long).view(count, step)
    if begin is not None:
        ids = torch.cat((torch.full((count, 1), begin), ids), dim=1)
    return Tokens.full(ids)


def _padded(stream: list[int], length: int, begin: int | None) -> Tokens:
    text = ([begin] if begin is not None else []) + stream
    ids = torch.tensor([text + [0] * (length - len(text))], dtype=torch.long)
    return Tokens(ids, torch.arange(length)[None] < len(text))


def split(tokens: Tokens, sequences: int, seed: int, name: str = "the text") -> Splits:
    """Return ``sequences`` for calibration, a twelfth as many for search, a sixth for the report.

    The text is cut into three stretches first and each split is drawn from its own stretch only.

    Raises:
        SpectrimError: the text holds too few sequences.
    """
    counts = split_sizes(sequences)
    needed, length = sum(counts), tokens.ids.shape[1]
    if len(tokens) < needed or not bool(tokens.mask.all()):
        possible = max(len(tokens) * sequences // needed - 2, 0)
        raise SpectrimError(
            f"{name} gives {len(tokens)} sequences of {length} tokens and {needed} are needed "
            f"({counts[0]} for calibration, {counts[1]} for search, {counts[2]} for the report); "
            + (f"ask for --tokens {possible}x{length} or " if possible else "")
            + "bring more text"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn, begin = [], 0
    for part, count in enumerate(counts):
        stretch = len(tokens) * sum(counts[: part + 1]) // needed
        order = torch.randperm(stretch - begin, generator=generator)[:count].sort().values + begin
        drawn.append(Tokens(tokens.ids[order], tokens.mask[order]))
        begin = stretch
    splits = Splits(*drawn)
    refuse_overlap(splits.calibration, splits.report, "the calibration and the report split")
    refuse_overlap(splits.search, splits.report, "the search and the report split")
    return splits


def split_sizes(sequences: int) -> tuple[int, int, int]:
    """Return how many sequences calibration, search and report take for so many of calibration."""
    return sequences, max(2, sequences // 12), max(2, sequences // 6)


def join(parts: list[Splits], seed: int) -> Splits:
    """Return the splits of several texts as one, calibration sequences shuffled.

    Raises:
        SpectrimError: one text repeats for the report what another calibrates on.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.cat([part.calibration.ids for part in parts])
    ids = ids[torch.randperm(len(ids), generator=generator)]
    search = torch.cat([part.search.ids for part in parts])
    report = torch.cat([part.report.ids for part in parts])
    joined = Splits(Tokens.full(ids), Tokens.full(search), Tokens.full(report))
    refuse_overlap(joined.calibration, joined.report, "the calibration and the report split")
    refuse_overlap(joined.search, joined.report, "the search and the report split")
    return joined


def fingerprints(tokens: Tokens) -> Int[Tensor, " shingles"]:
    """Return a hash of every 32nd run of 32 tokens: enough to notice a shared passage of 64."""
    if tokens.ids.shape[1] < SHINGLE:
        return torch.empty(0, dtype=torch.long)
    runs = tokens.ids.unfold(1, SHINGLE, SHINGLE).reshape(-1, SHINGLE)
    unique: Tensor = _hash(runs).unique()
    return unique


def overlap(tokens: Tokens, known: Int[Tensor, " shingles"]) -> float:
    """Return how many of the ``known`` runs occur, at any offset, in these tokens.

    As a part of what the shorter of the two holds: 1 where one of them is all of the other's text.
    """
    if tokens.ids.shape[1] < SHINGLE or len(known) == 0:
        return 0.0
    found = _hash(tokens.ids.unfold(1, SHINGLE, 1).reshape(-1, SHINGLE))
    most = min(len(known), len(tokens) * (tokens.ids.shape[1] // SHINGLE))
    return min(int(torch.isin(known, found).sum()) / most, 1.0)


def refuse_overlap(first: Tokens, second: Tokens, names: str) -> None:
    """Raise SpectrimError where too many of the second's runs of 32 tokens occur in the first."""
    shared = overlap(first, fingerprints(second))
    if shared > MOST_SHARED:
        raise SpectrimError(
            f"{names} share {shared:.0%} of their text, so the result would be flattered; "
            "measure on text that was not used"
        )


def _hash(runs: Int[Tensor, "runs shingle"]) -> Int[Tensor, " runs"]:
    powers = torch.ones(SHINGLE, dtype=torch.long)
    for place in range(1, SHINGLE):
        powers[place] = powers[place - 1] * _PRIME  # wraps around, as a hash may
    hashes: Tensor = (runs * powers).sum(1)
    return hashes


def content(ids: Tensor) -> str:
    """Return a hash of token windows [sequences, length]: equal for equal windows alone."""
    shape = ",".join(map(str, ids.shape))
    numbers = ids.cpu().long().contiguous().numpy().tobytes()
    return hashlib.sha256(shape.encode() + b";" + numbers).hexdigest()
