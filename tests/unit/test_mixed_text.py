"""The texts that benchmarks calibrate and heal on (benchmarks/mixed_text.py)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from spectrim.errors import SpectrimError

PLAIN = ("c4", "code", "technical", "tiny")


@pytest.fixture
def mixed_text(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        import mixed_text

        small = {"PIECE": 120, "MEASURED": 0, "CALIBRATION": 12, "HEALING": 20}
        for name, value in small.items():
            monkeypatch.setattr(mixed_text, name, value)
        yield mixed_text


def write_data(folder: Path, *, characters: int = 3000) -> Path:
    """Write texts of random letters under the names of the real ones; return the first half."""
    drawn = random.Random(0)

    def letters() -> str:
        return "".join(drawn.choices("abcdefghijklmnopqrstuvwxyz ", k=characters))

    files = {f"lm/exllamav2_cal/{name}.utf8": letters() for name in PLAIN}
    post = json.dumps({"text": f"mine {letters()}\n> quoted {letters()}"})
    files["topic/mini_newsgroups/mini_newsgroups.jsonl"] = post
    files["dialogue/dialogsum/dialogsum.dev.jsonl"] = json.dumps({"dialogue": letters()})
    files["first.txt"] = letters()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder / "first.txt"


def pieces(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_no_piece_is_in_two_texts_and_nothing_quoted_in_any(
    mixed_text: ModuleType, tmp_path: Path
) -> None:
    first = write_data(tmp_path)
    calibration, healing = map(pieces, mixed_text.mixed(tmp_path, first, tmp_path))
    assert not set(calibration) & set(healing)
    assert (len(calibration), len(healing)) == (14, 20)  # shares are rounded one by one
    letters = mixed_text._texts(tmp_path, first)["letters"]
    assert "mine" in letters
    assert "quoted" not in letters


def test_what_is_healed_on_does_not_change_the_calibration(
    mixed_text: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_data(tmp_path)
    before = pieces(mixed_text.mixed(tmp_path, first, tmp_path)[0])
    monkeypatch.setattr(mixed_text, "HEALING_SHARES", {"letters": 1})
    calibration, healing = map(pieces, mixed_text.mixed(tmp_path, first, tmp_path))
    assert calibration == before
    letters = mixed_text._texts(tmp_path, first)["letters"]
    assert all(one in letters for one in healing)


def test_too_little_of_a_kind_is_said(mixed_text: ModuleType, tmp_path: Path) -> None:
    first = write_data(tmp_path, characters=240)
    with pytest.raises(SpectrimError, match="wiki has 2 pieces, .* are wanted; take fewer"):
        mixed_text.mixed(tmp_path, first, tmp_path)
