"""How much learning fits into minutes: more minutes, more steps; too few, none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spectrim.healing import minutes
from spectrim.healing.end_to_end import Healing
from spectrim.healing.minutes import REACHED, learning_within, seconds_a_step
from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.recipe.recipe import Recipe
from spectrim.text import default_mix
from spectrim.text.tokens import Tokens
from tiny_runs import family_folder, write_text

MODEL = 12.0  # seconds a step, as of the demo


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Return a job on a tiny model."""
    folder = tmp_path_factory.mktemp("tiny")
    source = sources.resolve(str(family_folder(folder / "source", "llama")), folder)
    write_text(folder / "text.txt", words=80 * 32)
    changes = {
        "model": str(source.folder),
        "keep": "25% of linear bytes",
        "stages": ["quantize"],
        "calibration.text": str(folder / "text.txt"),
        "calibration.tokens": "48x32",
    }
    return open_job(Recipe.build(None, changes), source, folder, lambda done, total, what: None)


def test_steps_are_timed_on_the_model_itself(job: Job) -> None:
    assert 0 < seconds_a_step(job) < 60


def test_minutes_become_steps(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "seconds_a_step", lambda job: MODEL)
    found = [learning_within(job, many) for many in (0.1, 5, 30, 60)]
    assert found[0] == ({}, [])
    behind = [stages[0]["distil"]["steps"] for _, stages in found[1:]]
    between = [options["steps"] for options, _ in found[1:]]
    assert behind == sorted(set(behind)) and between == sorted(set(between))
    taken = [
        MODEL * (REACHED * learning.options.get("steps", 0) + steps)
        for learning, steps in zip(found[1:], behind, strict=True)
    ]
    assert all(
        0.5 * 60 * many < one <= 60 * many for many, one in zip((5, 30, 60), taken, strict=True)
    )
    options, stages = found[-1]
    said = {
        "model": "demo",
        "keep": "25% of linear bytes",
        "stages": [{"quantize": options}, *stages],
    }
    Recipe.model_validate(said)


def test_what_cannot_be_trained_between_roundings_learns_behind_them_alone(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes, "seconds_a_step", lambda job: MODEL)
    with_both = learning_within(job, 60)
    monkeypatch.setattr(minutes, "HELD", 10**9)  # bytes a number: more than any machine has
    alone = learning_within(job, 60)
    assert with_both.options and not alone.options
    assert alone.stages[0]["distil"]["steps"] > with_both.stages[0]["distil"]["steps"]


def test_a_single_block_gets_no_steps_between_roundings(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job.each_block()[:1]
    monkeypatch.setattr(minutes, "seconds_a_step", lambda job: MODEL)
    monkeypatch.setattr(Job, "each_block", lambda job: first)
    assert not learning_within(job, 60).options


def test_where_the_calibration_reads_shipped_text_all_of_it_is_learnt_from(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(job: Job, options: Healing) -> Tokens:
        many = 30 if options.text == "shipped" else 1
        return Tokens.full(job.splits.calibration.ids.repeat(many, 1))

    monkeypatch.setattr(minutes, "seconds_a_step", lambda job: MODEL)
    monkeypatch.setattr(minutes, "healing_text", read)
    own, shipped = (
        learning_within(replace(job, text=text), 60).stages[0]
        for text in (job.text, default_mix.SHIPPED)
    )
    assert "text" not in own["distil"] and shipped["distil"]["text"] == "shipped"
    assert shipped["distil"]["steps"] < own["distil"]["steps"]  # the dense model is asked for more
