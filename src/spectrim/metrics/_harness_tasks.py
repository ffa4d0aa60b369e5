"""Tasks of lm-evaluation-harness: its own, and those whose documents a folder of data holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from spectrim.errors import SpectrimError, UnavailableError, did_you_mean
from spectrim.metrics import Pair
from spectrim.metrics._harness_files import LOCAL

YAML = Path(__file__).with_name("lm_eval_tasks")


@dataclass(frozen=True)
class Loaded:
    """One of lm-eval's task objects, ready to be asked."""

    name: str
    task: Any
    source: str

    def requests(self, limit: int | None, seed: int) -> list[Any]:
        """Return lm-eval's requests of the first ``limit`` documents, few-shot examples drawn."""
        if self.task.get_config("num_fewshot") is None:
            self.task.set_config(key="num_fewshot", value=0)
        self.task.set_fewshot_seed(seed=seed)
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
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UnavailableError(
            "these tasks need the package lm_eval; pip install 'spectrim[evaluation]'"
        ) from error
    if folder is None:
        return TaskManager()
    metadata = {"data": str(folder)}
    return TaskManager(include_path=YAML, include_defaults=False, metadata=metadata)


def known(names: Iterable[str], own: tuple[str, ...]) -> list[str]:
    """Return lm-eval's tasks, groups and tags that the names, or patterns like mmlu_*, stand for.

    Raises:
        SpectrimError: a name stands for none; ``own`` are the tasks of other metrics.
        UnavailableError: lm-eval is not installed.
    """
    names = list(names)
    held = manager() if names else None
    found: list[str] = []
    for name in names:
        matched = held.match_tasks([name]) if held else []
        if not matched:
            hint = did_you_mean(name, [*own, *held.all_tasks]) if held else ""
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


def _tasks(held: Any, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = held.load([name])["tasks"]
    except SpectrimError:
        raise
    except Exception as error:  # the hub, the network and each task fail in their own ways
        reason = json.dumps(str(error).partition("\n")[0][:120])
        raise UnavailableError(
            f"lm-eval's task '{name}' cannot be had ({type(error).__name__}: {reason}); "
            "give a folder that has it with --data, or a network"
        ) from error
    for one, task in found.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise SpectrimError(f"the task '{one}' runs code or needs images; leave it out")
    return found
