"""Noise on the demo model's weights shows in everything that is measured on text."""

from __future__ import annotations

from typing import Any

import pytest

from spectrim.metrics import Evaluation, Pair, Score, divergence, perplexity
from spectrim.text import default_mix, documents

Models = tuple[Any, Any, Any]


@pytest.fixture(scope="module")
def scores(demo_models: Models) -> dict[str, dict[str, Score]]:
    """Return label → name → score on four short windows that every machine has."""
    dense, noisy, tokenizer = demo_models
    ids = documents.encode(default_mix.documentation(), tokenizer, 128).ids[40:44]
    pair = Pair({"dense": dense, "small": noisy, "same": dense}, {"manual": ids}, Evaluation())
    found: dict[str, dict[str, Score]] = {label: {} for label in pair.models}
    for metric in (perplexity, divergence):
        for label, measured in metric.measure(pair).items():
            found[label] |= {score.name: score for score in measured}
    return found


@pytest.mark.parametrize("name", ["loss", "perplexity", "next_token"])
def test_noise_worsens_what_a_model_knows(scores: dict[str, dict[str, Score]], name: str) -> None:
    dense, noisy = scores["dense"][name], scores["small"][name]
    assert dense.interval is not None and noisy.interval is not None
    if dense.better == "lower":
        assert dense.interval[1] < noisy.interval[0]
    else:
        assert dense.interval[0] > noisy.interval[1]


@pytest.mark.parametrize(
    ("name", "same"),
    [("excess_loss", 0), ("kl", 0), ("jensen_shannon", 0), ("agreement", 1), ("lost", 0)],
)
def test_noise_leads_away_from_dense(
    scores: dict[str, dict[str, Score]], name: str, same: float
) -> None:
    own, noisy = scores["same"][name], scores["small"][name]
    assert own.value == pytest.approx(same, abs=1e-6)
    assert noisy.value < 0.7 if own.better == "higher" else noisy.value > 0.1


def test_flips_of_noise_are_no_chance(scores: dict[str, dict[str, Score]]) -> None:
    noisy, same = scores["small"], scores["same"]
    assert noisy["lost"].value > noisy["gained"].value
    assert noisy["mcnemar_p"].value < 0.001 and same["mcnemar_p"].value == 1
    change = noisy["gained"].value - noisy["lost"].value
    assert noisy["next_token"].value - scores["dense"]["next_token"].value == pytest.approx(change)
