"""Tasks of lm-evaluation-harness: its own, and those whose documents a folder of data holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from traceback import walk_tb
from typing import Any

from spectrim.errors import SpectrimError, UnavailableError, did_you_mean, one_line
from spectrim.metrics._contract import Pair, metrics
from spectrim.metrics._packages import package
from spectrim.metrics.asking.harness_files import LOCAL
from spectrim.metrics.asking.harness_model import silent

OURS = Path(__file__).parents[2]
YAML = Path(__file__).with_name("lm_eval_tasks")


@dataclass(frozen=True)
class Loaded:
    """One of lm-eval's task objects, ready to be asked."""

    name: str
    task: Any
    source: str

    def requests(self, limit: int | None, seed: int) -> list[Any]:
        """Return lm-eval's requests of the first ``limit`` documents, few-shot examples drawn.

        Raises:
            SpectrimError: the task does not fit its documents.
        """
        if self.task.get_config("num_fewshot") is None:
            self.task.set_config(key="num_fewshot", value=0)
        self.task.set_fewshot_seed(seed=seed)
        with in_one_line(self.name, Exception):  # each task and its templates have their own
            self.task.build_all_requests(limit=limit)
        # lm-eval builds them again when it evaluates, and has to draw the same examples.
        self.task.set_fewshot_seed(seed=seed)
        return list(self.task.instances)


def is_local(pair: Pair, name: str) -> bool:
    """Return whether the folder of data has the documents of that task."""
    return name in LOCAL and LOCAL[name].data.local(pair) is not None


@cache
def manager(folder: Path | None = None) -> Any:
    """Return lm-eval's task manager: of its own tasks, or of the local ones on a folder of data.

    Raises:
        UnavailableError: lm-eval is not installed.
    """
    held = package("lm_eval.tasks", "a task of lm-evaluation-harness").TaskManager
    if folder is None:
        return held()
    return held(include_path=YAML, include_defaults=False, metadata={"data": str(folder)})


def check_tasks(tasks: Iterable[str]) -> None:
    """Refuse names of tasks that nobody has; lm-eval is imported only where no metric has one.

    Raises:
        SpectrimError: neither a metric nor lm-eval has a task of that name.
        UnavailableError: no metric has it and lm-eval is not installed.
    """
    foreign(tasks)


def foreign(names: Iterable[str]) -> list[str]:
    """Return lm-eval's tasks, groups and tags that those names stand for that no metric has.

    Patterns like mmlu_* are names too. Raises what ``check_tasks`` does.
    """
    own = {task for metric in metrics.names() for task in metrics.constant(metric, "TASKS") or ()}
    others = [name for name in names if name not in own]
    if not others:
        return []
    with silent():
        held = manager()
    found: list[str] = []
    for name in others:
        matched = held.match_tasks([name])
        if not matched:
            hint = did_you_mean(name, [*own, *held.all_tasks])
            raise SpectrimError(
                f"no task named '{name}'{hint or '; no other name is close to it'} "
                "(see 'spectrim list tasks' and 'lm-eval ls tasks')"
            )
        found += matched
    return found


def load(pair: Pair, names: Iterable[str]) -> list[Loaded]:
    """Return the tasks of those names, from the folder of data where it has them.

    Raises:
        UnavailableError: one that was asked for by name, or all of a suite, cannot be had.
        SpectrimError: a file is damaged; a task runs code that the model writes, or needs images.
    """
    found: dict[str, Loaded] = {}
    failed: UnavailableError | None = None
    for name in sorted(names, key=lambda one: not is_local(pair, one)):
        here = is_local(pair, name)
        if failed is not None:
            pair.left_out[name] = str(failed)  # no network for one is none for the others
            continue
        try:
            loaded = _tasks(manager(pair.evaluation.data if here else None), name)
        except UnavailableError as error:
            if pair.evaluation.tasks:
                raise
            failed = error
            pair.left_out[name] = str(error)
            continue
        source = f"local file {LOCAL[name].data.file}" if here else "hub"
        found |= {one: Loaded(one, task, source) for one, task in loaded.items()}
    if failed is not None and not found:
        raise failed
    return list(found.values())


@contextmanager
def in_one_line(task: str, *errors: type[Exception]) -> Iterator[None]:
    """Say these errors of a task's own code in one line; others, and ours, are not the task's."""
    try:
        yield
    except errors as error:
        if one_line(error) is not None or _ours(error):
            raise
        raise SpectrimError(
            f"lm-eval's task '{task}' failed ({_reason(error)}); leave it out, or get its data "
            "or another version of lm-eval"
        ) from error


def _ours(error: Exception) -> bool:
    """Return whether our own code raised an error."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(OURS)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {json.dumps(str(error).partition(chr(10))[0][:120])}"


def _tasks(held: Any, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = held.load([name])["tasks"]
    except SpectrimError:
        raise
    except Exception as error:  # the hub, the network and each task fail in their own ways
        raise UnavailableError(
            f"lm-eval's task '{name}' cannot be had ({_reason(error)}); "
            "give a folder that has it with --data, or a network"
        ) from error
    for one, task in found.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise SpectrimError(f"the task '{one}' runs code or needs images; leave it out")
    return found
