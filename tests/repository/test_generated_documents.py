"""Tables of the documents are what the committed runs and the code say, number by number."""

import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spectrim.errors import SpectrimError
from spectrim.metrics import metrics
from spectrim.model.architectures import ARCHITECTURES

NOT_SHOWN = {"table", "commit", "threads"}  # of a row; prose tells whose these are


@pytest.fixture(scope="module")
def modules(root: Path) -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        import documents
        import run_files
        import tables

        yield documents, run_files, tables


@pytest.fixture
def copied(modules, root, tmp_path, monkeypatch) -> Path:
    """Return a copy of the documents, which the generator takes for its own."""
    (tmp_path / "docs").mkdir()
    for file in modules[0].documents(root):
        (tmp_path / file.relative_to(root)).write_text(file.read_text())
    monkeypatch.setattr(modules[0], "ROOT", tmp_path)
    return tmp_path


def changed(value: Any) -> Iterator[Any]:
    """Yield the value with one number of it, anywhere inside, changed so that it shows."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield 2 * value + 1
    elif isinstance(value, (dict, list)):
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            for other in () if key in NOT_SHOWN else changed(held):
                found = copy.copy(value)
                found[key] = other
                yield found


def names(modules: tuple[ModuleType, ...], text: str) -> list[str]:
    return [found[1] for found in modules[0].MARKED.findall(text)]


def test_every_document_is_as_the_generator_fills_it(modules, root):
    for file in modules[0].documents(root):
        text = file.read_text(encoding="utf-8")
        assert modules[0].filled(text) == text, f"{file.name}: give 'make docs'"


def test_a_changed_number_is_found_and_mended(modules, copied, monkeypatch):
    file = copied / "docs" / "results.md"
    right = file.read_text()
    file.write_text(right.replace("| 0.632 ± 0.067 |", "| 0.532 ± 0.067 |"))
    assert file.read_text() != right
    monkeypatch.setattr(sys, "argv", ["documents.py", "--check"])
    with pytest.raises(SystemExit, match="code have it: docs/results.md; give 'make docs'"):
        modules[0].main()
    monkeypatch.setattr(sys, "argv", ["documents.py"])
    modules[0].main()
    assert file.read_text() == right


def test_every_number_of_every_row_shows_in_its_table(modules):
    _, run_files, tables = modules
    for name, table in tables.TABLES.items():
        run = run_files.read(table.run)
        own = [row for row in run["rows"] if row["table"] == (table.rows or name)]
        if table.rows:
            continue  # it shows a part of another table
        before = tables.measured(name, run)
        for row in own[1:]:  # the first is the dense model in some, whose size goes without saying
            for other in changed(row):
                rows = [other if one is row else one for one in run["rows"]]
                assert tables.measured(name, {**run, "rows": rows}) != before, (name, row, other)


def test_runs_say_how_they_were_obtained_and_stand_in_the_results(modules, root):
    _, run_files, tables = modules
    text = (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert run_files.names() == sorted({table.run for table in tables.TABLES.values()})
    shown = set(names(modules, text))
    for name in run_files.names():
        run = run_files.read(name)
        assert [field for field in run_files.FIELDS if field not in run] == []
        assert set(run["machine"]) == set(run_files.MACHINE)
        assert {row["table"] for row in run["rows"]} <= shown
        assert " ".join(run["command"].split()[:2]) in text


def test_every_table_stands_in_one_document(modules, root):
    documents, _, tables = modules
    texts = [file.read_text(encoding="utf-8") for file in documents.documents(root)]
    found = sorted(name for text in texts for name in names(modules, text))
    assert found == sorted([*tables.TABLES, *documents.STRUCTURE, "tasks", "families"])


def test_numbers_outside_the_markers_make_no_table(root):
    for name in ("results.md", "evaluation.md"):
        text = (root / "docs" / name).read_text(encoding="utf-8")
        assert "\n|" not in re.sub(r"<!-- table.*?<!-- end -->", "", text, flags=re.S)


def test_the_tasks_and_families_are_those_of_the_code(modules):
    content = modules[0].content
    tasks = {task for name in metrics.names() for task in metrics.constant(name, "TASKS") or ()}
    assert set(re.findall(r"^\| `([^`]+)` \|", content("tasks"), re.M)) == tasks
    assert set(re.findall(r"`(\w+)`", content("families"))) == set(ARCHITECTURES)
    line = next(one for one in content("tasks").splitlines() if "`bbc_news`" in one)
    assert line.endswith("| topic/octis_BBC_News/corpus.tsv | SetFit/bbc-news |")


def test_the_readme_shows_smaller_models_that_lose_less(modules):
    _, *lines = modules[2].TABLES["readme"].lines(modules[1].read("front")["rows"])
    assert [line[2] for line in lines] == ["int4", "int3", "int2"]
    for ours, loss, _, theirs, lost in lines:
        assert float(ours.split()[0]) < float(theirs.split()[0])
        assert float(loss) < float(lost)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table: frnt -->\n<!-- end -->", "no table named 'frnt'; did you mean 'front'"),
        ("<!-- table: front -->\n", "has no end"),
    ],
)
def test_a_marker_that_means_nothing_is_refused(modules, text, said):
    with pytest.raises(SpectrimError, match=said):
        modules[0].filled(text)
