"""Outputs that would do harm, full and read-only disks, and measuring what cannot be measured."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tiny_exports import exportable
from tiny_places import Place, assert_clean, assert_told
from tiny_runs import files, recipe, shrink, write_text

FULL = "the disk is full; free some space and run the same command again"


# outputs


def test_a_folder_that_is_not_ours_is_not_replaced(place: Place) -> None:
    other = place.folder / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    told = f"{other} is there already and was not written by spectrim shrink; name another output"
    place.refused(told, "-o", other)
    assert (other / "thesis.tex").read_text() == "years of work"
    place.refused(f"{place.text} is there already", "-o", place.text)


def test_the_model_is_not_replaced_by_what_is_made_of_it(place: Place) -> None:
    before = files(place.source)
    told = "holds the model that is read; name another output"
    place.refused(told, "-o", place.source)
    place.refused(told, "-o", place.folder)
    assert files(place.source) == before


def test_an_earlier_output_is_replaced_and_an_empty_folder_filled(place: Place) -> None:
    place.small.mkdir()
    for _ in range(2):
        code, err = place.shrink()
        assert code == 0, err
    assert_clean(place.folder)
    assert not list(place.folder.glob(".*"))


def mounted(folder: Path, options: str) -> bool:
    """Return whether a file system of its own could be mounted there, as root can."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    if not mounted(folder, "size=4m"):
        pytest.skip("only root can mount a disk of its own")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_read_only_disk(place: Place, disk: Path) -> None:
    resize(disk, "ro")
    place.refused(f"cannot write '{disk / 'small'}'; Read-only file system", "-o", disk / "small")
    place.refused("Read-only file system", "--cache", disk / "cache")


def test_an_output_where_nothing_can_be(place: Place) -> None:
    place.refused("cannot write '/proc/small'; ", "-o", "/proc/small")
    place.refused(f"cannot write '{place.text / 'small'}'; Not a directory: ",
                  "-o", place.text / "small")  # fmt: skip
    place.refused("cannot use '/proc/cache'; ", "--cache", "/proc/cache")


def test_a_disk_too_full_for_the_output(place: Place, disk: Path) -> None:
    whole = files(shrink(recipe(place.source, place.text), place.small))
    for size in ("8k", "100k", "200k"):
        resize(disk, f"size={size}")
        assert_told(*place.shrink("-o", disk / "small"), FULL)
        assert list(disk.iterdir()) == []
        assert_clean(place.folder)
    resize(disk, "size=4m")
    assert place.shrink("-o", disk / "small")[0] == 0
    assert files(disk / "small") == whole


def test_a_disk_too_full_for_the_cache(place: Place, disk: Path) -> None:
    """Each size is too little for another step; the last one is enough, and continues."""
    for size in range(40, 2000, 120):
        resize(disk, f"size={size}k")
        code, err = place.shrink(cache=disk, alone=True)
        if code == 0:
            break
        assert_told(code, err, FULL)
        assert not place.small.exists()
        assert not [path for path in disk.rglob("*") if "partial" in path.name]
        assert not list((disk / "work").glob("*"))
    else:
        pytest.fail("2 MB are enough")
    assert size > 400
    (place.folder / "alone").mkdir()
    alone = shrink(recipe(place.source, place.text), place.folder / "alone" / "small")
    assert files(place.small) == files(alone)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Stand in for a full disk where none can be mounted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [2_000, 20_000, 40_000, 100_000, 200_000])
def test_files_that_may_not_grow(place: Place, size: int) -> None:
    with no_file_larger_than(size):
        code, err = place.shrink()
    assert_told(code, err, FULL)
    assert not place.small.exists()
    assert_clean(place.folder)


@pytest.mark.parametrize("to", ["gguf", "dense"])
def test_exports_that_may_not_grow(place: Place, to: str) -> None:
    """At each size another part does not fit; the last tensor of a GGUF file is a short one."""
    model, output = exportable(place.folder / "model"), place.folder / "export"
    asked = ("export", model, "--to", to, "-o", output, "--cache", place.folder / "cache")
    whole = place.folder / "whole"
    assert place.run(*asked[:5], whole, *asked[6:])[0] == 0
    end = max(file.stat().st_size for file in (whole.iterdir() if to == "dense" else [whole]))
    for size in (2_000, 20_000, end // 2 + 1, end - 100):
        with no_file_larger_than(size):
            code, err = place.run(*asked)
        assert_told(code, err, FULL)
        assert not output.exists()
        assert_clean(place.folder)
    assert place.run(*asked)[0] == 0


def test_too_little_memory_to_measure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step alone needs the whole model; so it says how to do without."""

    def fail(*_: object) -> None:
        raise RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)")

    monkeypatch.setattr("spectrim.verbs.shrink.measured", fail)
    code, err = place.run("shrink", place.source, "--calibration", place.text, "--tokens", "12x32",
                          "--cache", place.folder / "cache", "-o", place.small)  # fmt: skip
    assert_told(code, err, "there is too little memory to measure the whole models; run again with "
                "--no-evaluate")  # fmt: skip
    assert not place.small.exists()
    assert_clean(place.folder)


# measuring


def test_measuring_on_the_calibration_text(place: Place) -> None:
    small = shrink(recipe(place.source, place.text), place.small)
    scores = place.folder / "scores.json"
    other = write_text(place.folder / "other.txt", seed=1)
    # wholly known, and known text among much that is new
    part = place.folder / "part.txt"
    words = place.text.read_text().split()
    part.write_text(" ".join(other.read_text().split() * 3 + words[:96]))
    for text, tokens in ((place.text, "4x32"), (part, "75x32")):
        code, err = place.run("evaluate", small, "--text", text, "--tokens", tokens, "--cache",
                              place.folder / "cache", "--json", scores)  # fmt: skip
        assert_told(code, err, f"{text} and the text that {small} was calibrated on share ")
        assert not scores.exists()


EVALUATIONS = [
    (["--tokens", "400x32"], "gives 24 full windows of 32 tokens and 400 are wanted"),
    (["--tokens", "1x2000"], "gives 0 full windows of 2000 tokens and 1 are wanted"),
    (["--text", "none.txt"], "there is no text file none.txt"),
    (["--against", "./none"], "there is no folder or file ./none"),
]


@pytest.mark.parametrize(("options", "told"), EVALUATIONS)
def test_measuring_what_cannot_be(place: Place, options: list[str], told: str) -> None:
    small = shrink(recipe(place.source, place.text), place.small)
    asked = {"--text": str(write_text(place.folder / "other.txt", seed=1)), "--tokens": "4x32"}
    asked |= {options[0]: options[1], "--cache": str(place.folder / "cache")}
    words = [word for pair in asked.items() for word in pair]
    assert_told(*place.run("evaluate", small, *words), told)


def test_measuring_what_does_not_say_what_it_was_made_from(place: Place) -> None:
    told = f"{place.source} does not say what it was made from, as an original does not; name"
    options = ("--text", place.text, "--cache", place.folder / "cache")
    assert_told(*place.run("evaluate", place.source, *options), told)
