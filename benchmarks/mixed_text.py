"""A calibration and a healing text of five kinds, no piece in both nor in what is measured.

Pieces of 3000 characters of WikiText-2's first half, C4, code, technical prose and stories, in the
shares of methods that calibrate on a mixture; of C4 and code only what lies behind the windows that
benchmarks measure (measuring.windows_of). Drawn with seed 0.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

PIECE = 3000  # characters, some 700 tokens
MEASURED = 60_000  # characters at the beginning of C4 and code that are left for measuring
SHARES = {"wiki": 14, "c4": 14, "code": 7, "technical": 7, "stories": 6}
CALIBRATION, HEALING = 105, 300  # pieces


def mixed(data: Path, first_half: Path, output: Path) -> tuple[Path, Path]:
    """Write calibration.jsonl and healing.jsonl into ``output`` and return their paths.

    data: the folder of texts. first_half: of WikiText-2's validation text.
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
    parts: tuple[list[str], list[str]] = ([], [])
    for kind, text in texts.items():
        pieces = [text[at : at + PIECE] for at in range(0, len(text) - PIECE + 1, PIECE)]
        drawn.shuffle(pieces)
        share = SHARES[kind] / sum(SHARES.values())
        first = round(share * CALIBRATION)
        parts[0].extend(pieces[:first])
        parts[1].extend(pieces[first : first + round(share * HEALING)])
    paths = output / "calibration.jsonl", output / "healing.jsonl"
    for path, pieces in zip(paths, parts, strict=True):
        drawn.shuffle(pieces)
        lines = "".join(json.dumps({"text": piece}) + "\n" for piece in pieces)
        path.write_text(lines, encoding="utf-8")
    return paths
