"""A recipe whose stages cannot follow each other is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spectrim.errors import SpectrimError
from spectrim.recipe.options import validate
from spectrim.recipe.recipe import Recipe

DROP = {"drop_blocks": {"drop": 1}}
ASKED = {"model": "demo", "keep": "25% of linear bytes"}
BITS = {"factorize": {"format": "low_rank", "bits": [3, 4], "group": 32}}
REFUSED: list[tuple[list[Any], str]] = [
    (["factorize", "factorize"], "factorize needs the maps as they came"),
    (["distil", "sparsify"], "sparsify needs dense weights"),
    (["quantize", DROP], "drop_blocks takes a model with whole maps"),
    (["quantize", "quantize"], "quantize has packed the numbers already"),
    (["sparsify", "compensate", "quantize"], "quantize cannot pack what compensate has added to"),
    (["compensate"], "compensate makes up for quantize or sparsify"),
    (["sparsify", DROP, "compensate"], "compensate makes up for quantize or sparsify"),
    (["quantize", "distil", "compensate"], "compensate would undo what distil has trained"),
    (["quantize", "compensate", "compensate"], "compensate makes up for all at once"),
    (["sparsify", "lora"], "lora would fill the zeros"),
    (["quantize", "lora"], "behind quantize all maps are stored as whole numbers"),
    (["factorize", {"distil": {"numbers": True}}], "distil trains whole numbers, and no stage"),
    ([BITS], "factorize chooses bits, which the stage quantize gives"),
    ([BITS, {"quantize": {"group": 128}}], "group of quantize would say nothing"),
    ([BITS, {"quantize": {"protect": ["down"]}}], "protect of quantize would say nothing"),
]
TAKEN: list[list[Any]] = [
    [DROP, "sparsify", "factorize", "distil_blocks", "quantize", "compensate"],
    ["sparsify", "compensate", "distil"],
    ["sparsify", "distil", "quantize", "compensate", "distil"],
    [{"quantize": {"ends": 8, "protect": ["."]}}, "lora"],
    [BITS, {"quantize": {"group": 32, "ends": 8}}],
    [BITS, "quantize"],
    ["quantize", {"distil": {"numbers": True}}],
]


@pytest.mark.parametrize(("stages", "said"), REFUSED)
def test_what_cannot_follow_is_refused(stages: list[Any], said: str) -> None:
    with pytest.raises(SpectrimError, match=said) as caught:
        Recipe.model_validate({**ASKED, "stages": stages})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stages", TAKEN)
def test_what_can_follow_is_taken(stages: list[Any]) -> None:
    assert len(Recipe.model_validate({**ASKED, "stages": stages}).stages) == len(stages)


def test_every_recipe_of_ours_is_taken(root: Path) -> None:
    files = sorted((root / "recipes").glob("*.yaml"))
    assert files and all(Recipe.from_yaml(file).stages for file in files)


def test_bits_are_bought_with_bytes() -> None:
    stages = [{"factorize": {"bits": [3, 4]}}, {"quantize": {}}]
    with pytest.raises(
        SpectrimError, match="few bits, which save no numbers; keep a part of the b"
    ):
        validate(Recipe, {"model": "demo", "stages": stages}, "the recipe")
    kept = {"model": "demo", "keep": "25% of linear bytes", "stages": stages}
    assert validate(Recipe, kept, "the recipe").keep.of == "linear bytes"


def test_the_budget_of_bits_may_come_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model: demo\nstages: [{factorize: {bits: [3, 4]}}, quantize]\n")
    assert Recipe.build(file, {"keep": "25% of linear bytes"}).keep.fraction == 0.25
    with pytest.raises(SpectrimError, match="save no numbers"):
        Recipe.build(file, {})
