"""Pairs of tiny models to ask tasks of, and a model whose every answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spectrim.metrics import Evaluation, Measurement, Pair, Score
from spectrim.model import sources
from tiny_folders import tiny_folder
from tiny_models import build

LABELS = ("dense", "small")


def unigram(favourite: int | None = None) -> Any:
    """Return a model that says the same after every text: all words alike, or one above them."""
    model: Any = build("llama", tie=False)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1)
        model.model.norm.weight.fill_(1)
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        if favourite is not None:
            model.lm_head.weight[favourite] = 0.1
    return model


def asking(
    folder: Path,
    models: Sequence[Any],
    *tasks: str,
    texts: dict[str, torch.Tensor] | None = None,
    **chosen: Any,
) -> Pair:
    """Return a pair of models whose tokenizer knows the words w3 … and whose data is in folder."""
    tokenizer = sources.load(str(tiny_folder(folder / "words")), cache=folder / "cache")[1]
    evaluation = Evaluation(suite="full", tasks=tasks, data=folder, **chosen)
    named = dict(zip(LABELS, models, strict=False))
    return Pair(named, texts or {}, evaluation, tokenizer=tokenizer)


def by_name(found: Measurement, label: str, task: str) -> dict[str, Score]:
    """Return a model's scores of a task."""
    return {one.name: one for one in found[label] if one.settings["task"] == task}


def written_to(file: Path, text: str) -> Path:
    """Return the file with the text in it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file
