"""Answers are kept, continued after a kill, asked anew on request, and never mistaken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.metrics import Evaluation, Pair
from spectrim.metrics.asking.answers import answered


def pair(cache: Path | None, fresh: bool = False, identity: str = "m") -> Pair:
    chosen = Evaluation(cache=cache, fresh=fresh, identities={"small": identity})
    return Pair({"small": torch.nn.Linear(1, 1)}, {}, chosen)  # type: ignore[dict-item]


class Asked:
    """Doubles numbers, and remembers which it was asked for; stops after ``most``."""

    def __init__(self, most: int = 100) -> None:
        self.seen: list[int] = []
        self.most = most

    def __call__(self, items: Sequence[Any]) -> list[dict[str, int]]:
        if len(self.seen) + len(items) > self.most:
            raise KeyboardInterrupt
        self.seen += items
        return [{"double": 2 * item} for item in items]


ITEMS = list(range(10))
EXPECTED = [{"double": 2 * item} for item in ITEMS]


def test_a_second_time_nothing_is_asked(tmp_path: Path) -> None:
    first, second = Asked(), Asked()
    assert answered(pair(tmp_path), "small", "double", ITEMS, first, batch=3) == EXPECTED
    assert answered(pair(tmp_path), "small", "double", ITEMS, second, batch=3) == EXPECTED
    assert first.seen == ITEMS and second.seen == []


def test_interrupted_work_goes_on_in_the_same_batches(tmp_path: Path) -> None:
    stopped, rest = Asked(most=7), Asked()
    with pytest.raises(KeyboardInterrupt):
        answered(pair(tmp_path), "small", "double", ITEMS, stopped, batch=3)
    assert stopped.seen == ITEMS[:6]
    assert answered(pair(tmp_path), "small", "double", ITEMS, rest, batch=3) == EXPECTED
    assert rest.seen == ITEMS[6:]


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_file_cut_off_anywhere_is_continued(tmp_path: Path, cut: int) -> None:
    answered(pair(tmp_path), "small", "double", ITEMS, Asked(), batch=3)
    (file,) = tmp_path.rglob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-cut])
    rest = Asked()
    assert answered(pair(tmp_path), "small", "double", ITEMS, rest, batch=3) == EXPECTED
    assert 0 < len(rest.seen) < len(ITEMS)
    assert len(file.read_text().splitlines()) == len(ITEMS)


@pytest.mark.parametrize("change", ["model", "items", "task", "batch"])
def test_another_question_is_not_answered_from_the_file(tmp_path: Path, change: str) -> None:
    answered(pair(tmp_path), "small", "double", ITEMS, Asked(), batch=3)
    again = Asked()
    other = pair(tmp_path, identity="other" if change == "model" else "m")
    items = ITEMS[1:] if change == "items" else ITEMS
    task, batch = "twice" if change == "task" else "double", 2 if change == "batch" else 3
    answered(other, "small", task, items, again, batch=batch)
    assert again.seen == items


def test_fresh_asks_once_more_and_only_once(tmp_path: Path) -> None:
    answered(pair(tmp_path), "small", "double", ITEMS, Asked())
    again, asked = pair(tmp_path, fresh=True), Asked()
    for _ in range(2):
        assert answered(again, "small", "double", ITEMS, asked) == EXPECTED
    assert asked.seen == ITEMS


def test_nothing_is_kept_without_a_cache_or_an_identity(tmp_path: Path) -> None:
    for one in (pair(None), Pair(pair(None).models, {}, Evaluation(cache=tmp_path))):
        asked = Asked()
        assert answered(one, "small", "double", ITEMS, asked) == EXPECTED
        assert asked.seen == ITEMS
    assert not list(tmp_path.iterdir())
