"""Options that no stage of a recipe would make use of."""

from __future__ import annotations

from pathlib import Path

import pytest

from spectrim.errors import SpectrimError
from spectrim.recipe import Recipe


def test_keep_beside_a_recipe_that_spends_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "drop.yaml"
    file.write_text("model: demo\nstages: [{drop_blocks: {drop: 1}}]\n")
    with pytest.raises(SpectrimError, match="the recipe has none; leave out keep, or add the st"):
        Recipe.build(file, {"keep": "60%"})
    assert Recipe.build(file, {}).factorize is None
