"""Plans carried out again: unedited to the same bits, edited as edited, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from spectrim.errors import SpectrimError
from spectrim.methods import methods
from spectrim.plan import Decision
from spectrim.recipe.recipe import Recipe
from tiny_runs import Made, family_folder, files, plan_of, recipe, shrink, write_text

ALL = methods.names()
OF_EXPERTS = [
    name for name in ALL if any("*" in str(r) for r in methods.constant(name, "ROLES") or ())
]
ON_LLAMA = [
    name for name in ALL if name not in (*OF_EXPERTS, "query_key")
]  # it has rotary embeddings
OF_OTHER_RANKS = [name for name in ON_LLAMA if methods.constant(name, "FORMAT")]
OF_LITTLE = {"value_output": {"keep": "92% of linear"}}  # it reaches two maps of a block
LARGEST = {"keep": "99% of linear", "allocator": "uniform"}
ATTENTION = "model.layers.0.self_attn."


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a family's tiny model, which nothing has cut yet; its cache serves all tests here."""
    family = getattr(request, "param", "llama")
    folder = tmp_path_factory.mktemp(family)
    text = write_text(folder / "text.txt")
    return Made(family, family_folder(folder / "source", family), text, folder / "small")


def asked(made: Made, method: str, keep: str = "85% of linear", **options: object) -> Recipe:
    return recipe(made.source, made.text, keep, method=method, refine="off", **options)


def planned(made: Made, asked: Recipe) -> Path:
    """Return a copy of the plan that a recipe leads to."""
    plan = made.folder / "plan.json"
    plan.write_bytes((shrink(asked, made.small) / "plan.json").read_bytes())
    return plan


def edit(plan: Path, changes: dict[str, dict[str, object]]) -> None:
    """Change decisions as by hand; changes: new values by site."""
    said = json.loads(plan.read_text())
    for one in said["decisions"]:
        one.update(changes.get(one["site"], {}))
    plan.write_text(json.dumps(said))


def refused(made: Made, asked: Recipe, plan: Path) -> str:
    with pytest.raises(SpectrimError) as raised:
        shrink(asked, made.folder / "other", plan=plan)
    assert not (made.folder / "other").exists()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def cut(made: Made) -> list[Decision]:
    return [one for one in plan_of(made.small).decisions if one.format != "dense"]


@pytest.mark.parametrize(
    ("made", "options"),
    [
        *(("llama", {"method": name, **OF_LITTLE.get(name, {})}) for name in ON_LLAMA),
        # at the largest cut, which may have the rank of the dense matrix
        *(("llama", {"method": name, **LARGEST}) for name in OF_OTHER_RANKS),
        *(("mixtral", {"method": name}) for name in OF_EXPERTS),
        ("llama", {"method": ",".join(ON_LLAMA), "keep": "60% of linear"}),
        ("llama", {"method": "loss_aware_svd", "centre": True}),
        ("llama", {"method": "loss_aware_svd", "protect": ["mlp"], "rank_multiple": 2}),
    ],
    indirect=["made"],
    scope="module",
)
def test_an_unedited_plan_gives_the_same_bits(made: Made, options: dict[str, Any]) -> None:
    first = asked(made, **options)
    plan = planned(made, first)
    assert cut(made)
    before = files(made.small)
    shrink(first, made.small, plan=plan)
    assert files(made.small) == before


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("output_pca", {}),
        ("loss_aware_svd", {"centre": True}),
        ("loss_aware_tensor_train", {}),
        ("shared_basis", {"centre": True}),
    ],
)
def test_what_is_made_dense_and_cut_again_is_as_it_was(
    method: str, options: dict[str, Any], made: Made
) -> None:
    """Biases that make up for a mean, owners of a basis and losses follow from the choices."""
    first = asked(made, method, **options)
    plan = planned(made, first)
    before, whole = files(made.small), cut(made)
    taken = [one for one in whole if whole[0].site in (one.site, one.owner)]
    assert len(taken) > 1 or "shared" not in method
    edit(plan, {one.site: {"format": "dense"} for one in taken})
    shrink(first, made.small, plan=plan)
    for one in taken:
        dense = plan_of(made.small)[one.site]
        assert (dense.stored, dense.method, dense.bias, dense.owner) == (one.dense, "", False, "")
    plan.write_bytes((made.small / "plan.json").read_bytes())
    edit(plan, {one.site: {"format": one.format, "rank": one.rank} for one in taken})
    shrink(first, made.small, plan=plan)
    assert files(made.small) == before


def test_what_was_protected_is_cut_where_the_plan_says_so(made: Made) -> None:
    first = asked(made, "shared_basis", protect=["self_attn"])
    plan = planned(made, first)
    names = [f"{ATTENTION}{role}_proj" for role in "qkv"]
    formats = ["shared_owner", "shared_follower", "shared_follower"]
    edit(plan, {name: {"format": f, "rank": 5} for name, f in zip(names, formats, strict=True)})
    said = plan_of(shrink(first, made.small, plan=plan))
    assert [said[name].owner for name in names] == ["", names[0], names[0]]
    assert said[names[0]].predicted_loss > 0


@pytest.mark.parametrize(
    ("method", "changes", "told"),
    [
        ("autoencoder", {"format": "pivoted"},
         "as pivoted, but autoencoder makes autoencoder of it"),
        ("loss_aware_svd", {"format": "autoencoder"},
         "as autoencoder, but loss_aware_svd makes low_rank or pivoted of it"),
        ("shared_basis", {"format": "shared_follower"},
         "as shared_follower, but shared_basis makes shared_owner of it"),
        ("loss_aware_svd", {"method": "output_pca"},
         "by 'output_pca', but the recipe's method is loss_aware_svd"),
        ("loss_aware_svd", {"method": "no_such"},
         "by 'no_such', but the recipe's method is loss_aware_svd"),
    ],
)  # fmt: skip
def test_a_cut_that_no_method_makes(
    method: str, changes: dict[str, object], told: str, made: Made
) -> None:
    first = asked(made, method)
    plan = planned(made, first)
    site = cut(made)[0].site
    edit(plan, {site: changes})
    verb = "cuts" if "method" in changes else "stores"
    assert f"the plan {verb} {site} {told}" in refused(made, first, plan)


def test_a_site_that_a_method_does_not_cut(made: Made) -> None:
    first = asked(made, "shared_basis")
    plan, site = planned(made, first), f"{ATTENTION}o_proj"
    edit(plan, {site: {"format": "shared_owner", "rank": 4}})
    assert refused(made, first, plan) == (
        f"the plan stores {site} as shared_owner, but shared_basis does not cut it; "
        "change the format or the method in the plan, or make it dense"
    )


@pytest.mark.parametrize("made", ["mixtral"], indirect=True)
def test_an_expert_that_holds_the_basis_of_others_stays_cut(made: Made) -> None:
    first = asked(made, "expert_basis")
    plan = planned(made, first)
    owner, follower, *_ = cut(made)
    assert follower.owner == owner.site
    edit(plan, {follower.site: {"format": "dense"}})
    assert plan_of(shrink(first, made.small, plan=plan))[follower.site].format == "dense"
    edit(plan, {owner.site: {"format": "dense"}})
    told = f"expert_basis cuts {owner.site}, {follower.site}"
    assert refused(made, first, plan).startswith(told)


# recipes that cut nothing


def uncut(made: Made, entries: Iterable[object] = ({"sparsify": {}},)) -> Recipe:
    """Return a recipe without the stage that carries plans out."""
    whole = asked(made, "truncated_svd").model_dump(mode="json")
    return Recipe.model_validate({**whole, "stages": list(entries)})


def test_a_plan_without_cuts_needs_no_stage_to_carry_it_out(made: Made) -> None:
    first = uncut(made)
    plan = planned(made, first)
    before = files(made.small)
    assert files(shrink(first, made.small, plan=plan)) == before


def test_a_plan_with_cuts_and_no_stage_to_carry_them_out(made: Made) -> None:
    plan = planned(made, uncut(made))
    edit(plan, {f"{ATTENTION}q_proj": {"format": "pivoted", "rank": 4, "method": "truncated_svd"}})
    assert refused(made, uncut(made), plan) == (
        f"the plan cuts {ATTENTION}q_proj, but the recipe has no stage factorize, which carries "
        "plans out; add it to the recipe, or make every site dense in the plan"
    )


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("gpt2", "the plan does not fit the model: transformer.h.0.attn.c_attn is 144 x 48 in the "
         "plan and not in the model"),
        ("llama", "the plan was made with another model"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "stage", [{"sparsify": {}}, {"drop_blocks": {"layers": [0, 0]}}], ids=["sparsify", "repeat"]
)
def test_a_plan_without_cuts_of_another_model(
    stage: dict[str, object], family: str, told: str, made: Made, tmp_path: Path
) -> None:
    source = family_folder(tmp_path / "source", family)
    other = Made(family, source, made.text, tmp_path / "small")
    plan = planned(other, uncut(other, [stage]))
    said = json.loads(plan.read_text())
    if family == made.family:
        said["fingerprint"] = "another"
    plan.write_text(json.dumps(said))
    assert told in refused(made, uncut(made, [stage]), plan)
