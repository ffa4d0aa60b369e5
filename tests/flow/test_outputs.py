"""Outputs replace what spectrim wrote and nothing else: every kind of thing that may lie there."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from spectrim.errors import SpectrimError
from spectrim.model import sources
from spectrim.outputs.folder import output_folder
from spectrim.outputs.manifest import (
    MANIFEST,
    manifest,
    summary,
    write_manifest,
)
from spectrim.outputs.refusals import refuse_output
from tiny_outputs import THESIS, names, write
from tiny_places import Place
from tiny_runs import family_folder, write_text


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    """Return a folder with a tiny model and a text in it."""
    family_folder(tmp_path / "source", "llama")
    write_text(tmp_path / "text.txt")
    return Place(tmp_path, capsys)


def node(path: Path, kind: str) -> Path:
    """Make what is neither a file nor a folder."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))  # as /dev/null is
        except PermissionError:
            pytest.skip("only root can make a device node")
    return path


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_neither_file_nor_folder_stays_that(place: Place, kind: str) -> None:
    path = node(place.folder / "node", kind)
    before = path.lstat()
    told = f"{path} is there already and is neither a file nor a folder; name another "
    place.refused(told, "-o", path)
    link = place.folder / "link"
    link.symlink_to(path)
    place.refused("neither a file nor a folder", "-o", link)
    for verb in (["profile", str(place.source), "-o"], ["search", str(place.source), "-o"],
                 ["evaluate", str(place.source), "--against", str(place.source), "--json"],
                 ["report", str(place.source), "-o"]):  # fmt: skip
        code, err = place.run(*verb, str(path))
        assert code == 2 and told in err, err
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert link.is_symlink()


def test_a_link_to_a_folder_is_followed_and_stays_a_link(place: Place) -> None:
    disk, link = place.folder / "disk" / "small", place.folder / "link"
    disk.mkdir(parents=True)
    link.symlink_to(disk)
    for _ in range(2):  # the second time it is ours
        code, err = place.shrink("-o", link)
        assert code == 0, err
        assert link.is_symlink() and (disk / "model.safetensors").is_file()
    assert names(disk.parent) == ["small"]


def test_a_folder_that_happens_to_hold_a_plan_is_not_ours(place: Place) -> None:
    for verb, file in (("shrink", "plan.json"), ("profile", "profile.json")):
        other = place.folder / verb
        other.mkdir()
        (other / file).write_text('{"floor": 2}')
        (other / "thesis.tex").write_text(THESIS)
        told = f"{other} is there already and was not written by spectrim {verb}"
        with pytest.raises(SpectrimError, match=told):
            refuse_output(other, verb)
        if verb == "shrink":
            place.refused(told, "-o", other)
        else:
            code, err = place.run("profile", place.source, "-o", other)
            assert code == 2 and told in err
        assert names(other) == sorted([file, "thesis.tex"])


def test_what_the_user_put_into_an_output_stays_there(place: Place) -> None:
    assert place.shrink()[0] == 0
    (place.small / "notes.md").write_text(THESIS)
    (place.small / "texts").mkdir()
    (place.small / "texts" / "mine.txt").write_text(place.text.read_text())
    (place.small / "away").symlink_to(place.folder)
    code, err = place.shrink("--calibration", place.small / "texts" / "mine.txt",
                             "--keep", "60% of linear")  # fmt: skip
    assert code == 0, err
    assert (place.small / "notes.md").read_text() == THESIS
    assert (place.small / "texts" / "mine.txt").is_file()
    assert (place.small / "away").is_symlink()
    assert "60% of linear" in (place.small / "recipe.yaml").read_text()
    assert not [path for path in place.folder.iterdir() if path.name.startswith(".")]


def test_a_file_of_ours_that_was_changed_is_not_lost(place: Place) -> None:
    assert place.shrink()[0] == 0
    (place.small / "README.md").write_text(THESIS)
    place.refused(f"{place.small / 'README.md'} was changed since spectrim wrote it; move it away",
                  "-o", place.small)  # fmt: skip
    assert (place.small / "README.md").read_text() == THESIS


def test_a_file_of_the_user_under_one_of_our_names_is_in_the_way(tmp_path: Path) -> None:
    write(tmp_path / "small", plan="ours")
    (tmp_path / "small" / "config.json").write_text(THESIS)
    with pytest.raises(SpectrimError, match=r"config.json was not written by spectrim and is in"):
        refuse_output(tmp_path / "small", "shrink")
    # of a name that nobody could foresee, the result is kept beside it
    write(tmp_path / "other", plan="ours")
    (tmp_path / "other" / "vocab.bpe").write_text(THESIS)
    with pytest.raises(SpectrimError, match=r"vocab.bpe .* what was made is in .*other-1"):
        write(tmp_path / "other", **{"vocab.bpe": "new"})
    assert (tmp_path / "other" / "vocab.bpe").read_text() == THESIS
    assert (tmp_path / "other-1" / "vocab.bpe").read_text() == "new"


def test_what_appears_during_the_run_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(SpectrimError, match=r"not written by spectrim shrink.* is in .*small-1"),
        output_folder(tmp_path / "small", "shrink") as folder,
    ):
        (folder / "plan.json").write_text("made")
        (tmp_path / "small").mkdir()
        (tmp_path / "small" / "thesis.tex").write_text(THESIS)
    assert (tmp_path / "small" / "thesis.tex").read_text() == THESIS
    assert (tmp_path / "small-1" / "plan.json").read_text() == "made"
    assert names(tmp_path) == ["small", "small-1"]


def test_killed_while_replacing_nothing_is_lost(tmp_path: Path) -> None:
    write(tmp_path / "small", plan="first")
    (tmp_path / "small" / "notes.md").write_text(THESIS)
    known = manifest(tmp_path / "small")
    write_manifest(tmp_path / "small", {**(known or {}), "aside": True})
    os.replace(tmp_path / "small", tmp_path / ".small.old")  # and there it was killed
    write(tmp_path / "small", plan="second")
    assert (tmp_path / "small" / "plan").read_text() == "second"
    assert (tmp_path / "small" / "notes.md").read_text() == THESIS
    assert names(tmp_path) == ["small"]


def test_a_failed_run_leaves_the_earlier_output(tmp_path: Path) -> None:
    write(tmp_path / "small", plan="first")
    with pytest.raises(OSError), output_folder(tmp_path / "small", "shrink") as folder:
        (folder / "plan").write_text("second")
        raise OSError
    assert (tmp_path / "small" / "plan").read_text() == "first"
    assert names(tmp_path) == ["small"]


def test_outputs_and_the_cache_and_the_model_keep_apart(place: Place) -> None:
    cache = place.folder / "cache"
    place.refused("is the cache, or holds it", "-o", cache)
    place.refused("is the cache, or holds it", "-o", place.small, "--cache", place.small / "cache")
    place.refused("lies in the folder of the model that is read", "-o", place.source / "small")
    assert not (place.source / "small").exists()


def test_the_json_of_evaluate_replaces_only_its_own(place: Place) -> None:
    weights = place.source / "model.safetensors"
    before = weights.read_bytes()
    for file in (weights, place.source / "config.json"):
        code, err = place.run("evaluate", place.source, "--against", place.source, "--json", file)
        assert code == 2 and f"{file} is there already and was not written by spectrim" in err
    assert weights.read_bytes() == before
    assert not (place.folder / "cache").exists(), "it is refused before anything is done"


def test_a_model_named_by_its_home_folder_is_not_replaced(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place.folder))
    before = names(place.source)
    for output in (place.source, place.source / "small"):
        code, err = place.run("shrink", "~/source", "--no-evaluate", "-o", output)
        assert code == 2 and "of the model" in err or "holds the model" in err
    assert names(place.source) == before
    (place.folder / "demo").mkdir()  # which is not the demo model
    refuse_output(place.folder / "demo", "shrink", model=sources.local("demo"))


@pytest.mark.parametrize("kind", ["partial", "old"])
def test_hidden_folders_beside_an_output_are_their_owners(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "small", plan="first")
    shutil.copytree(tmp_path / "small", tmp_path / f".small.{kind}")  # a backup
    (tmp_path / f".small.{kind}" / "thesis.tex").write_text(THESIS)
    if kind == "partial":
        (tmp_path / ".small.partial" / MANIFEST).unlink()
    before = names(tmp_path / f".small.{kind}")
    write(tmp_path / "small", plan="second")
    assert names(tmp_path / f".small.{kind}") == before
    assert names(tmp_path) == [f".small.{kind}", "small"]


def test_two_runs_to_one_output_do_not_mix(tmp_path: Path) -> None:
    child = os.fork()
    if not child:  # another process, in the middle of writing
        with output_folder(tmp_path / "small", "shrink") as folder:
            (folder / "theirs").write_text("")
            (tmp_path / "ready").touch()
            while not (tmp_path / "small").exists():
                time.sleep(0.01)
        os._exit(0)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    write(tmp_path / "small", ours="")
    assert names(tmp_path / "small") in ([*["ours"], MANIFEST], [MANIFEST, "theirs"])
    os.waitpid(child, 0)
    assert names(tmp_path / "small") == [MANIFEST, "theirs"]  # the later one, and whole
    assert names(tmp_path) == ["ready", "small"]


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    write(tmp_path / "small", plan="first")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").write_text(THESIS)
    (tmp_path / "small" / "sub").symlink_to(tmp_path / "else")
    known = manifest(tmp_path / "small")
    assert known is not None
    known["files"]["sub/thesis.tex"] = summary(tmp_path / "else" / "thesis.tex")
    write_manifest(tmp_path / "small", known)
    with pytest.raises(SpectrimError, match="was changed since spectrim wrote it"):
        refuse_output(tmp_path / "small", "shrink")


def test_the_folder_that_one_is_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpectrimError, match=r"\. is or holds the folder that you are in"):
        refuse_output(Path("."), "shrink")
