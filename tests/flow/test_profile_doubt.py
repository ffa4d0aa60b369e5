"""How sure a profile is: standard errors, correlations, and losses that are no numbers."""

from __future__ import annotations

import csv
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.cutting.sensitivity import STRETCH, STRETCHES, standard_error
from spectrim.model.weights import quiet
from spectrim.verbs.profile import Asked, _agreement, profile
from spectrim.walk.walk import BlockWalk
from tiny_folders import tiny_folder
from tiny_places import Place, assert_clean, assert_told
from tiny_runs import recipe, write_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("profiles")
    tiny_folder(made / "source", "llama")
    write_text(made / "text.txt")
    return made


def profiled(folder: Path, **asked: Any) -> dict[str, Any]:
    read = recipe(folder / "source", folder / "text.txt")
    with quiet():
        return profile(read, folder / "profile", Asked(by="block", **asked), cache=folder / "cache")


def test_an_error_is_that_of_means_over_stretches() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(64 * STRETCH, generator=generator, dtype=torch.float64)
    means = drawn.reshape(64, STRETCH).mean(1)
    assert standard_error(drawn) == pytest.approx(float(means.std()) / 8)
    assert standard_error(drawn) == pytest.approx(len(drawn) ** -0.5, rel=0.3)
    # tokens that say the same as their neighbours count as one
    alike = drawn[:64].repeat_interleave(STRETCH)
    assert standard_error(alike) == pytest.approx(float(drawn[:64].std()) / 8)
    assert standard_error(drawn[: 4 * STRETCHES]) == pytest.approx(
        float(drawn[: 4 * STRETCHES].reshape(STRETCHES, 4).mean(1).std()) / STRETCHES**0.5
    )


def test_the_error_is_of_paired_differences(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    losses = BlockWalk.losses
    monkeypatch.setattr(
        BlockWalk, "losses", lambda *a: (seen.append(losses(*a).double()), seen[-1])[1]
    )
    found = profiled(folder, sizes=(0.4,))
    dense, *cut = seen
    assert len(cut) == len(found["rows"]) == 3
    for row, own in zip(found["rows"], cut, strict=True):
        apart = own - dense
        assert row["measured"] == pytest.approx(float(apart.mean()))
        assert row["error"] == pytest.approx(standard_error(apart)) and row["error"] > 0
    with (folder / "profile" / "profile.csv").open() as file:
        assert [float(one["error"]) for one in csv.DictReader(file)] == [
            one["error"] for one in found["rows"]
        ]


def test_perplexity_and_divergence_have_errors_of_their_own(folder: Path) -> None:
    loss, perplexity, divergence = (
        profiled(folder, sizes=(0.4,), metric=metric)
        for metric in ("loss", "perplexity", "divergence")
    )
    for one, other in zip(loss["rows"], perplexity["rows"], strict=True):
        cut = exp(loss["dense"]["loss"] + one["measured"])
        assert other["error"] == pytest.approx(cut * one["error"])
    assert all(one["error"] > 0 for one in divergence["rows"])
    assert divergence["dense"]["divergence"] == 0 and divergence["compared_tokens"] == 62
    assert loss["compared_tokens"] is None


def rows(pairs: list[tuple[float, float]]) -> list[dict[str, Any]]:
    return [{"size": 0.5, "cut": "alone", "predicted": x, "measured": y} for x, y in pairs]


def test_a_correlation_of_logarithms_says_of_how_many() -> None:
    pairs = [(0.1, 0.1), (0.2, 0.4), (0.4, 0.9), (0.1, -0.2), (0.2, -0.1)]
    found = _agreement(rows(pairs), 0.5)
    assert (found["parts"], found["above"]) == (5, 3) and found["pearson"] > 0.9
    found = _agreement(rows([*pairs, (0.1, 0.0), (0.3, -0.3)]), 0.5)
    assert (found["parts"], found["above"], found["pearson"]) == (7, 3, None)
    assert found["spearman"] is not None


def test_a_dense_model_without_loss_is_said_before_the_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockWalk, "losses", lambda *_: torch.tensor([1.0, float("nan")]))
    code, err = place.run(
        "profile", place.source, "--calibration", place.text, "--tokens", "12x32",
        "--cache", place.folder / "cache", "-o", place.folder / "profile",
    )  # fmt: skip
    assert_told(code, err, "the dense model's loss on the text is nan, so nothing can be measured")
    assert "decomposing" not in err and not (place.folder / "profile").exists()
    assert_clean(place.folder)
