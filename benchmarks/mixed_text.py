"""Calibration and healing text of several kinds, no piece in two nor in a text that is measured.

Pieces of 3000 characters of WikiText-2's first half, C4, code, technical prose and stories, in the
shares of methods that calibrate on a mixture; for healing also letters to newsgroups and dialogues,
after which nothing may be asked on the tasks newsgroups and dialogsum, whose data these are. Of C4
and code only what lies behind the windows that benchmarks measure (measuring.windows_of). Drawn
with seed 0.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from spectrim.errors import SpectrimError
from spectrim.text.default_mix import HUB_MIX

PIECE = 3000  # characters, some 700 tokens
MEASURED = 60_000  # characters at the beginning of C4 and code that are left for measuring
SHARES = {"wiki": 14, "c4": 14, "code": 7, "technical": 7, "stories": 6}
HEALING_SHARES = {"wiki": 96, "c4": 58, "code": 38, "technical": 34, "letters": 42, "talk": 16}
LIKE = {  # what is of the kind of each data set of the default text
    "Salesforce/wikitext": "wiki",
    "allenai/c4": "c4",
    "codeparrot/codeparrot-clean-valid": "code",
    "ccdv/arxiv-summarization": "technical",
}
CALIBRATION, HEALING = 105, 284  # pieces
RUN = (
    100  # characters in a row from an earlier text, looked at every tenth: such a piece is left out
)


def mixed(data: Path, first_half: Path, output: Path) -> tuple[Path, Path]:
    """Write calibration.jsonl and healing.jsonl into ``output`` and return their paths.

    data: the folder of texts. first_half: of WikiText-2's validation text.
    """
    first = (SHARES, CALIBRATION)
    # drawn alone, so that what else is healed on does not change its order
    (calibration,) = _drawn(data, first_half, [first])
    *_, healing = _drawn(data, first_half, [first, (HEALING_SHARES, HEALING)])
    paths = output / "calibration.jsonl", output / "healing.jsonl"
    for path, pieces in zip(paths, (calibration, healing), strict=True):
        _write(path, pieces)
    return paths


def with_a_network(data: Path, first_half: Path, output: Path) -> Path:
    """Write network.jsonl, local text of the kinds and shares of the default text with a network.

    That text is made of hub data sets (default_mix.HUB_MIX); of the same kinds are WikiText-2, C4,
    code and technical prose here.
    """
    shares = {LIKE[name.partition(":")[0]]: share for name, share in HUB_MIX}
    (pieces,) = _drawn(data, first_half, [(shares, CALIBRATION)])
    _write(path := output / "network.jsonl", pieces)
    return path


def _drawn(
    data: Path, first_half: Path, wanted: Sequence[tuple[Mapping[str, float], int]]
) -> list[list[str]]:
    """Return a text for each pair of shares and a count of pieces, no piece in two of them.

    Licences and tables come more than once, so pieces that repeat an earlier text are left out. The
    kinds that the first text wants stand first, so its pieces are the same whatever else is drawn.
    """
    drawn = random.Random(0)
    parts: list[list[str]] = [[] for _ in wanted]
    texts = _texts(data, first_half)
    for kind in (kind for kind in texts if any(kind in shares for shares, _ in wanted)):
        text = texts[kind]
        pieces = [text[at : at + PIECE] for at in range(0, len(text) - PIECE + 1, PIECE)]
        drawn.shuffle(pieces)
        begin = 0
        for part, (shares, count) in zip(parts, wanted, strict=True):
            end = begin + round(shares.get(kind, 0) / sum(shares.values()) * count)
            if end > len(pieces):
                raise SpectrimError(
                    f"{kind} has {len(pieces)} pieces, {end} are wanted; take fewer"
                )
            part.extend(pieces[begin:end])
            begin = end
    for part in parts:
        drawn.shuffle(part)
    return [_unlike(part, "\n".join(sum(parts[:at], []))) for at, part in enumerate(parts)]


def _texts(data: Path, first_half: Path) -> dict[str, str]:
    folder = data / "lm/exllamav2_cal"
    letters = data / "topic/mini_newsgroups/mini_newsgroups.jsonl"
    talk = data / "dialogue/dialogsum/dialogsum.dev.jsonl"
    return {
        "wiki": first_half.read_text(encoding="utf-8"),
        "c4": (folder / "c4.utf8").read_text(encoding="utf-8")[MEASURED:],
        "code": (folder / "code.utf8").read_text(encoding="utf-8")[MEASURED:],
        "technical": (folder / "technical.utf8").read_text(encoding="utf-8"),
        "stories": (folder / "tiny.utf8").read_text(encoding="utf-8"),
        "letters": "\n\n".join(_unquoted(one["text"]) for one in _read(letters)),
        "talk": "\n\n".join(one["dialogue"] for one in _read(talk)),
    }


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _unquoted(letter: str) -> str:
    """Leave out what a letter quotes, which is another letter's."""
    lines = letter.splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith((">", "|", ":")))


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
