"""Options that no stage of a recipe would make use of."""

from __future__ import annotations

from pathlib import Path

import pytest

from spectrim.errors import SpectrimError
from spectrim.recipe import Recipe


@pytest.mark.parametrize("format", ["low_rank", "pivoted"])
def test_a_format_that_no_method_makes_use_of_is_refused(format: str) -> None:
    asked = {"model": "demo", "factorize.method": "autoencoder,tensor_train"}
    with pytest.raises(SpectrimError, match="is of no use to autoencoder,tensor_train, which br"):
        Recipe.build(None, {**asked, "factorize.format": format})
    used = {"factorize.method": "autoencoder,loss_aware_svd", "factorize.format": format}
    assert Recipe.build(None, {**asked, **used}).factorize.format == format


def test_a_recipe_written_out_is_read_again_though_its_format_is_of_no_use(tmp_path: Path) -> None:
    made = Recipe.build(None, {"model": "demo", "factorize.method": "autoencoder"})
    (tmp_path / "recipe.yaml").write_text(made.to_yaml())
    assert Recipe.from_yaml(tmp_path / "recipe.yaml") == made


def test_keep_beside_a_recipe_that_spends_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "drop.yaml"
    file.write_text("model: demo\nstages: [{drop_blocks: {drop: 1}}]\n")
    with pytest.raises(SpectrimError, match="the recipe has none; leave out keep, or add the st"):
        Recipe.build(file, {"keep": "60%"})
    assert Recipe.build(file, {}).factorize is None
