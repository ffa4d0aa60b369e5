"""How much learning fits into minutes: more minutes, more steps; too few, none."""

from __future__ import annotations

from typing import Any

import pytest

from spectrim.healing import minutes
from spectrim.healing.minutes import Speed, learning_within, measured_speed
from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.recipe.recipe import Recipe
from tiny_runs import family_folder, write_text

BLOCK, MODEL = 0.2, 12.0  # seconds a step, as of the demo


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
    speed = measured_speed(job)
    assert 0 < speed.block < 60 and speed.model > speed.block * len(job.each_block())


def test_minutes_become_steps(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "measured_speed", lambda job: Speed(BLOCK, MODEL))
    found: list[dict[str, Any]] = [learning_within(job, many) for many in (0.1, 5, 30, 60)]
    assert found[0] == []
    steps = [stages[0]["distil"]["steps"] for stages in found[1:]]
    assert steps == sorted(set(steps))
    assert all(one * MODEL <= 60 * many for many, one in zip((5, 30, 60), steps, strict=True))
    Recipe.model_validate(
        {"model": "demo", "keep": "25% of linear bytes", "stages": ["quantize", *found[-1]]}
    )
