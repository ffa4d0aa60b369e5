"""The plan as a file: read back as it was, edited by hand, checked against a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spectrim.curve import Curve, Group
from spectrim.cutting.curves import thin
from spectrim.cutting.replay import check, named, with_consequences
from spectrim.errors import SpectrimError
from spectrim.model.sites import Site
from spectrim.plan import Decision, Plan

SITES = [Site("a.q", 0, "q", 12, 8), Site("a.k", 0, "k", 4, 8), Site("b.q", 1, "q", 12, 8)]


def curve(site: Site) -> Curve:
    """Cuts at every second rank, the dense matrix last."""
    full = min(site.out_features, site.in_features)
    ranks = torch.arange(2, full + 1, 2)
    sizes = (ranks * (site.out_features + site.in_features - ranks)).double()
    return Curve(
        (site,),
        ranks,
        sizes,
        torch.linspace(1, 0, len(ranks)),
        (Group("svd", (site,), ("pivoted",)),) * (len(ranks) - 1),
    )


def decision(site: Site, format: str = "pivoted", rank: int = 4) -> Decision:
    whole = site.out_features * site.in_features
    at = int((curve(site).ranks <= rank).sum()) - 1
    return Decision(
        site.name, site.block, site.role, site.out_features, site.in_features, format, rank,
        rank * (site.out_features + site.in_features - rank) if format == "pivoted" else whole,
        whole, float(curve(site).losses[at]) if format == "pivoted" else 0.0,
        "svd" if format == "pivoted" else "",
    )  # fmt: skip


NO_BIAS = {"svd": False}


def plan() -> Plan:
    decisions = (decision(SITES[0]), decision(SITES[1], "dense"), decision(SITES[2], rank=6))
    loss = sum(one.predicted_loss for one in decisions)
    return Plan(
        decisions, loss, {"model": "demo", "method": "svd", "budget": {"keep": 0.8, "of": "linear"}}
    )


def written(folder: Path, said: object) -> Path:
    file = folder / "plan.json"
    file.write_text(said if isinstance(said, str) else json.dumps(said))
    return file


def refused(folder: Path, said: object) -> str:
    with pytest.raises(SpectrimError) as raised:
        Plan.read(written(folder, said))
    return str(raised.value)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = written(tmp_path, plan().to_json())
    assert Plan.read(file) == plan()
    assert Plan.read(file).to_json() == file.read_text()


def test_every_decision_has_a_line_of_its_own() -> None:
    """So that `diff` of two plans shows the sites that differ."""
    lines = plan().to_json().splitlines()
    for one in plan().decisions:
        assert sum(one.site in line for line in lines) == 1
    assert plan()["a.k"].format == "dense"


def test_a_site_that_a_plan_lacks_is_named() -> None:
    with pytest.raises(SpectrimError) as raised:
        plan()["b.k"]
    assert str(raised.value) == "the plan says nothing about b.k; bring a plan of this model"


def test_a_plan_fits_its_own_model_only() -> None:
    check(plan(), SITES)
    cases = [
        ([replace(SITES[0], out_features=16), *SITES[1:]],
         "the plan does not fit the model: a.q is 12 x 8 in the plan and 16 x 8 in the model"),
        (SITES[1:], "the plan does not fit the model: a.q is 12 x 8 in the plan and not in the "
         "model"),
        ([*SITES, Site("b.k", 1, "k", 4, 8)], "the plan says nothing about b.k"),
    ]  # fmt: skip
    for sites, told in cases:
        with pytest.raises(SpectrimError) as raised:
            check(plan(), sites)
        assert str(raised.value) == told


@pytest.mark.parametrize("rank", [0, -1, 9])
def test_a_rank_that_cannot_be_is_refused(rank: int) -> None:
    first, *others = plan().decisions
    wrong = Plan((replace(first, rank=rank), *others), 0.0, {})
    with pytest.raises(SpectrimError, match=f"gives a.q rank {rank}; expected 1 to 8"):
        check(wrong, SITES)


def test_an_unchanged_plan_is_restated_as_it_was() -> None:
    curves = [curve(site) for site in SITES]
    full = [replace(one, rank=min(one.out_features, one.in_features)) if one.format == "dense"
            else one for one in plan().decisions]  # fmt: skip
    before = replace(plan(), decisions=tuple(full))
    assert with_consequences(named(before), curves, NO_BIAS) == before


def test_an_edit_is_restated_with_the_numbers_that_follow_from_it() -> None:
    first, second, third = plan().decisions
    edited = Plan(
        (
            replace(first, format="dense"),
            replace(second, format="low_rank", rank=3),
            replace(third, rank=5),
        ),
        99.0,
        {"method": "svd,other"},
    )
    said = with_consequences(named(edited), [curve(site) for site in SITES], NO_BIAS)
    dense, low_rank, smaller = said.decisions
    assert (dense.rank, dense.stored, dense.predicted_loss) == (8, 96, 0.0)
    assert low_rank.stored == 3 * (4 + 8)
    assert low_rank.predicted_loss == float(curve(SITES[1]).losses[0]), "as at rank 2"
    assert smaller.stored == 5 * (12 + 8 - 5)
    assert smaller.predicted_loss == float(curve(SITES[2]).losses[1]), "as at rank 4"
    total = dense.predicted_loss + low_rank.predicted_loss + smaller.predicted_loss
    assert said.predicted_loss == pytest.approx(total)


def test_a_cut_of_the_dense_rank_is_not_taken_for_the_dense_matrix() -> None:
    """A tensor train's largest bond, and an MLP's width, may be as large as a matrix's rank."""
    whole = curve(SITES[0])
    alike = replace(whole, ranks=torch.tensor([2, 4, 8, 8]))
    first, *others = plan().decisions
    said = with_consequences(Plan((replace(first, rank=8), *others), 0.0, {}), [alike], NO_BIAS)
    assert said["a.q"].predicted_loss == float(alike.losses[2]) > 0


def test_a_bias_follows_from_the_method() -> None:
    first, second, third = plan().decisions
    edited = Plan(
        (replace(first, format="dense", bias=True), replace(second, format="pivoted"), third),
        0.0,
        {"method": "pca,svd"},
    )
    said = with_consequences(named(edited), [], {"pca": True, "svd": False})
    assert [(one.method, one.bias) for one in said.decisions] == [
        ("", False),
        ("pca", True),
        ("svd", False),
    ]


def test_a_format_that_does_not_exist_is_named() -> None:
    first, *others = plan().decisions
    wrong = Plan((replace(first, format="sparse"), *others), 0.0, {})
    with pytest.raises(
        SpectrimError, match="no format named 'sparse'; formats: .*low_rank, .*pivoted"
    ):
        with_consequences(wrong, [curve(site) for site in SITES], NO_BIAS)


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    with pytest.raises(SpectrimError) as raised:
        Plan.read(missing)
    assert str(raised.value) == f"no plan at {missing}; shrink writes plan.json into its output"
    file, said = tmp_path / "plan.json", json.loads(plan().to_json())
    assert refused(tmp_path, "pivoted").startswith(f"{file} is not a plan (Expecting value")
    assert refused(tmp_path, []).startswith(f"{file} is not a plan (")
    assert refused(tmp_path, {}) == f"{file} is not a plan ('decisions'); expected plan.json"
    assert (
        refused(tmp_path, {**said, "version": 9}) == f"{file} is a plan of version 9; this reads 2"
    )
    said["decisions"][0]["rank"] = "4"
    assert "(rank of a.q is '4' and no whole number); expected plan.json" in refused(tmp_path, said)
    del said["decisions"][0]["rank"]
    assert refused(tmp_path, said) == f"{file} is not a plan ('rank'); expected plan.json"


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank", True), ("group", "a"), ("group", None), ("bits", None), ("predicted_loss", "x"),
     ("block", "x"), ("format", 5), ("symmetric", 1)],
)  # fmt: skip
def test_a_field_of_another_kind_is_refused(tmp_path: Path, field: str, value: object) -> None:
    said = json.loads(plan().to_json())
    said["decisions"][0][field] = value
    assert f"({field} of a.q is {value!r} and " in refused(tmp_path, said)


@pytest.mark.parametrize(("cuts", "points"), [(1, 64), (5, 64), (64, 64), (65, 64), (1000, 64)])
def test_a_thinned_curve_keeps_its_ends_and_its_order(cuts: int, points: int) -> None:
    whole = Curve((SITES[0],), torch.arange(1, cuts + 1), torch.arange(cuts).double(),
                  torch.linspace(1, 0, cuts))  # fmt: skip
    found = thin(whole, points)
    assert len(found["ranks"]) == min(cuts, points)
    assert (found["ranks"][0], found["ranks"][-1]) == (1, cuts)
    assert found["ranks"] == sorted(set(found["ranks"]))
    assert found["losses"] == sorted(found["losses"], reverse=True)
