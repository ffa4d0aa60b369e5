"""The tasks themselves: whose names are known, and that our files of them are lm-eval's."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import Evaluation, check_tasks, compare, harness
from spectrim.metrics.asking import harness_tasks
from spectrim.metrics.asking.harness_tasks import YAML
from tiny_models import build


def test_unknown_tasks_are_said_and_known_ones_are_not() -> None:
    with pytest.raises(SpectrimError, match="no task named 'arc_esy'; did you mean 'arc_easy'"):
        check_tasks(["copa", "arc_esy"])
    check_tasks(["copa", "hellaswag", "mmlu_*"])


def test_our_own_tasks_are_known_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    harness_tasks.manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    check_tasks([*harness.TASKS, "stereoset", "trivia_qa_open", "energy"])
    with pytest.raises(UnavailableError, match="needs the package lm-eval; pip install"):
        check_tasks(["hellaswag"])


def test_it_takes_part_for_names_that_only_lm_eval_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(harness, "measure", lambda pair: asked.append(pair.evaluation.tasks) or {})
    for tasks in ((), ("copa",), ("hellaswag",), ("energy",)):
        chosen = Evaluation(tasks=tasks, rounds=0, sample_tokens=0)
        compare(None, build("llama"), None, {}, chosen)
    assert asked == [("copa",), ("hellaswag",)]


@pytest.mark.parametrize("name", harness.TASKS)
def test_our_prompts_are_those_of_lm_eval(name: str) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    theirs = load_yaml(harness_tasks.manager().task_index[name].yaml_path, resolve_func=False)
    ours = load_yaml(YAML / f"{name}.yaml", resolve_func=False)
    for part in ("doc_to_text", "doc_to_target", "doc_to_choice", "process_results", "output_type"):
        assert function(ours.get(part)) == function(theirs.get(part)), part
    assert ours["metadata"] == theirs["metadata"]
    listed = [[one["metric"] for one in each["metric_list"]] for each in (ours, theirs)]
    assert listed[0] == listed[1]
    for part in ("test_split", "validation_split"):
        assert ours.get(part) is None or ours[part] == theirs[part]


def function(value: Any) -> Any:
    """Return a named function without the folder it is in; all else as it is."""
    if not isinstance(value, str) or "lm_eval" not in value:
        return value
    return value.replace("/", ".").rpartition("lm_eval.tasks.")[2]
