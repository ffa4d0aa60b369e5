"""Noise on the demo model's weights worsens what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spectrim.metrics import Evaluation, Pair, reading_comprehension, summarisation, trivia_qa


@pytest.mark.parametrize(
    ("metric", "task", "name", "items"),
    [
        (reading_comprehension, "xquad.en", "f1", 6),
        (summarisation, "samsum", "rouge1", 2),
        (trivia_qa, "trivia_qa", "words", 16),
    ],
)
def test_noise_worsens_it(
    demo_models: tuple[Any, Any, Any], data: Path, metric: Any, task: str, name: str, items: int
) -> None:
    dense, noisy, tokenizer = demo_models
    chosen = Evaluation(suite="quick", tasks=(task,), limit=items, data=data)
    pair = Pair({"dense": dense, "noisy": noisy}, {}, chosen, tokenizer=tokenizer)
    found = {
        label: {score.name: score.value for score in scores}
        for label, scores in metric.measure(pair).items()
    }
    assert found["noisy"][name] < found["dense"][name]
