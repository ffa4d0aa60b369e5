"""Several methods on a tiny model: what is measured, said, replayed and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from spectrim.cutting.mixture import SCALED
from spectrim.cutting.trial import Trial
from spectrim.plan import Decision
from spectrim.report import notes
from tiny_runs import family_folder, files, plan_of, recipe, shrink, write_text

BOTH = "loss_aware_svd,loss_aware_neuron_selection"


class Killed(BaseException):
    """What an interrupt raises in the middle of the work."""


def test_it_says_what_it_measured_is_replayed_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = family_folder(tmp_path / "source", "llama")
    text = write_text(tmp_path / "text.txt")
    asked = recipe(source, text, "60% of linear", method=BOTH, refine="off")
    output = tmp_path / "small"
    whole = files(shrink(asked, output))
    plan = plan_of(output)
    note = plan.about["found"]["mixture"]
    assert note["scales"].keys() == set(BOTH.split(","))
    assert note["search_losses"][note["chosen"]] == min(note["search_losses"].values())
    assert note["evaluations"] >= len(note["search_losses"])
    (said,) = notes.sentences({"found": {"mixture": note}})
    assert f"taken: {note['chosen']}" in said
    assert ("scaled so" in said) == (note["chosen"] == SCALED)
    again = plan_of(shrink(asked, tmp_path / "replayed", plan=output / "plan.json"))
    assert again.decisions == plan.decisions and again.about["found"] == plan.about["found"]

    measured, run = Trial._measured, []

    def killed(trial: Trial, decisions: tuple[Decision, ...]) -> float:
        if len(run) == 2:
            raise Killed
        run.append(decisions)
        return measured(trial, decisions)

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(Trial, "_measured", killed)
        shrink(asked, output)
    assert files(shrink(asked, output)) == whole


def test_one_method_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "_measured", lambda *_: 1 / 0)
    source = family_folder(tmp_path / "source", "llama")
    asked = recipe(source, write_text(tmp_path / "text.txt"), refine="off")
    assert "mixture" not in plan_of(shrink(asked, tmp_path / "small")).about["found"]
