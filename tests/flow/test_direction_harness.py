"""Noise on the demo model's weights makes it worse at lm-eval's tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectrim.metrics import Evaluation, Pair, harness

# The model knows more than half of the answers and guessing a quarter; of 24 questions that makes
# about seven, where chance moves the difference by three.
ITEMS = 24


def test_noise_loses_science_questions(demo_models: Any, data: Path) -> None:
    dense, noisy, tokenizer = demo_models
    chosen = Evaluation(suite="quick", tasks=("arc_easy",), limit=ITEMS, data=data)
    models = {"dense": dense, "small": noisy}
    found = harness.measure(Pair(models, {}, chosen, None, tokenizer))
    values = {label: {one.name: one.value for one in scores} for label, scores in found.items()}
    assert values["dense"]["acc"] > values["small"]["acc"]
    assert values["small"]["lost"] > values["small"]["gained"]
