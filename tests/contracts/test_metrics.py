"""What every metric promises of its scores, of two models and of one alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from spectrim.errors import UnavailableError
from spectrim.metrics import Measurement, Pair, Score, metrics
from tiny_answers import asking
from tiny_models import build, tokens

NAMES = metrics.names()
QUICK = {"rounds": 1, "prompt_tokens": 4, "new_tokens": 2, "limit": 2}
LIMIT = {"topics": 12}  # of which ten must be there


@pytest.fixture(scope="module", params=NAMES)
def metric(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Pair:
    """Return two tiny models and two texts; with data sets where the test texts lie here."""
    folder = tmp_path_factory.mktemp("metrics")
    models = [build("llama", seed=seed) for seed in (0, 1)]
    for label, model in zip(("dense", "small"), models, strict=True):
        model.save_pretrained(folder / label)
    texts = {name: tokens(sequences=4, seed=seed) for seed, name in enumerate(("wiki", "code"))}
    folders = {"dense": folder / "dense", "small": folder / "small"}
    made = asking(folder, models, texts=texts, folders=folders, **QUICK)
    data = Path(os.environ.get("SPECTRIM_DATA", root.parent / "shared" / "data"))
    return replace(made, evaluation=replace(made.evaluation, data=data))


def measured(pair: Pair, metric: str, models: int) -> Measurement:
    """Return what a metric finds; UnavailableError, in one line, where its data is not there."""
    tasks = tuple(metrics.constant(metric, "TASKS") or ())[:2]
    labels = list(pair.models)[-models:]
    asked = replace(
        pair,
        models={label: pair.models[label] for label in labels},
        evaluation=replace(pair.evaluation, tasks=tasks, limit=LIMIT.get(metric, 2)),
        readings={},
    )
    try:
        found: Measurement = metrics.get(metric)(asked)
    except UnavailableError as error:
        assert str(error) and "\n" not in str(error)
        raise
    return found


def scores(found: Measurement) -> Iterator[Score]:
    """Return all scores of all models."""
    for each in found.values():
        yield from each


@pytest.fixture(scope="module")
def of_one(pair: Pair, metric: str) -> Measurement | None:
    try:
        return measured(pair, metric, 1)
    except UnavailableError:
        return None


@pytest.fixture(scope="module")
def found(pair: Pair, metric: str, of_one: Measurement | None) -> Measurement:
    """Return what is found of two models; of one where a process is started for each."""
    if metric == "memory" and of_one is not None:
        return of_one
    try:
        return measured(pair, metric, 2)
    except UnavailableError as error:
        pytest.skip(f"{metric} measures nothing here: {error}")


def test_what_it_measures_is_said_in_a_line(metric: str) -> None:
    assert 10 < len(metrics.summary(metric)) <= 100
    tasks = metrics.constant(metric, "TASKS")
    assert tasks is None or (tasks and all(isinstance(task, str) for task in tasks))


def test_scores_are_of_the_models_that_were_asked(
    metric: str, pair: Pair, found: Measurement, of_one: Measurement | None
) -> None:
    assert found or metric == "zeros"  # of which these models have none
    assert set(found) <= set(pair.models)
    assert set(of_one or {}) <= {"small"}


def test_every_score_has_a_unit_a_direction_and_a_count(found: Measurement) -> None:
    for score in scores(found):
        assert score.name.replace("_", "").isalnum()
        assert isinstance(score.unit, str) and score.better in ("lower", "higher", "none")
        assert score.n >= 1 or "not_measured" in score.settings, score.name
        if score.interval is not None and score.finite:
            low, high = score.interval
            assert low <= score.value <= high, score.name


def test_what_is_no_number_says_why(found: Measurement) -> None:
    for score in scores(found):
        reason = score.settings.get("not_measured")
        assert score.finite if reason is None else reason and "\n" not in reason
        assert reason is None or (score.n == 0 and score.interval is None)


def test_scores_are_json(found: Measurement) -> None:
    for score in scores(found):
        assert json.loads(json.dumps(score.as_dict(), allow_nan=False))["name"] == score.name


def test_a_name_stands_once_for_each_text_and_task(found: Measurement) -> None:
    for each in found.values():
        names = [(one.name, one.settings.get("text"), one.settings.get("task")) for one in each]
        assert len(names) == len(set(names))


def test_one_model_alone_has_no_score_that_compares(
    found: Measurement, of_one: Measurement | None
) -> None:
    alone = {score.name for score in scores(of_one or {})}
    assert alone <= {score.name for score in scores(found)}
    comparing = ("lost", "gained", "agreement", "kl", "excess_loss", "linear_share", "mcnemar_p")
    if "mcnemar_p" in alone:  # of stereotypes against their opposites: within one model
        assert {"to_stereotype", "to_anti_stereotype"} <= alone
        alone -= {"mcnemar_p"}
    assert not alone.intersection(comparing)


def test_metrics_without_tasks_need_no_data(metric: str, of_one: Measurement | None) -> None:
    assert of_one is not None or metrics.constant(metric, "TASKS")
