"""Outputs where a run is killed, where links lead nowhere, and where folders lie in one another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import report_folder
from spectrim.cli import main
from spectrim.errors import SpectrimError
from spectrim.outputs.folder import output_file
from spectrim.outputs.manifest import (
    LARGEST,
    MANIFEST,
    are_scores,
    is_page,
    manifest,
    write_manifest,
)
from spectrim.outputs.refusals import refuse_file
from spectrim.report.page import write_page
from spectrim.verbs.evaluate import write_scores
from tiny_outputs import THESIS, names, write
from tiny_places import Place, assert_told
from tiny_runs import recipe, shrink

SCORES = {"rows": [], "settings": {"versions": {"spectrim": "0.2.0"}}}


def put_aside(target: Path, old: Path) -> None:
    """Do what a run does that is killed behind it."""
    write_manifest(target, {**(manifest(target) or {}), "aside": True})
    os.replace(target, old)


# killed


def killed_after(moves: int, target: Path, said: str) -> int:
    """Write a folder in a process that is killed after so many moves; return its signal or 0."""
    if child := os.fork():
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    left = iter(range(moves))

    def counted(move: Callable[..., None], *paths: Path, **options: bool) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        move(*paths, **options)

    os.replace = partial(counted, os.replace)
    unlink = Path.unlink
    Path.unlink = lambda path, **options: counted(unlink, path, **options)
    write(target, plan=said)
    os._exit(0)


MOVES = 5  # the old folder marked and put aside, the new one there, plan gone, the user's file over


@pytest.mark.parametrize("moves", range(MOVES + 1))
def test_killed_while_replacing_nothing_of_the_user_is_lost(tmp_path: Path, moves: int) -> None:
    target, old = tmp_path / "small", tmp_path / ".small.old"
    write(target, plan="old")
    (target / "thesis.tex").write_text(THESIS)
    assert killed_after(moves, target, "new") == (signal.SIGKILL if moves < MOVES else 0)
    assert (target / "thesis.tex").exists() or (old / "thesis.tex").exists()
    if target.exists():
        assert (target / "plan").read_text() == ("new" if moves > 1 else "old")
    else:
        assert (old / "plan").read_text() == "old"
    write(target, plan="newest")
    assert names(tmp_path) == ["small"]
    assert (target / "plan").read_text() == "newest"
    assert (target / "thesis.tex").read_text() == THESIS


def test_a_swap_that_fails_puts_the_earlier_output_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, move = tmp_path / "small", os.replace
    write(target, plan="old")

    def failing(one: Path, other: Path) -> None:
        if one.name == ".small.partial":
            raise PermissionError
        move(one, other)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(PermissionError):
        write(target, plan="new")
    assert names(tmp_path) == ["small"] and (target / "plan").read_text() == "old"


def test_two_files_of_the_user_of_one_name_are_both_kept(tmp_path: Path) -> None:
    """A run is killed, then the user writes the same file anew."""
    target = tmp_path / "small"
    write(target, plan="first")
    (target / "notes.md").write_text(THESIS)
    put_aside(target, tmp_path / ".small.old")
    write(tmp_path / "other", plan="second")
    os.replace(tmp_path / "other", target)
    (target / "notes.md").write_text("later")
    write(target, plan="third")
    assert names(target) == ["notes.md", "notes.md.kept", "plan", MANIFEST]
    assert (target / "notes.md.kept").read_text() == THESIS


# links


@pytest.mark.parametrize(
    "command",
    [["shrink", "demo", "-o"], ["profile", "demo", "-o"], ["search", "demo", "-o"],
     ["evaluate", "demo", "--json"], ["report", "folder", "-o"]],
    ids=lambda command: command[0],
)  # fmt: skip
@pytest.mark.parametrize("to", ["disk/small", "link"], ids=["nothing", "itself"])
def test_a_link_to_nothing_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str], to: str
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / to)
    with pytest.raises(SystemExit) as leaving:
        main.main([*command, str(link)])
    told = f"{link} is a link to nothing; make what it points to, or name another output"
    assert_told(leaving.value.code, capsys.readouterr().err, told)
    assert [*tmp_path.iterdir()] == [link]


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    for name, made in (("scores.json", write_scores), ("page.html", None)):
        file, link = tmp_path / name, tmp_path / f"link-{name}"
        file.write_text("")
        link.symlink_to(file)
        if made is None:
            write_page(report_folder.write(tmp_path / "small"), link)
        else:
            made(SCORES, link)
        assert link.is_symlink() and file.stat().st_size


def test_a_link_of_the_user_that_is_broken_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "small"
    write(target, plan="old")
    (target / "vocab.bpe").symlink_to(tmp_path / "gone")
    with pytest.raises(SpectrimError, match="vocab.bpe was not written by spectrim"):
        write(target, **{"vocab.bpe": "new"})
    assert (target / "vocab.bpe").is_symlink()


# folders in one another


def test_an_output_lies_outside_the_cache_and_holds_no_packed_model(place: Place) -> None:
    cache = place.folder / "cache"
    place.refused(f"{cache / 'x'} lies in the cache ({cache}); name another", "-o", cache / "x")
    write(place.small, plan="ours")
    packed = place.small / "model.gguf"
    packed.write_bytes(b"GGUF")
    code, err = place.run("shrink", packed, "--cache", cache, "-o", place.small)
    assert_told(code, err, f"{place.small} holds the model that is read; name another output")
    assert packed.is_file() and not cache.exists()


def test_an_output_of_an_earlier_version_is_refused(place: Place) -> None:
    small = shrink(recipe(place.source, place.text), place.small)
    (small / MANIFEST).unlink()
    before = names(small)
    place.refused(f"{small} was written by an earlier version, which left no list of its files; ")
    assert names(small) == before


def test_a_front_is_refused_before_its_first_size(place: Place) -> None:
    front = place.folder / "front"
    (front / "40_of_bytes").mkdir(parents=True)
    (front / "40_of_bytes" / "thesis.tex").write_text(THESIS)
    asked = ("search", place.source, "--cache", place.folder / "cache", "-o", front)
    code, err = place.run(*asked, "--sizes", "60%,40%")
    assert_told(code, err, f"{front / '40_of_bytes'} is there already and was not written by")
    (front / "report.html").write_text(THESIS)
    code, err = place.run(*asked, "--sizes", "60%")
    assert_told(code, err, f"{front / 'report.html'} is there already and was not written by")
    assert not (place.folder / "cache").exists()


# single files


def test_a_file_of_a_killed_run_is_removed_and_one_in_the_making_is_left(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {kind: f".m.gguf.partial-{process}" for kind, process in
             {"killed": ended.pid, "running": os.getppid(), "other": "notes"}.items()}  # fmt: skip
    for name in names.values():
        (tmp_path / name).write_text("half")
    with output_file(tmp_path / "m.gguf") as partial:
        assert partial.name not in names.values()
        partial.write_text("whole")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"m.gguf", names["running"], names["other"]}


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for."""
    target = tmp_path / "small"
    target.mkdir()
    os.mkfifo(target / MANIFEST)
    with pytest.raises(SpectrimError, match="was not written by spectrim shrink"):
        write(target, plan="new")
    assert not are_scores(target / MANIFEST) and not is_page(target / MANIFEST)


def test_an_empty_file_may_be_filled_and_weights_are_not_read(tmp_path: Path) -> None:
    empty, large = tmp_path / "empty", tmp_path / "large"
    empty.touch()
    refuse_file(empty, are_scores)
    large.touch()
    os.truncate(large, LARGEST + 1)
    assert not are_scores(large)


def test_scores_and_report_written_into_an_output_later_go_with_it(tmp_path: Path) -> None:
    """Else the scores of an earlier model would stand beside a new one."""
    made, target = report_folder.write(tmp_path / "made"), tmp_path / "small"
    write(target, plan="old")
    (made / "scores.json").rename(target / "scores.json")
    write_page(target)
    (target / "scores.json").unlink()
    write_scores(SCORES, target / "scores.json")
    write(target, plan="new")
    assert names(target) == ["plan", MANIFEST]
    assert set(json.loads((target / MANIFEST).read_text())["files"]) == {"plan"}
