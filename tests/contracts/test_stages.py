"""What every stage promises: its options, its facts, its files, its bits, its note."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spectrim.errors import SpectrimError
from spectrim.model.weights import quiet
from spectrim.recipe.recipe import Recipe, Stage
from spectrim.registry import Registry
from spectrim.report import notes
from spectrim.stages import stages
from spectrim.verbs.shrink import shrink
from tiny_folders import tiny_folder
from tiny_runs import equal, files, plan_of, stored, write_text

NAMES = stages.names()
OPTIONS = Registry("stage", "spectrim.stages", attribute=lambda _: "Options")
SHORT: dict[str, dict[str, Any]] = {  # what has no default, and what makes a run short
    "drop_blocks": {"drop": 1, "protect_first": 0, "protect_last": 0},
    "quantize": {"bits": 3, "group": 32},
}
BEFORE: dict[str, list[Any]] = {  # what stands in front of a stage that needs so much of the model
    "damage": ["sparsify"],
    "packed": [{"quantize": {"bits": 2, "group": 32}}],
}


class KilledError(Exception):
    """What a killed run is like from within."""


def options_of(name: str) -> dict[str, Any]:
    """Return options for a short run of a stage."""
    fields = OPTIONS.get(name).model_fields
    short = {"steps": 4, "every": 2, "warmup": 1, "sequences": 4}
    return SHORT.get(name, {key: value for key, value in short.items() if key in fields})


def sentences(name: str, constant: str) -> dict[str, str]:
    """Return the facts that a stage needs or refuses, each with its sentence."""
    return stages.constant(name, constant) or {}


def bare(fact: str) -> str:
    """Return a fact without its condition."""
    return re.split(" if | unless ", fact)[0]


@dataclass(frozen=True)
class Ran:
    """A run of a stage, and one that was interrupted half way and taken up again."""

    name: str
    source: Path
    small: Path
    again: Path


def run(name: str, folder: Path, stop: int = 0) -> int:
    """Run a stage on the tiny model; return how often it told its progress.

    stop: after which of these the run is interrupted, 0 for never.
    """
    told = 0

    def progress(done: int, total: int, what: str) -> None:
        nonlocal told
        told += 1
        if told == stop:
            raise KilledError

    before = [one for fact in sentences(name, "NEEDS") for one in BEFORE.get(fact, [])]
    asked = {
        "model": "source",
        "keep": "70% of linear",
        "stages": [*before, {name: options_of(name)}],
    }
    asked["calibration"] = {"text": "text.txt", "tokens": "12x32"}
    with quiet():
        shrink(Recipe.model_validate(asked), folder / "small", cache=folder / "cache",
               evaluate=False, progress=progress)  # fmt: skip
    return told


@pytest.fixture(scope="module", params=NAMES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Run a stage twice, in folders of their own."""
    name, folder = str(request.param), tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_folder(Path("source"))
        write_text(Path("text.txt"))
        before = contents(folder)
        told = run(name, Path("one"))
        with pytest.raises(KilledError):
            run(name, Path("other"), stop=told - told // 4)
        run(name, Path("other"))
        after = contents(folder)
    assert {file: after[file] for file in before} == before, "the source has changed"
    assert {file.parts[0] for file in after.keys() - before.keys()} == {"one", "other"}
    return Ran(name, folder / "source", folder / "one" / "small", folder / "other" / "small")


def contents(folder: Path) -> dict[Path, str]:
    """Return a digest of every file in a folder."""
    return {
        file.relative_to(folder): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def noted(ran: Ran) -> dict[str, Any]:
    """Return what the stage noted."""
    found = plan_of(ran.small).about["found"]
    key = stages.constant(ran.name, "NOTE")
    return {key: found[key]} if key else {}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_described(name: str) -> None:
    assert 10 < len(stages.summary(name)) <= 100
    assert stages.get(name).__doc__
    described = OPTIONS.get(name).__doc__
    for base in OPTIONS.get(name).__mro__[1:]:
        described += base.__doc__ or ""
    for option in OPTIONS.get(name).model_fields:
        assert re.search(rf"\b{option}\b[\w, ]*:", described), option


@pytest.mark.parametrize("name", NAMES)
def test_options_have_defaults_or_it_is_said_what_is_missing(name: str) -> None:
    try:
        made = Stage.model_validate(name)
    except SpectrimError as error:
        assert name in str(error) and "\n" not in str(error)
        made = Stage.model_validate({name: options_of(name)})
    written = made.model_dump(mode="json")
    assert Stage.model_validate(json.loads(json.dumps(written))) == made


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(SpectrimError, match=f"unknown key 'colour' in stage {name}") as caught:
        Stage.model_validate({name: {"colour": "red"}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_known_and_their_sentences_say_what_to_do(name: str) -> None:
    left = {bare(fact) for one in NAMES for fact in stages.constant(one, "LEAVES") or ()}
    needed = {**sentences(name, "NEEDS"), **sentences(name, "REFUSES")}
    for fact in [*needed, *(stages.constant(name, "CLEARS") or ())]:
        assert bare(fact) in left, f"no stage leaves '{fact}'"
    for fact in [*needed, *(stages.constant(name, "LEAVES") or ())]:
        condition = fact.removeprefix(bare(fact)).split()
        assert not condition or condition[1] in OPTIONS.get(name).model_fields
    for sentence in needed.values():
        assert name in sentence and ";" in sentence and not sentence.endswith(".")


def test_the_bits_are_the_same_also_after_an_interruption(ran: Ran) -> None:
    one, other = stored(ran.small), stored(ran.again)
    assert equal(one, other)
    assert files(ran.small) == files(ran.again)


def test_the_model_has_changed_or_the_note_says_why_not(ran: Ran) -> None:
    if equal(stored(ran.small), stored(ran.source)):
        (note,) = noted(ran)["healed"]
        assert not note["used"] and "trained" in stages.constant(ran.name, "LEAVES")


def test_work_files_go_with_the_run(ran: Ran) -> None:
    assert not list((ran.small.parent / "cache" / "work").glob("*"))


def test_its_note_is_json_and_becomes_a_sentence(ran: Ran) -> None:
    note = noted(ran)
    assert json.loads(json.dumps(note, allow_nan=False)) == note
    if note:
        told = notes.sentences({"found": note})
        assert len(told) == 1 and told[0].endswith(".")
        assert not re.search(r"[{}|]|\bNone\b", told[0])
        assert told[0] in (ran.small / "README.md").read_text().replace("\\", "")


def test_its_functions_are_called_alike(root: Path) -> None:
    for name in NAMES:
        tree = ast.parse((root / "src" / "spectrim" / "stages" / f"{name}.py").read_text())
        (function,) = [one for one in tree.body if getattr(one, "name", "") == name]
        assert [one.arg for one in function.args.args] == ["job", "options"]
