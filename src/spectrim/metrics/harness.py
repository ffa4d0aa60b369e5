"""Tasks of lm-evaluation-harness: multiple choice on local files, all others that lm-eval knows.

The numbers are those of lm-eval's own command; see ``_harness_tasks`` for how to run it on the same
files. Source: Gao et al., "The Language Model Evaluation Harness", 10.5281/zenodo.12608602.
"""

from __future__ import annotations

import random
from dataclasses import replace
from math import isclose
from statistics import fmean
from typing import Any

import torch

from spectrim.errors import UnavailableError
from spectrim.files import key_of
from spectrim.metrics import Measurement, Pair, Score
from spectrim.metrics._packages import versions
from spectrim.metrics.asking.answers import answered
from spectrim.metrics.asking.certainty import flips, mean, paired, proportion
from spectrim.metrics.asking.examples import DAMAGED
from spectrim.metrics.asking.harness_files import LOCAL
from spectrim.metrics.asking.harness_model import heard, language_model, silent
from spectrim.metrics.asking.harness_tasks import Loaded, foreign, in_one_line, load

TASKS = (
    "arc_easy",
    "boolq",
    "winogrande",
    "openbookqa",
    "copa",
    "truthfulqa_mc1",
    "truthfulqa_mc2",
)
DATA = {name: local.data for name, local in LOCAL.items()}
OTHER_TASKS = True  # names that no metric has are lm-eval's
QUICK = 40
QUICK_TRUTHFULQA = 8  # each has a long prompt and about ten answers

# What a task's own code raises; what progress or a fault of ours raises goes its way.
FAILED = (*DAMAGED, ArithmeticError, AssertionError, ImportError, NotImplementedError)

Answer = dict[str, Any]
"""``batch`` and ``totals``, and ``samples``: filter → metric → one value for each document."""


def measure(pair: Pair) -> Measurement:
    """Return what lm-eval scores each model with, with intervals, and what changed from the first.

    Right-or-wrong metrics have Wilson's interval, other means that of Student's t; what lm-eval
    aggregates in another way has none. A limit takes the first documents, as lm-eval's own does.
    What changed are flips, or the difference of a mean where no metric is right or wrong.

    Raises:
        SpectrimError: a name that lm-eval does not know, a damaged file, a task that fails.
        UnavailableError: no tokenizer, no lm-eval, or neither a file nor the hub.
    """
    if pair.tokenizer is None:
        raise UnavailableError("lm-eval's tasks need a tokenizer; bring the model's folder")
    names = [*filter(pair.asked, TASKS), *foreign(pair.evaluation.tasks)]
    found: Measurement = {label: [] for label in pair.judged}
    with silent():
        tasks = load(pair, names)
    for task in tasks:
        first: Answer | None = None
        for label in pair.judged:
            answer = _answer(pair, label, task)
            scores = _scores(pair, task, answer)
            found[label] += scores
            first = first or answer
            if answer is not first:
                changed = _flips(first, answer, task)
                found[label] += changed or _change(first, answer, scores, pair.evaluation.seed)
    return found


def _answer(pair: Pair, label: str, task: Loaded) -> Answer:
    """Return what lm-eval makes of a model's answers, kept once all of a task are there."""
    seed = pair.evaluation.seed
    limit = pair.items(quick=QUICK_TRUTHFULQA if "truthfulqa" in task.name else QUICK)
    with silent():
        requests = task.requests(limit, seed)
    item = {
        "task": task.name,
        "version": str(task.task.VERSION),
        "lm_eval": versions("lm-eval")["lm-eval"],
        "limit": limit,
        "seed": seed,
        "content": key_of([(one.request_type, one.doc_id, one.doc, one.args) for one in requests]),
        "metrics": str(task.task.higher_is_better()),
    }
    what = f"lm-eval {task.name}"

    def ask(items: Any) -> list[Answer]:
        tell = heard(pair.said(f"{what}, {label}"), len(requests))
        within = language_model(pair, label, requests, item, tell)
        with in_one_line(task.name, *FAILED), silent(), within as (held, batch):
            return [_evaluated(held, task, limit, seed) | {"batch": batch}]

    found: Answer = answered(pair, label, what, [item], ask)[0]
    return found


def _evaluated(held: Any, task: Loaded, limit: int | None, seed: int) -> Answer:
    """Run lm-eval as its ``simple_evaluate`` does, without its slow look at the machine."""
    import numpy
    from lm_eval.evaluator import evaluate

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    loaded = {"tasks": {task.name: task.task}}
    told = evaluate(lm=held, task_dict=loaded, limit=limit, bootstrap_iters=0)
    samples: dict[str, dict[str, list[float | None]]] = {}
    for one in told["samples"][task.name]:
        columns = samples.setdefault(one["filter"], {})
        for metric in one["metrics"]:
            columns.setdefault(metric, []).append(_number(one[metric]))
    totals = {
        key: float(value)
        for key, value in told["results"][task.name].items()
        if "," in key and "_stderr," not in key and _number(value) is not None
    }
    return {"samples": samples, "totals": totals}


def _number(value: Any) -> float | None:
    """Return one number as float; None for pairs and lists, which only a total can be made of."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _scores(pair: Pair, task: Loaded, answer: Answer) -> list[Score]:
    upwards = task.task.higher_is_better()
    settings = {
        **versions("lm-eval"),
        "task_version": task.task.VERSION,
        "num_fewshot": task.task.get_config("num_fewshot"),
        "data": task.source,
        "split": task.task.config.test_split or task.task.config.validation_split,
        "batch": answer["batch"],
        "seed": pair.evaluation.seed,
    }
    found = []
    for kind, columns in answer["samples"].items():
        for metric, values in columns.items():
            total = answer["totals"].get(f"{metric},{kind}")
            if total is not None:
                name = metric if kind == "none" else f"{metric},{kind}"
                score = _score(name, values, total, upwards.get(metric, True), task.name)
                found.append(replace(score, settings={**settings, **score.settings}))
    return found


def _score(name: str, values: list[float | None], total: float, upwards: bool, task: str) -> Score:
    """Return the score with the interval that its values allow; the value is lm-eval's own."""
    numbers = [value for value in values if value is not None]
    plain = len(numbers) == len(values) and isclose(fmean(numbers), total, abs_tol=1e-12)
    if plain and _right_or_wrong(values):
        score = proportion([value == 1 for value in values], name, task)
    elif plain:
        unit = "share" if all(0 <= value <= 1 for value in numbers) else ""
        score = mean(numbers, name, unit, "higher", task)
    else:
        score = Score(name, total, "", "higher", len(values), None, {"task": task})
    return score if upwards else replace(score, better="lower")


def _right_or_wrong(values: list[float | None]) -> bool:
    return all(value in (0, 1) for value in values)


def _flips(dense: Answer, small: Answer, task: Loaded) -> list[Score]:
    """Return the flips of accuracy, or of the first metric that is right or wrong."""
    upwards = task.task.higher_is_better()
    for kind, columns in small["samples"].items():
        for metric in sorted(columns, key=lambda name: name != "acc"):
            before, after = dense["samples"][kind][metric], columns[metric]
            both = _right_or_wrong(before) and _right_or_wrong(after)
            if both and upwards.get(metric, True):
                return flips([one == 1 for one in before], [one == 1 for one in after], task.name)
    return []


def _change(dense: Answer, small: Answer, scores: list[Score], seed: int) -> list[Score]:
    """Return the paired difference of the first metric that is a mean over documents."""
    for score in scores:
        metric, _, kind = score.name.partition(",")
        before, after = (one["samples"][kind or "none"][metric] for one in (dense, small))
        if score.interval is not None and None not in before:
            return [paired(before, after, score, seed)]
    return []
