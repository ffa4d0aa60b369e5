"""What is ours: manifests, and the marks by which scores and pages are known."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from spectrim.errors import SpectrimError
from spectrim.outputs.folder import output_file
from spectrim.outputs.manifest import (
    MANIFEST,
    are_scores,
    is_page,
    record,
    recorded,
)
from spectrim.outputs.refusals import refuse_file, refuse_output
from tiny_outputs import THESIS, write


@pytest.mark.parametrize(
    "files",
    [
        "[]",
        '{"files": ["a"], "verb": "shrink"}',
        "[" * 100_000,
        '{"files": {"../thesis.tex": {}}, "verb": "shrink"}',
        "{",
    ],
)
def test_a_manifest_that_is_none_makes_nothing_ours(tmp_path: Path, files: str) -> None:
    (tmp_path / "thesis.tex").write_text(THESIS)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / MANIFEST).write_text(files)
    with pytest.raises(SpectrimError, match="was not written by spectrim shrink"):
        refuse_output(tmp_path / "small", "shrink")


def test_how_scores_and_pages_are_known(tmp_path: Path) -> None:
    ours = tmp_path / "scores.json"
    ours.write_text(json.dumps({"settings": {"versions": {"spectrim": "1"}}, "rows": []}))
    assert are_scores(ours)
    refuse_file(ours, are_scores)
    for text in ('{"rows": []}', "[]", "{", THESIS, '{"settings": {"versions": {"spectrim": 1}}}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(SpectrimError, match="was not written by spectrim; name another file"):
            refuse_file(tmp_path / "other.json", are_scores)
    (tmp_path / "page.html").write_text("<p>spectrim</p>")
    assert not is_page(tmp_path / "page.html")
    with pytest.raises(SpectrimError, match="is a folder; name another file"):
        refuse_file(tmp_path, is_page)


def test_scores_written_anew_into_an_output_stay_ours(tmp_path: Path) -> None:
    write(tmp_path / "small", scores="first")
    (tmp_path / "small" / "scores").write_text("second")
    recorded(tmp_path / "small" / "scores")
    refuse_output(tmp_path / "small", "shrink")
    (tmp_path / "small" / "scores").write_text("by hand")
    with pytest.raises(SpectrimError, match="was changed since spectrim wrote it"):
        refuse_output(tmp_path / "small", "shrink")


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("1")
    record(tmp_path, "shrink")
    assert list(json.loads((tmp_path / MANIFEST).read_text())["files"]) == ["a/b"]


def test_scores_are_not_written_through_a_hidden_link(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text(THESIS)
    hidden = tmp_path / f".s.json.partial-{os.getpid()}"
    hidden.symlink_to(tmp_path / "thesis.tex")
    with output_file(tmp_path / "s.json") as partial:
        partial.write_text("{}")
    assert (tmp_path / "thesis.tex").read_text() == THESIS
    assert (tmp_path / "s.json").read_text() == "{}" and not (tmp_path / "s.json").is_symlink()


def test_scores_of_a_run_that_was_killed_before_it_said_so_are_ours(tmp_path: Path) -> None:
    write(tmp_path / "small", **{"scores.json": "{}"})
    said = {"settings": {"versions": {"spectrim": "1"}}, "rows": []}
    (tmp_path / "small" / "scores.json").write_text(json.dumps(said))
    refuse_output(tmp_path / "small", "shrink")
