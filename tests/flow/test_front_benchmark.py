"""The frame of benchmarks/front.py: rows are made, measured once, kept, and put into one table."""

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from noise import with_noise
from spectrim.errors import SpectrimError
from spectrim.metrics.size import size
from spectrim.model import sources
from spectrim.model.weights import quiet
from spectrim.text import documents
from spectrim.text.tokens import Tokens
from tiny_folders import tiny_folder
from tiny_models import tokens
from tiny_runs import load, write_text

TEXTS = ("WikiText-2", "C4")


@pytest.fixture(scope="module")
def modules(root: Path) -> Iterator[tuple[ModuleType, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        import front_bench
        import front_table

        yield front_bench, front_table


@pytest.fixture
def frame(modules, tmp_path, monkeypatch) -> tuple[ModuleType, Any]:
    """Return the module and a bench on a tiny model that asks no tasks."""
    module, _ = modules
    monkeypatch.setattr(module, "answers", lambda bench, small, model: {})
    source = sources.resolve(str(tiny_folder(tmp_path / "dense", tie=False)), tmp_path / "cache")
    texts = {
        name: Tokens.full(tokens(sequences=3, length=40, seed=seed))
        for seed, name in enumerate(TEXTS)
    }
    calibration = {"text": str(write_text(tmp_path / "text.txt")), "tokens": "12x32"}
    output = tmp_path / "run"
    output.mkdir()
    return module, module.Bench(
        source, texts, calibration, tmp_path / "text.txt", 2, tmp_path, output, tmp_path / "cache"
    )


def rows_of(module: ModuleType) -> tuple[Any, Any]:
    cut = {"stages": [{"factorize": {"refine": "off", "rank_multiple": 1}}]}
    return module.Row("dense bf16", None, 1.0), module.Row("factors", cut, 0.6)


def run(module: ModuleType, bench: Any, row: Any) -> dict[str, Any]:
    """Run one row quietly and return its numbers."""
    with quiet():
        module.run(bench, row)
    ((_, found),) = bench.known([row])
    return found


def test_rows_hold_what_their_files_hold(frame):
    module, bench = frame
    dense, small = (run(module, bench, row) for row in rows_of(module))
    counted = size(load(bench.source.folder), bench.source.folder)
    assert dense["linear_bytes"] == 4 * counted.linear_numbers  # float32
    assert dense["bytes"] == counted.bytes_of_weights
    assert small["linear_numbers"] <= 0.6 * dense["linear_numbers"]
    # beside the numbers there are the places of the pivots
    assert 4 * small["linear_numbers"] <= small["linear_bytes"] < dense["linear_bytes"]
    outside = [one["bytes"] - one["linear_bytes"] for one in (dense, small)]
    assert outside[0] == outside[1] > 0
    for name in TEXTS:
        assert len(dense[name]["windows"]) == 3
        assert sum(dense[name]["windows"]) / 3 == pytest.approx(dense[name]["loss"])
        assert small[name]["loss"] != dense[name]["loss"]


def test_rows_are_measured_once_and_made_once(frame, monkeypatch):
    module, bench = frame
    row = rows_of(module)[1]
    found = run(module, bench, row)

    def again(*_: object, **named: object) -> None:
        raise AssertionError

    monkeypatch.setattr(module, "shrink", again)
    shorter = replace(bench, texts={"C4": Tokens.full(tokens(length=20))})
    assert "WikiText-2" not in run(module, shorter, row)  # another measurement of the same model
    monkeypatch.setattr(module, "measured", again)
    assert run(module, bench, row) == found
    with pytest.raises(AssertionError):
        run(module, bench, row._replace(how={**row.how, "seed": 1}))
    with pytest.raises(AssertionError):
        run(module, bench, row._replace(size=0.5))


def test_a_row_may_be_made_by_a_callable(frame, tmp_path):
    module, bench = frame

    def noisy(source: Any, folder: Path, part: float) -> None:
        tiny_folder(folder, tie=False)
        with quiet():
            with_noise(load(source.folder), part).save_pretrained(folder)

    dense = run(module, bench, rows_of(module)[0])
    small = run(module, bench, module.Row("noisy", noisy, 0.5))
    assert small["bytes"] == dense["bytes"] and small["C4"]["loss"] != dense["C4"]["loss"]
    assert len(list((bench.output / "models").iterdir())) == 1


def test_text_that_a_row_was_calibrated_on_is_refused(frame):
    module, bench = frame
    row = rows_of(module)[1]
    run(module, bench, row)
    used = json.loads((module.made(bench, row) / "calibration.json").read_text())
    assert used["fingerprints"]
    tokenizer = sources.tokenizer(bench.source)
    seen = documents.read(bench.calibration["text"], tokenizer, 32)
    with pytest.raises(SpectrimError, match="C4 and the text that .* was calibrated on share"):
        module.run(replace(bench, texts={"C4": Tokens.full(seen.ids)}), row)


def test_entries_of_a_row_come_before_those_that_all_share(frame):
    module, bench = frame
    row = module.Row("own", {"keep": None, "calibration": {"tokens": "4x32"}, "seed": 3}, 0.25)
    assert bench.entries(row) == {"calibration": {"tokens": "4x32"}, "seed": 3}
    assert bench.entries(row._replace(how={})) == {
        "keep": "25% of linear",
        "calibration": bench.calibration,
    }


def test_one_window_has_no_spread(modules):
    with pytest.raises(SpectrimError, match="--windows 1 leaves no spread; ask for 2 or more"):
        modules[0].opened(Namespace(windows=1))


def test_a_recipe_that_is_none_is_one_line(frame):
    module, bench = frame
    row = module.Row("wrong", {"stages": [{"factorise": {}}]}, 0.5)
    with pytest.raises(SpectrimError, match="no stage named 'factorise'; did you mean"):
        module.run(bench, row)
    assert bench.known([row]) == []


def test_the_table_has_a_line_for_every_row_and_reasons_for_the_others(modules, frame):
    module, bench = frame
    rows = rows_of(module)
    table = modules[1].results
    assert "not measured yet" in table(bench, rows, {})
    dense, _ = (run(module, bench, row)["linear_bytes"] for row in rows)
    missing = module.Row("missing", {"stages": ["factorize"]}, 0.3)
    said = table(bench, [*rows, missing], {missing.title: "there is no such stage"})
    lines = [[cell.strip() for cell in line.split("|")] for line in said.splitlines()[:4]]
    assert [line[1:3] for line in lines[2:]] == [["dense bf16", "100%"], ["factors", "60%"]]
    assert len({len(line) for line in lines}) == 1
    assert lines[2][3].startswith("100.0% (") and lines[2][5] == "0.000 ± 0.000"
    assert "- missing 30%: there is no such stage" in said
    kept = json.loads((bench.output / "front.json").read_text())
    assert [one["front"] for one in kept["rows"]] == [lines[2][-2] == "yes", lines[3][-2] == "yes"]
    part, mega = kept["rows"][1]["linear"]
    assert mega * 1e6 == pytest.approx(part * dense)
    assert "3 of WikiText-2, 3 of C4" in said and "text.txt, 12x32" in said


def test_no_row_on_the_front_is_beaten(modules):
    def row(cost: int, *losses: float) -> dict[str, Any]:
        named = zip(TEXTS, losses, strict=True)
        return {"linear_bytes": cost} | {name: {"loss": loss} for name, loss in named}

    best = [row(100, 3, 3), row(50, 3, 4), row(50, 4, 3), row(20, 5, 5)]
    beaten = [row(60, 3, 4), row(50, 4, 4), row(100, 3, 3.5)]
    assert modules[1].unbeaten([*beaten, *best], list(TEXTS)) == best


def test_tasks_are_lm_evals_with_what_changed(modules, frame, data, monkeypatch):
    pytest.importorskip("lm_eval")
    module, bench = frame
    monkeypatch.undo()  # ask
    bench = replace(bench, data=data)
    dense, small = bench.dense, with_noise(bench.dense, 0.5)
    first = module.answers(bench, bench.source, dense)
    found = module.answers(bench, replace(bench.source, fingerprint="small"), small)
    assert set(first) == set(found) == set(module.TASKS)
    assert all(one["acc"]["n"] == 2 for one in (*first.values(), *found.values()))
    assert all("mcnemar_p" in one for one in found.values())
    assert "mcnemar_p" not in first["copa"]
    shown = modules[1].accuracy(found["copa"])
    assert len(shown["accuracy"]) == 3 and shown["p"] == 1
    assert "p" not in modules[1].accuracy(first["copa"])
