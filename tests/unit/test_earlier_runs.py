"""The best earlier run: what is kept, what comes back, and what does not count."""

from __future__ import annotations

import json
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.verbs import earlier

IDS = torch.arange(12).reshape(2, 6)
HASH = earlier.content(IDS)


def row(small: str, size: int | None, excess: float | None, **more: Any) -> dict[str, Any]:
    texts = {"wiki": {"hash": HASH, "loss": 3.0, "excess_loss": excess}}
    plain = {"name": f"{small}/", "date": "2026", "linear_share": 0.5, "texts": texts}
    return {"dense": "d", "small": small, "bytes_of_weights": size, **plain, **more}


def scores(size: float, excess: float) -> dict[str, Any]:
    on = {"loss": {"value": 3.5}, "excess_loss": {"value": excess}}
    small = {"label": "small", "bytes_of_weights": {"value": size}, "linear_share": {"value": 0.6}}
    rows = [{"label": "dense", "texts": {}}, {**small, "texts": {"wiki": on}}]
    return {"rows": rows, "settings": {"date": "2026-11-22"}}


def test_the_lowest_excess_among_those_small_enough(tmp_path: Path) -> None:
    for one in (row("a", 100, 0.3), row("b", 90, 0.2), row("c", 120, 0.1)):
        earlier.keep(tmp_path, one)
    found = earlier.best(tmp_path, "d", 100, HASH)
    assert found is not None
    assert (found["small"], found["excess_loss"], found["loss"]) == ("b", 0.2, 3.0)
    assert set(found) == {*earlier._KEPT, "loss", "excess_loss"}


@pytest.mark.parametrize(("most", "expected"), [(100, "a"), (101, "a"), (99.9, None)])
def test_one_byte_more_is_too_many(tmp_path: Path, most: float, expected: str | None) -> None:
    earlier.keep(tmp_path, row("a", 100, 0.3))
    found = earlier.best(tmp_path, "d", most, HASH)
    assert (found and found["small"]) == expected


def test_other_models_texts_and_broken_ones_do_not_count(tmp_path: Path) -> None:
    assert earlier.best(tmp_path, "d", 100, HASH) is None
    earlier.keep(tmp_path, row("self", 100, 0.1))
    earlier.keep(tmp_path, row("other dense", 100, 0.1, dense="e"))
    earlier.keep(tmp_path, row("broken", 100, None))
    earlier.keep(tmp_path, row("no folder", None, 0.1))
    text = {"wiki": {"hash": earlier.content(IDS + 1), "loss": 1.0, "excess_loss": 0.0}}
    earlier.keep(tmp_path, row("other text", 100, 0.1, texts=text))
    assert earlier.best(tmp_path, "d", 100, HASH, but_not="self") is None


def test_a_model_is_kept_once_with_all_its_texts(tmp_path: Path) -> None:
    earlier.keep(tmp_path, row("a", 100, 0.3))
    other = {"code": {"hash": "h", "loss": 2.0, "excess_loss": 0.7}}
    earlier.keep(tmp_path, row("a", 100, 0.3, texts=other, name="moved/"))
    lines = (tmp_path / "runs" / "d.jsonl").read_text().splitlines()
    assert len(lines) == 1
    for text, excess in ((HASH, 0.3), ("h", 0.7)):
        found = earlier.best(tmp_path, "d", 100, text)
        assert found is not None and (found["excess_loss"], found["name"]) == (excess, "moved/")


def test_a_run_is_recorded_and_the_next_one_hears_of_it(tmp_path: Path) -> None:
    texts = {"wiki": IDS}
    first = {"dense": "d", "small": "first"}
    assert earlier.record(tmp_path, scores(80, 0.4), first, texts, "one/") is None
    assert earlier.record(tmp_path, scores(80, 0.4), first, texts, "one/") is None
    found = earlier.record(tmp_path, scores(90, 0.5), {"dense": "d", "small": "second"}, texts)
    assert found == {
        "name": "one/",
        "small": "first",
        "date": "2026-11-22",
        "bytes_of_weights": 80,
        "linear_share": 0.6,
        "loss": 3.5,
        "excess_loss": 0.4,
    }


def test_a_damaged_line_costs_only_itself(tmp_path: Path) -> None:
    earlier.keep(tmp_path, row("a", 100, 0.3))
    file = tmp_path / "runs" / "d.jsonl"
    file.write_text('{"small": "x"\n[1]\n{"small": "y"}\n' + file.read_text())
    assert earlier.best(tmp_path, "d", 100, HASH) is not None
    earlier.keep(tmp_path, row("b", 100, 0.2))
    kept = [json.loads(line)["small"] for line in file.read_text().splitlines()]
    assert kept == ["a", "b"]


def test_equal_windows_alone_have_an_equal_hash() -> None:
    assert earlier.content(IDS) == earlier.content(IDS.int()) == HASH
    assert len({earlier.content(one) for one in (IDS, IDS.reshape(3, 4), IDS + 1, IDS[:1])}) == 4


def test_two_processes_at_once_lose_no_row(tmp_path: Path) -> None:
    context = get_context("fork")
    workers = [context.Process(target=_keep_some, args=(tmp_path, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    kept = (tmp_path / "runs" / "d.jsonl").read_text().splitlines()
    assert len(kept) == 16


def _keep_some(folder: Path, name: str) -> None:
    for index in range(8):
        earlier.keep(folder, row(f"{name}{index}", 100, 0.3))
