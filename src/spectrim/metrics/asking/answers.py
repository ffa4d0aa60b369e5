"""What a model answered, item by item, kept on disk: interrupted work goes on, none is done twice.

Everything that a model is asked, whatever the metric, goes through ``answered``. The key of a file
is made of the model's content and that of the items, so an old answer is never taken for a new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from spectrim.files import key_of, locked
from spectrim.metrics._contract import Pair
from spectrim.metrics._reading import Reading, read

Answer = Any
"""Whatever JSON can hold."""


def answered(
    pair: Pair,
    labels: str | Sequence[str],
    task: str,
    items: Sequence[Any],
    ask: Callable[[Sequence[Any]], Sequence[Answer]],
    *,
    batch: int = 1,
) -> list[Answer]:
    """Return one answer for each item, asking only for those that are not kept yet.

    Args:
        pair: the models' identities and the cache; without either nothing is kept.
        labels: which model of the pair is asked, or several that are asked together.
        task: what is asked, in words; change it whenever ``ask`` changes its meaning.
        items: what JSON can hold: all that the answers depend on, such as finished prompts.
        ask: batch of items → as many answers. Batches are cut alike in every run.
        batch: items asked at once.
    """
    labels = [labels] if isinstance(labels, str) else list(labels)
    file = _file(pair, labels, task, items, batch)
    said = pair.said(f"{task}, {' and '.join(labels)}")
    if file is None:
        found: list[Answer] = []
        _ask(items, ask, batch, found, lambda new: None, said)
        return found
    with locked(file):
        if pair.evaluation.fresh and file not in pair.redone:
            file.unlink(missing_ok=True)
            pair.redone.add(file)
        found = _kept(file)[: len(items)]
        del found[len(found) - len(found) % batch if len(found) < len(items) else len(items) :]
        _write(file, found, "w")
        _ask(items, ask, batch, found, lambda new: _write(file, new, "a"), said)
    return found


def readings(pair: Pair) -> dict[str, Reading]:
    """Return one pass of all models over every text, by the text's name; metrics share it."""
    for name, ids in pair.texts.items():
        if name not in pair.readings:
            pair.readings[name] = kept_reading(pair, name, ids)
    return pair.readings


def kept_reading(pair: Pair, name: str, ids: Int[Tensor, "sequences length"]) -> Reading:
    """Return what the models of a pair make of a text, window by window."""
    models = list(pair.models.values())
    rows = answered(
        pair,
        list(pair.models),
        f"reading {name}",
        ids.tolist(),
        lambda windows: read(models, torch.tensor(windows)).rows(),
    )
    return Reading.of_rows(rows)


def _ask(
    items: Sequence[Any],
    ask: Callable[[Sequence[Any]], Sequence[Answer]],
    batch: int,
    found: list[Answer],
    keep: Callable[[list[Answer]], None],
    said: Callable[[int, int], None],
) -> None:
    for start in range(len(found), len(items), batch):
        said(start, len(items))
        asked = items[start : start + batch]
        new = json.loads(json.dumps(list(ask(asked))))  # the same from memory as from the file
        if len(new) != len(asked):
            raise ValueError(f"{len(new)} answers to {len(asked)} items")
        keep(new)
        found += new
    said(len(items), len(items))


def _file(
    pair: Pair, labels: list[str], task: str, items: Sequence[Any], batch: int
) -> Path | None:
    chosen = pair.evaluation
    identities = [chosen.identities.get(label) for label in labels]
    if chosen.cache is None or None in identities:
        return None
    key = key_of("answers", 1, task, identities, batch, list(items))
    return chosen.cache / "answers" / f"{key}.jsonl"


def _kept(file: Path) -> list[Answer]:
    """Return the complete lines of a file; a kill may have cut off the last."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    found = []
    for line in text.split("\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _write(file: Path, answers: list[Answer], mode: str) -> None:
    with file.open(mode, encoding="utf-8") as out:
        out.writelines(json.dumps(one) + "\n" for one in answers)
