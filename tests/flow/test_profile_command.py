"""`spectrim profile` on the command line: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spectrim.cli import main
from tiny_places import Place, assert_clean, assert_told

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def command(place: Place, *options: str | Path) -> tuple[int, str]:
    return place.run(
        "profile", place.source, "--calibration", place.text, "--tokens", "12x32",
        "--cache", place.folder / "cache", "-o", place.folder / "profile", *options,
    )  # fmt: skip


def test_the_command_line_writes_the_folder_and_sums_up(place: Place) -> None:
    with pytest.raises(SystemExit) as leaving:
        main.main(
            ["profile", str(place.source), "--calibration", str(place.text), "--tokens", "12x32",
             "--cache", str(place.folder / "cache"), "-o", str(place.folder / "profile"),
             "--sizes", "60%", "--sequences", "1"]
        )  # fmt: skip
    assert leaving.value.code == 0
    out = place.capsys.readouterr().out
    assert all(f" {role} " in out for role in ROLES)
    assert "block 2" in out and "of logarithms" in out
    said = json.loads((place.folder / "profile" / "profile.json").read_text())
    assert (said["sequences"], said["sizes"], said["method"]) == (1, [0.6], "loss_aware_svd")
    assert said["versions"]["torch"] and said["fingerprint"] and said["split"] == "search"
    assert {one["size"] for one in said["rows"]} == {0.6}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--sizes", "50"], "'50' is no size to cut to; expected parts of each map's numbers"),
        (["--sizes", "100%"], "'100%' is no size to cut to"),
        (["--sizes", "50%,,"], "'' is no size to cut to"),
        (["--sizes", "0.5%"], "no map can be cut to 0.005 of its numbers; ask for larger --sizes"),
        (["--sequences", "9"], "cannot measure on 9 sequences; expected 1 to 2, which are what"),
        (["--sequences", "0"], "cannot measure on 0 sequences; expected 1 to 2"),
        (["--method", "svdd"], "no method named 'svdd'"),
        (["--tokens", "7"], "'7' is no amount of tokens"),
    ],
)
def test_what_cannot_be_profiled_is_said_in_one_line(
    place: Place, options: list[str], told: str
) -> None:
    code, err = command(place, *options)
    assert_told(code, err, told)
    assert not (place.folder / "profile").exists()
    assert_clean(place.folder)


def test_folders_that_hold_something_else_are_kept(place: Place) -> None:
    other = place.folder / "profile"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    code, err = command(place)
    assert_told(code, err, f"{other} is there already and was not written by spectrim profile")
    code, err = command(place, "-o", place.source)
    assert_told(code, err, f"{place.source} holds the model that is read; name another output")
    assert (other / "thesis.tex").read_text() == "years of work"


def test_smaller_models_are_refused(place: Place) -> None:
    assert place.shrink()[0] == 0
    code, err = place.run("profile", place.small, "-o", place.folder / "profile")
    assert_told(code, err, "small is a smaller model already; profile the model that it was made")
