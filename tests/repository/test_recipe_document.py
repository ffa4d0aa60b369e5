"""docs/recipes.md: every stage with exactly the options that it has, and their defaults."""

import re

import pytest
import yaml

from spectrim.recipe.options import Factorize
from spectrim.recipe.recipe import Keep, Recipe
from spectrim.registry import Registry

STAGES = Registry("stage", "spectrim.stages")
OPTIONS = Registry("stage", "spectrim.stages", attribute=lambda _: "Options")
LIKE_DISTIL = {"lora": {"numbers"}, "low_memory": {"numbers", "accumulation"}}
ROW = re.compile(r"^\| `(\w+)` \| (?:`(.*?)`|(none)) \| .+ \|$", re.M)


def said(text, stage):
    """Return default by option as the section of a stage has them, those it shares included."""
    (section,) = re.findall(rf"^## {stage}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    shared = said(text, "distil") if stage in LIKE_DISTIL else {}
    found = {name: yaml.safe_load(default or "null") for name, default, _ in ROW.findall(section)}
    return {k: v for k, v in shared.items() if k not in LIKE_DISTIL.get(stage, ())} | found


def options(stage):
    """Return default by option as a recipe file would hold them."""
    made = Factorize if stage == "factorize" else OPTIONS.get(stage)
    found = {name: field.default for name, field in made.model_fields.items()}
    return {name: list(d) if isinstance(d, tuple) else d for name, d in found.items()}


@pytest.mark.parametrize("stage", STAGES.names())
def test_every_option_is_explained_with_its_default(root, stage):
    text = (root / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert said(text, stage) == options(stage)


def test_the_keys_of_a_recipe_are_all_there(root):
    text = (root / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = text[: text.index("## Stages in order")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(Recipe.model_fields)
    assert f"| `keep` | `{Keep(fraction=0.8, of='linear')}` |" in table


def test_every_recipe_is_named(root):
    text = (root / "docs" / "recipes.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\(\.\./recipes/(\w+\.yaml)\)", text)
    assert sorted(named) == sorted(file.name for file in (root / "recipes").glob("*.yaml"))
