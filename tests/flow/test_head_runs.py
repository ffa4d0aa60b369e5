"""Heads narrowed by a recipe: counted as stored, loaded, and refused where a plan parts them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from spectrim.errors import SpectrimError
from spectrim.metrics.multiply_adds import multiply_adds
from spectrim.plan import Decision, Plan
from tiny_models import assert_generates_alike, logits, tokens
from tiny_runs import (
    Made,
    envelope_kept,
    equal,
    family_folder,
    from_pretrained,
    load,
    plan_of,
    recipe,
    saved_again,
    shrink,
    stored,
    write_text,
)

FORMATS = {"v": "padded_outputs", "o": "picked_inputs", "q": "padded_outputs",
           "k": "padded_outputs"}  # fmt: skip
CASES = {
    "llama_biased": {"v", "o"},
    "falcon_new": {"v", "o"},
    "gpt2": {"q", "k", "v", "o"},
    "bart": {f"{stack}{role}" for stack in ("encoder_", "decoder_", "decoder_cross_")
             for role in "qkvo"},
}  # fmt: skip

KEPT = {"gpt2": 0.8, "bart": 0.8}  # else 0.88: queries and keys cost less, and are cut first


def kept_of(made: Made) -> float:
    """Return the part of the linear maps that the budget leaves."""
    return KEPT.get(made.family, 0.88)


def asked(made: Made, **options: object) -> object:
    options = {
        "method": "value_output,query_key",
        "split_fused": True,
        "rank_multiple": 1,
    } | options
    return recipe(made.source, made.text, f"{100 * kept_of(made):g}% of linear", **options)


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    source = family_folder(folder / "source", request.param)
    plain = Made(request.param, source, write_text(folder / "text.txt"), folder / "small")
    with envelope_kept():
        shrink(asked(plain), plain.small)
    return plain


def test_heads_are_cut_together_and_never_under_rotary_embeddings(made: Made) -> None:
    cut = {one.site: one for one in made.factored()}
    assert {one.role for one in cut.values()} == CASES[made.family]
    for one in cut.values():
        last = one.role[-1]
        assert one.format == FORMATS[last]
        partner = {"v": "o", "o": "v", "q": "k", "k": "q"}[last]
        (other,) = [
            two for two in cut.values()
            if two.role == one.role[:-1] + partner and two.block == one.block
        ]  # fmt: skip
        assert part(one) == part(other)


def part(one: Decision) -> float:
    """Return what part of a map's head dimensions is left."""
    return one.rank / (one.in_features if one.format == "picked_inputs" else one.out_features)


def test_what_is_counted_is_what_the_files_hold(made: Made) -> None:
    held = stored(made.small)
    for one in made.factored():
        numbers = sum(
            tensor.numel()
            for name, tensor in held.items()
            if name.startswith(one.site + ".") and tensor.is_floating_point()
            and not name.endswith(".bias")
        )  # fmt: skip
        assert numbers == one.stored < one.dense
    plan = plan_of(made.small)
    kept = sum(one.stored for one in plan.decisions)
    assert kept <= kept_of(made) * sum(one.dense for one in plan.decisions)
    assert multiply_adds(from_pretrained(made, made.small)).linear == kept


def test_saved_again_it_is_the_same(made: Made, tmp_path: Path) -> None:
    saved_again(made, tmp_path)


def test_generation_with_a_cache_equals_that_without(made: Made) -> None:
    assert_generates_alike(from_pretrained(made, made.small))


def test_a_plan_is_replayed_to_the_same_bits(made: Made) -> None:
    again = made.folder / "again"
    shrink(asked(made), again, plan=made.small / "plan.json")
    assert equal(stored(made.small), stored(again))


def test_it_gives_the_logits_of_the_matrices_multiplied_out(made: Made) -> None:
    if made.family in ("gpt2", "falcon_new"):
        pytest.skip("its matrices are parts of a fused one")
    small, model = from_pretrained(made, made.small), load(made.source)
    for one in made.factored():
        dense, module = model.get_submodule(one.site), small.get_submodule(one.site)
        dense.weight = nn.Parameter(module.dense().detach())
        if module.bias is not None:
            dense.bias = nn.Parameter(module.bias.detach())
    torch.testing.assert_close(
        logits(small, tokens()), logits(model, tokens()), rtol=1e-4, atol=1e-4
    )


def test_a_plan_that_parts_heads_is_refused(made: Made) -> None:
    plan = plan_of(made.small)
    at = next(place for place, one in enumerate(plan.decisions) if one.format == "picked_inputs")
    decisions = list(plan.decisions)
    decisions[at] = replace(decisions[at], rank=decisions[at].rank - 1)
    file = made.folder / "parted.json"
    file.write_text(Plan(tuple(decisions), plan.predicted_loss, plan.about).to_json())
    with pytest.raises(SpectrimError, match=r"together; give all .* as one has more heads\)"):
        shrink(asked(made), made.folder / "parted", plan=file)
