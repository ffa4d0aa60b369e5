"""Whole matrices as factors of signs, chosen with other bits, on a tiny model end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.errors import SpectrimError
from spectrim.recipe.recipe import Recipe
from tiny_models import logits, tokens
from tiny_runs import TOKENS, Made, equal, from_pretrained, make, plan_of, shrink, stored

KEEP = "7% of linear bytes"  # of float32: two bits a weight and a little
SIGNS = {"cut": False, "refine": "off", "bits": [1, 2, 4], "group": 32}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a tiny llama, its cache shared by all runs."""
    return make("llama", tmp_path_factory.mktemp("signs"))


def asked(made: Made, factorize: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "model": str(made.source),
            "keep": KEEP,
            "calibration": {"text": str(made.text), "tokens": TOKENS},
            "stages": [{"factorize": factorize}, {"quantize": {}}],
        }
    )


@pytest.fixture(scope="module")
def small(plain: Made) -> Path:
    return shrink(asked(plain, SIGNS), plain.folder / "small")


def test_signs_are_chosen_within_the_bytes_and_run(plain: Made, small: Path) -> None:
    plan = plan_of(small)
    signs = [one for one in plan.decisions if one.bits == 1]
    assert signs and {one.stored_as for one in signs} == {"binary_low_rank"}
    assert all(one.predicted_loss > 0 for one in signs)
    names = tuple(f"{one.site}." for one in plan.decisions)
    held = sum(one.nbytes for name, one in stored(small).items() if name.startswith(names))
    assert held <= plan.about["budget"]["size"]
    model = from_pretrained(plain, small)
    module = model.get_submodule(signs[0].site)
    assert type(module).__name__ == "BinaryLowRank" and module.rank == signs[0].rank
    assert set(module.first.codes().unique().tolist()) == {-1, 1}
    assert torch.isfinite(logits(model, tokens())).all()


def test_a_plan_with_signs_is_replayed_bit_for_bit(plain: Made, small: Path) -> None:
    again = shrink(asked(plain, SIGNS), plain.folder / "again", plan=small / "plan.json")
    assert equal(stored(small), stored(again))
    assert plan_of(small) == plan_of(again)


def test_a_rank_that_no_signs_have_is_one_line(plain: Made, small: Path) -> None:
    plan = plan_of(small)
    first = next(one for one in plan.decisions if one.bits == 1)
    edited = [replace(one, rank=4000) if one == first else one for one in plan.decisions]
    path = plain.folder / "edited.json"
    path.write_text(replace(plan, decisions=tuple(edited)).to_json())
    assert json.loads(path.read_text())["decisions"]
    with pytest.raises(SpectrimError, match=f"^the plan gives {first.site} rank 4000; expected 1"):
        shrink(asked(plain, SIGNS), plain.folder / "edited", plan=path)
