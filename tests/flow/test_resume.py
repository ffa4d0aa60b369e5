"""Killed at any moment and run again, or replayed from its plan: the same bits."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

import tiny_processes
from spectrim.outputs.folder import output_folder
from spectrim.outputs.manifest import MANIFEST, manifest, record, write_manifest
from spectrim.plan import Plan
from tiny_folders import tiny_folder
from tiny_runs import equal, files, kept, plan_of, recipe, shrink, stored, write_text

MOMENTS = 20
ROUNDS = 3  # at most, until the moments are spread over the run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "source")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt")


# kill -9


class CommandLine:
    """Command lines that differ in their folder only, each in a process of its own."""

    def __init__(self, folder: Path, source: Path, text: Path) -> None:
        self.folder = folder
        self.arguments = [
            "shrink", str(source), "--keep", "70% of linear", "--calibration", str(text),
            "--tokens", "12x32", "--no-evaluate", "--cache",
        ]  # fmt: skip

    def output(self, name: str) -> Path:
        return self.folder / name / "small"

    def shrink(self, name: str, kill_after: float | None = None) -> int:
        """Run in a folder of this name and return the exit code; kill_after: seconds from now."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        arguments = [*self.arguments, str(place / "cache"), "-o", str(place / "small")]
        process = tiny_processes.start(arguments, place / "log")
        process.join(kill_after)
        process.kill()
        process.join()
        return process.exitcode

    def measure(self, name: str) -> float:
        """Run in a folder of this name to the end and return the seconds that it took."""
        began = time.monotonic()
        assert self.shrink(name) == 0
        return time.monotonic() - began

    def forget(self, name: str) -> None:
        shutil.rmtree(self.folder / name)

    def state(self, name: str) -> frozenset[str]:
        """Return how far a killed run has come: which kinds of files it has left."""
        place = self.folder / name
        found = (file.relative_to(place) for file in place.rglob("*") if file.is_file())
        return frozenset("/".join([*file.parts[:2], file.suffix]) for file in found)


@pytest.fixture
def command_line(tmp_path: Path, source: Path, text: Path) -> CommandLine:
    return CommandLine(tmp_path, source, text)


def test_killed_at_random_moments_and_run_again_it_ends_in_the_same_bits(
    command_line: CommandLine,
) -> None:
    assert command_line.shrink("warm") == 0, (command_line.folder / "warm" / "log").read_text()
    lasted = command_line.measure("whole")
    expected = files(command_line.output("whole"))
    assert {"model.safetensors", "config.json", "plan.json", "README.md"} <= expected.keys()
    drawn, states = random.Random(0), set()
    for moment in range(ROUNDS * MOMENTS):
        if moment and moment % MOMENTS == 0:  # beside other work a run's time changes
            if len(states) > 4:
                break
            lasted = command_line.measure(f"round-{moment}")
        name = f"moment-{moment}"
        wait = lasted * (moment % MOMENTS + drawn.random()) / MOMENTS
        while command_line.shrink(name, kill_after=wait) == 0:  # it was faster this time
            command_line.forget(name)
            wait *= 0.7
        states.add(command_line.state(name))
        assert command_line.shrink(name) == 0, (command_line.folder / name / "log").read_text()
        assert files(command_line.output(name)) == expected
        place = command_line.folder / name
        assert sorted(file.name for file in place.iterdir()) == ["cache", "log", "small"]
        assert not list((place / "cache" / "work").iterdir())
    assert len(states) > 4, "the moments are spread over the run"


def test_an_output_is_replaced_although_a_run_was_killed_while_replacing_it(tmp_path: Path) -> None:
    old, target = tmp_path / ".small.old", tmp_path / "small"
    for folder in (old, target, tmp_path / ".small.partial"):
        folder.mkdir()
        (folder / "file").write_text("earlier")
        record(folder, "shrink")
    write_manifest(old, {**(manifest(old) or {}), "aside": True})
    with output_folder(target, "shrink") as folder:
        assert [path.name for path in folder.iterdir()] == [MANIFEST]
        (folder / "file").write_text("now")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert (target / "file").read_text() == "now"


def test_another_text_under_the_same_name_is_not_mixed_into_a_resumed_run(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr("spectrim.verbs.shrink.write_model", kill)
        shrink(recipe(source, text), tmp_path / "small")
    write_text(text, seed=1)
    resumed = files(shrink(recipe(source, text), tmp_path / "small"))
    (tmp_path / "alone").mkdir()
    assert resumed == files(shrink(recipe(source, text), tmp_path / "alone" / "small"))


# plans


@pytest.mark.parametrize("refine", ["on", "off"])
def test_a_plan_replayed_gives_the_same_bits(
    refine: str, source: Path, text: Path, tmp_path: Path
) -> None:
    first = shrink(recipe(source, text, refine=refine, method="whitened_svd"), tmp_path / "small")
    # what the plan says comes before what the recipe says
    again = recipe(source, tmp_path / "other.txt", "50% of bytes")
    (tmp_path / "alone").mkdir()
    for place in (tmp_path / "small", tmp_path / "alone" / "small"):
        replayed = shrink(again, place, plan=copy(first / "plan.json", tmp_path / "plan.json"))
        assert files(replayed) == files(first)


def copy(file: Path, to: Path) -> Path:
    to.write_bytes(file.read_bytes())
    return to


def edited(plan: Path, site: str, **changes: object) -> Path:
    """Write a plan in which one decision is changed as by hand."""
    said = json.loads(plan.read_text())
    (one,) = (entry for entry in said["decisions"] if entry["site"] == site)
    one.update(changes)
    file = plan.with_name("edited.json")
    file.write_text(json.dumps(said))
    return file


@pytest.mark.parametrize("refine", ["on", "off"])
def test_an_edited_plan_is_carried_out_as_edited(
    refine: str, source: Path, text: Path, tmp_path: Path
) -> None:
    asked = recipe(source, text, refine=refine)
    first = shrink(asked, tmp_path / "small")
    one, other = [d for d in plan_of(first).decisions if d.format == "pivoted"][-2:]
    plan = copy(first / "plan.json", tmp_path / "plan.json")
    plan = edited(plan, one.site, format="dense")
    plan = edited(plan, other.site, rank=other.rank - 3, format="low_rank")
    made = shrink(asked, tmp_path / "again", plan=plan)
    held, before = stored(made), stored(first)
    assert torch.equal(held[f"{one.site}.weight"], stored(source)[f"{one.site}.weight"])
    assert held[f"{other.site}.first"].shape == (other.rank - 3, other.in_features)

    said = plan_of(made)
    assert (said[one.site].rank, said[one.site].stored) == (min(one.out_features, one.in_features),
                                                            one.dense)  # fmt: skip
    numbers = (other.rank - 3) * (other.out_features + other.in_features)
    assert said[other.site].stored == numbers
    assert said[one.site].predicted_loss == 0.0
    assert said[other.site].predicted_loss >= other.predicted_loss
    total = sum(decision.predicted_loss for decision in said.decisions)
    assert said.predicted_loss == pytest.approx(total)

    others = [d for d in plan_of(first).decisions if d.site not in (one.site, other.site)]
    assert [said[d.site] for d in others] == others
    # nothing in front of the edited sites changes
    prefix = "model.layers.0."
    assert not one.site.startswith(prefix) and not other.site.startswith(prefix)
    assert equal(
        {name: tensor for name, tensor in before.items() if name.startswith(prefix)},
        {name: tensor for name, tensor in held.items() if name.startswith(prefix)},
    )
    (tmp_path / "twice").mkdir()
    twice = shrink(asked, tmp_path / "twice" / "again", plan=made / "plan.json")
    assert files(twice) == files(made)


def test_a_plan_from_a_file_is_the_plan(source: Path, text: Path, tmp_path: Path) -> None:
    made = shrink(recipe(source, text), tmp_path / "small")
    assert Plan.read(made / "plan.json").to_json() == (made / "plan.json").read_text()


# the cache


def stamps(cache: Path) -> dict[str, int]:
    return {
        str(file.relative_to(cache)): file.stat().st_mtime_ns
        for kind in ("statistics", "decompositions")
        for folder in kept(cache, kind)
        for file in folder.glob("*.*[!k]")
    }


def test_another_budget_does_not_touch_the_model_again(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(recipe(source, text), tmp_path / "small")
    before = stamps(tmp_path / "cache")
    assert len([name for name in before if name.startswith("statistics")]) == 3 + 2
    assert len([name for name in before if name.startswith("decompositions")]) == 3
    for keep in ("60% of linear", "80% of bytes"):
        asked = recipe(source, text, keep, allocator="uniform", format="low_rank", refine="off")
        with monkeypatch.context() as watched:
            watched.setattr("spectrim.walk.walk.BlockWalk.run", None)  # it is not run through
            watched.setattr("spectrim.cutting.decompose._Block", None)
            shrink(asked, tmp_path / "other")
        assert stamps(tmp_path / "cache") == before


def test_another_method_takes_the_statistics_that_are_there(
    source: Path, text: Path, tmp_path: Path
) -> None:
    shrink(recipe(source, text), tmp_path / "small")
    before = stamps(tmp_path / "cache")
    shrink(recipe(source, text, method="truncated_svd"), tmp_path / "other")
    after = stamps(tmp_path / "cache")
    assert after.items() >= before.items()
    assert all(name.startswith("decompositions") for name in after.keys() - before.keys())


def test_another_text_or_seed_takes_statistics_of_its_own(
    source: Path, text: Path, tmp_path: Path
) -> None:
    shrink(recipe(source, text), tmp_path / "small")
    shrink(recipe(source, text).model_copy(update={"seed": 1}), tmp_path / "small")
    shrink(recipe(source, write_text(text, seed=1)), tmp_path / "small")
    assert len(kept(tmp_path / "cache", "statistics")) == 3
