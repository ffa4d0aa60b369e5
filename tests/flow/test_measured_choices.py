"""Rules that look at the true loss, on tiny models: what they measure, keep to and report."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from math import inf, nan
from pathlib import Path

import pytest
import torch
from rich.console import Console

import report_folder
from spectrim.allocators import allocators
from spectrim.cutting import prediction
from spectrim.cutting.allocation import bought_units, decided
from spectrim.cutting.cut import try_out
from spectrim.cutting.decompose import decompose
from spectrim.cutting.trial import Trial
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.model.weights import quiet
from spectrim.plan import Decision
from spectrim.recipe.options import Factorize
from spectrim.recipe.recipe import Recipe
from spectrim.report import terminal
from spectrim.report.folder import read
from spectrim.report.page import page
from spectrim.walk.stream import Stream
from tiny_runs import Made, family_folder, files, make, plan_of, recipe, shrink, write_text

MEASURING = [name for name in allocators.names() if allocators.constant(name, "MEASURES")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a tiny llama, its cache shared by all rules."""
    return make("llama", tmp_path_factory.mktemp("rules"))


def test_there_are_rules_that_measure() -> None:
    assert set(MEASURING) == {"measured", "perplexity_budget", "surgical"}


@pytest.mark.parametrize("name", [*MEASURING, "energy"])
def test_a_rule_says_what_it_cost_and_what_it_gained(plain: Made, name: str) -> None:
    small = shrink(
        recipe(plain.source, plain.text, "60% of linear", allocator=name, refine="off"),
        plain.folder / name,
    )
    plan = plan_of(small)
    assert sum(one.stored for one in plan.decisions) <= 0.6 * sum(o.dense for o in plan.decisions)
    note = plan.about["found"]["allocation"]
    assert note["allocator"] == name
    assert (note["evaluations"] > 0) == (name in MEASURING)
    assert note["search_loss"] > 0 and note["search_loss_of_global"] > 0
    trial = trial_on(plain, name)  # another measures the same
    assert note["search_loss"] == trial.loss(plan.decisions)
    whole = allocators.get("global")(
        [unit.curve for unit in trial.bought], plan.about["budget"]["size"]
    )
    assert note["search_loss_of_global"] == trial(whole)
    if name == "measured":
        assert note["search_loss"] <= note["search_loss_of_global"]


class Killed(BaseException):
    """What an interrupt raises in the middle of the work."""


@pytest.mark.parametrize("name", ["surgical", "perplexity_budget"])
def test_killed_and_run_again_it_measures_the_rest_and_ends_the_same(
    plain: Made, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(plain.source, plain.text, "60% of linear", allocator=name, refine="off")
    output = plain.folder / f"{name}-killed"
    whole = files(shrink(asked, output))
    count = plan_of(output).about["found"]["allocation"]["evaluations"]
    measured, run = Trial._measured, []

    def counted(trial: Trial, decisions: tuple[Decision, ...]) -> float:
        if len(run) == 5:
            raise Killed
        run.append(decisions)
        return measured(trial, decisions)

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(Trial, "_measured", counted)
        shrink(asked, output)
    run.clear()
    monkeypatch.setattr(
        Trial, "_measured", lambda trial, one: (run.append(one), measured(trial, one))[1]
    )
    assert files(shrink(asked, output)) == whole
    assert count - 5 <= len(set(run)) == len(run) <= count - 5 + 2  # and both that are compared
    assert not list((plain.folder / "cache" / "work").iterdir())


def test_what_was_found_holds_for_the_plan_replayed(plain: Made) -> None:
    asked = recipe(plain.source, plain.text, "60% of linear", allocator="knee", refine="off")
    first = shrink(asked, plain.folder / "knee")
    again = shrink(asked, plain.folder / "replayed", plan=first / "plan.json")
    assert "allocation" in plan_of(first).about["found"]
    assert plan_of(again).about["found"] == plan_of(first).about["found"]


def test_the_global_allocation_is_not_compared_with_itself(plain: Made) -> None:
    assert "allocation" not in plan_of(plain.small).about["found"]


def test_the_report_says_it_in_a_sentence(tmp_path: Path) -> None:
    folder = report_folder.write(tmp_path / "small", blocks=2)
    scores = json.loads((folder / "scores.json").read_text())
    note = {"allocator": "knee", "evaluations": 0}
    note |= {"search_loss": 3.21049, "search_loss_of_global": 3.1}
    scores["found"] = {"allocation": note}
    (folder / "scores.json").write_text(json.dumps(scores))
    said = "3.210, with the allocator global 3.100."
    told = "The allocator knee measured nothing; loss on the search split"
    assert f"{told} {said}" in page(read(folder))
    note |= {"allocator": "surgical", "evaluations": 65}
    out = StringIO()
    terminal.show(scores, Console(file=out, width=300))
    told = "The allocator surgical measured 65 choices; loss on the search split, the split"
    assert f"{told} it chose on, {said}" in out.getvalue()


# the loss of a choice


def trial_of(family: str, folder: Path) -> Trial:
    """Return what measures choices of a family's tiny model."""
    source = family_folder(folder / "source", family)
    return trial_in(folder, recipe(source, write_text(folder / "text.txt"), allocator="measured"))


def trial_on(made: Made, allocator: str) -> Trial:
    """Return what measures choices of a model, on what an earlier run decomposed."""
    return trial_in(made.folder, recipe(made.source, made.text, allocator=allocator, refine="off"))


def trial_in(folder: Path, asked: Recipe) -> Trial:
    found = sources.resolve(asked.model, folder / "cache")
    options: Factorize = asked.stages[0].options
    with quiet():
        job = open_job(asked, found, folder / "cache", lambda *_: None)
        job.work = folder / "trial"
        shutil.rmtree(job.work, ignore_errors=True)
        decompose(job, options)
        return Trial(job, options, bought_units(job, options))


def from_the_start(trial: Trial, chosen: list[int]) -> float:
    """Return the loss of a choice, every block run anew."""
    decisions = decided(trial.bought, chosen)
    walk = trial.job.walk(trial.job.splits.search)
    cut = lambda place: try_out(trial.job, trial.options, place, walk.block(place), decisions)  # noqa: E731
    return Stream(walk).through(cut).mean()


@pytest.mark.parametrize("family", ["llama", "bart", "t5", "falcon_alibi"])
def test_going_on_from_where_choices_differ_gives_the_same_bits(
    family: str, tmp_path: Path
) -> None:
    trial = trial_of(family, tmp_path)
    dense = [len(unit.curve.sizes) - 1 for unit in trial.bought]
    count = len(dense)
    changes = [{}, {count - 1: 0}, {count // 2: 1}, {0: 0}, {0: 0, count - 2: 1}, {count // 2: 0}]
    losses = []
    for change in changes:
        chosen = [change.get(at, last) for at, last in enumerate(dense)]
        losses.append(trial(chosen))
        assert losses[-1] == from_the_start(trial, chosen)
    assert len(set(losses)) == len(changes) == len(trial.losses)
    assert trial(dense) == losses[0] and len(trial.losses) == len(changes)


def test_only_blocks_behind_the_first_difference_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of("llama", tmp_path)
    run: list[int] = []
    block = trial._walk.block
    monkeypatch.setattr(trial._walk, "block", lambda place: run.append(place.index) or block(place))
    dense = [len(unit.curve.sizes) - 1 for unit in trial.bought]
    trial(dense)
    assert run == [0, 1, 2]
    trial([*dense[:-1], 0])
    assert run == [0, 1, 2, 2]
    middle = next(at for at, unit in enumerate(trial.bought) if unit.curve.site.block == 1)
    trial([0 if at == middle else last for at, last in enumerate(dense)])
    assert run == [0, 1, 2, 2, 1, 2]


def test_what_breaks_off_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of("llama", tmp_path)
    dense = [len(unit.curve.sizes) - 1 for unit in trial.bought]
    trial(dense)
    first = [0, *dense[1:]]
    with monkeypatch.context() as broken:
        broken.setattr(trial._walk, "losses", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trial(first)
    other = [*dense[:-1], 0]
    assert trial(other) == from_the_start(trial, other)


def test_a_model_that_breaks_down_loses_infinitely_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of("llama", tmp_path)
    monkeypatch.setattr(trial._walk, "losses", lambda *_: torch.tensor([1.0, nan]))
    assert trial([0] * len(trial.bought)) == inf


def test_predictions_of_a_rule_that_measures_are_those_of_global(tmp_path: Path) -> None:
    trial = trial_of("llama", tmp_path)
    surgical, plain = (
        prediction._plan(trial.job, trial.options.model_copy(update={"allocator": name}), 0.7)
        for name in ("surgical", "global")
    )
    assert surgical is not None and surgical == plain


def test_predictions_say_how_many_budgets_their_correlation_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of("llama", tmp_path)
    losses = [3.0, 2.9, *(3.0 + 0.1 * step for step in range(1, 20))]  # dense, and one that fell
    monkeypatch.setattr(prediction, "_losses", lambda *asked: losses[: 1 + len(asked[-1])])
    found = prediction.prediction(trial.job, trial.options)
    assert found["left_out"] == 1 and len(found["budgets"]) == len(found["measured"]) > 3
