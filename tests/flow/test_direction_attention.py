"""Attention of the demo model: noise on its weights moves it."""

from __future__ import annotations

from typing import Any

from spectrim.metrics import Evaluation, Pair
from spectrim.metrics.attention import MOST, measure


def test_noise_moves_the_attention(demo_models: tuple[Any, Any, Any]) -> None:
    dense, noisy, tokenizer = demo_models
    chosen = Evaluation(suite="full", baselines={"same": 0})
    models = {"dense": dense, "small": noisy, "same": dense}
    found = measure(Pair(models, {}, chosen, tokenizer=tokenizer))
    (moved,), (still,) = found["small"], found["same"]
    assert still.value == 0 < 0.01 < moved.value <= 1
    told = moved.settings
    assert len(told["blocks"]) == dense.config.num_hidden_layers
    assert 16 <= len(told["tokens"]) <= MOST
    assert "".join(told["tokens"]).startswith("The old lighthouse keeper climbed")
    maps = told["maps"]
    assert maps["dense"] == maps["same"] != maps["small"]
