"""Noise on the demo model's weights worsens what its representations and preferences are worth."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from spectrim.metrics import (
    Evaluation,
    Measurement,
    Pair,
    Score,
    hidden_states,
    intent_likelihood,
    intent_probe,
    stereoset,
    topics,
)

Models = tuple[Any, Any, Any]


def measured(metric: ModuleType, models: Models, data: Path, task: str, limit: int) -> Measurement:
    dense, noisy, tokenizer = models
    words = (data / "lm" / "exllamav2_cal" / "wiki.utf8").read_text(encoding="utf-8")[:4000]
    ids = torch.tensor([tokenizer(words).input_ids[:512]]).view(4, 128)
    chosen = Evaluation(suite="quick", tasks=(task,), limit=limit, data=data)
    pair = Pair({"dense": dense, "small": noisy}, {"wiki": ids}, chosen, tokenizer=tokenizer)
    found: Measurement = metric.measure(pair)
    return found


def score(found: Measurement, label: str, name: str) -> Score:
    return next(one for one in found[label] if one.name == name)


@pytest.mark.parametrize(
    ("metric", "task", "limit", "name"),
    [
        (intent_probe, "snips", 40, "accuracy"),
        (intent_likelihood, "snips", 16, "accuracy"),
        (stereoset, "stereoset", 16, "lms"),
        (topics, "bbc_news", 30, "nmi"),
    ],
)
def test_noise_worsens(
    demo_models: Models, data: Path, metric: ModuleType, task: str, limit: int, name: str
) -> None:
    found = measured(metric, demo_models, data, task, limit)
    dense, noisy = (score(found, label, name) for label in ("dense", "small"))
    assert dense.better == "higher"
    assert noisy.value < dense.value


def test_noise_turns_hidden_states_and_more_with_every_block(
    demo_models: Models, data: Path
) -> None:
    dense, noisy, tokenizer = demo_models
    found = measured(hidden_states, demo_models, data, "hidden_states", 2)
    curve = score(found, "small", "cosine").settings["blocks"]
    assert 1 > curve[0] > curve[len(curve) // 2] > curve[-1]
    assert score(found, "small", "sentence_cosine").value < 0.9
    same = measured(hidden_states, (dense, dense, tokenizer), data, "hidden_states", 2)
    assert score(same, "small", "cosine").value == pytest.approx(1, abs=1e-5)
    assert score(same, "small", "sentence_cosine").value == pytest.approx(1, abs=1e-5)
