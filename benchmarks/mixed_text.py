"""Calibration and healing text of several kinds, no piece in two of them nor in what is measured.

Pieces of 3000 characters of WikiText-2's first half, C4, code, technical prose and stories, in the
shares of methods that calibrate on a mixture; of C4 and code only what lies behind the windows that
benchmarks measure (measuring.windows_of). Drawn with seed 0.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from spectrim.default_text import HUB_MIX

PIECE = 3000  # characters, some 700 tokens
MEASURED = 60_000  # characters at the beginning of C4 and code that are left for measuring
SHARES = {"wiki": 14, "c4": 14, "code": 7, "technical": 7, "stories": 6}
REPEATED = "stories"  # which say the same so often that two pieces share passages: not in two texts
LIKE = {  # what is of the kind of each data set of the default text
    "Salesforce/wikitext": "wiki",
    "allenai/c4": "c4",
    "codeparrot/codeparrot-clean-valid": "code",
    "ccdv/arxiv-summarization": "technical",
}
CALIBRATION, HEALING = 105, 460  # pieces
RUN = (
    100  # characters in a row from an earlier text, looked at every tenth: such a piece is left out
)


def mixed(data: Path, first_half: Path, output: Path) -> tuple[Path, Path]:
    """Write calibration.jsonl and healing.jsonl into ``output`` and return their paths.

    data: the folder of texts. first_half: of WikiText-2's validation text.
    """
    parts = _drawn(data, first_half, SHARES, (CALIBRATION, HEALING))
    paths = output / "calibration.jsonl", output / "healing.jsonl"
    for path, pieces in zip(paths, parts, strict=True):
        _write(path, pieces)
    return paths


def with_a_network(data: Path, first_half: Path, output: Path) -> Path:
    """Write network.jsonl, local text of the kinds and shares of the default text with a network.

    That text is made of hub data sets (default_text.HUB_MIX); of the same kinds are WikiText-2, C4,
    code and technical prose here.
    """
    shares = {LIKE[name.partition(":")[0]]: share for name, share in HUB_MIX}
    (pieces,) = _drawn(data, first_half, shares, (CALIBRATION,))
    _write(path := output / "network.jsonl", pieces)
    return path


def _drawn(
    data: Path, first_half: Path, shares: Mapping[str, float], counts: tuple[int, ...]
) -> list[list[str]]:
    """Return as many texts as counts are given, of so many pieces each, none in two of them.

    Licences and tables come more than once, so pieces that repeat an earlier text are left out.
    """
    folder = data / "lm/exllamav2_cal"
    texts = {
        "wiki": first_half.read_text(encoding="utf-8"),
        "c4": (folder / "c4.utf8").read_text(encoding="utf-8")[MEASURED:],
        "code": (folder / "code.utf8").read_text(encoding="utf-8")[MEASURED:],
        "technical": (folder / "technical.utf8").read_text(encoding="utf-8"),
        "stories": (folder / "tiny.utf8").read_text(encoding="utf-8"),
    }
    drawn = random.Random(0)
    parts: list[list[str]] = [[] for _ in counts]
    for kind, share in shares.items():
        text = texts[kind]
        pieces = [text[at : at + PIECE] for at in range(0, len(text) - PIECE + 1, PIECE)]
        drawn.shuffle(pieces)
        begin = 0
        for part, count in zip(parts, counts, strict=True):
            end = begin + round(share / sum(shares.values()) * count)
            if kind != REPEATED or not begin:
                part.extend(pieces[begin:end])
            begin = end
    for part in parts:
        drawn.shuffle(part)
    return [_unlike(part, "\n".join(sum(parts[:at], []))) for at, part in enumerate(parts)]


def _unlike(pieces: list[str], earlier: str) -> list[str]:
    """Return the pieces of which no run of characters stands in an earlier text."""
    return [
        piece
        for piece in pieces
        if not any(piece[at : at + RUN] in earlier for at in range(0, len(piece) - RUN + 1, 10))
    ]


def _write(path: Path, pieces: list[str]) -> None:
    lines = "".join(json.dumps({"text": piece}) + "\n" for piece in pieces)
    path.write_text(lines, encoding="utf-8")
