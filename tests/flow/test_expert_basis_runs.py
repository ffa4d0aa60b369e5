"""One basis for the experts of a block, and what becomes of experts that read no token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from spectrim.errors import SpectrimError
from spectrim.metrics.size import size
from spectrim.plan import Decision, Plan
from spectrim.report import notes
from spectrim.verbs.inspect import inspect
from spectrim.verbs.profile import Asked, profile
from tiny_folders import change_tensors, starve_expert
from tiny_models import logits, tokens, unpack
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

METHOD = "expert_basis"
KEEP = {"mixtral": "70% of linear", "qwen3_moe": "90% of linear"}


def run(family: str, folder: Path, **options: object) -> Made:
    source = family_folder(folder / "source", family)
    text = write_text(folder / "text.txt")
    asked = recipe(source, text, KEEP[family], **{"method": METHOD, **options})
    return Made(family, source, text, shrink(asked, folder / "small"))


@pytest.fixture(scope="module", params=KEEP)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return run(request.param, tmp_path_factory.mktemp(request.param), rank_multiple=1)


def of_block(plan: Plan, block: int) -> list[Decision]:
    return [one for one in plan.decisions if one.block == block and one.role.endswith("_gate_up")]


def test_the_experts_of_a_block_share_one_basis(made: Made) -> None:
    assert {one.role.partition("_")[2] for one in made.factored()} == {"gate_up"}
    for block in {one.block for one in made.factored()}:
        first, *others = of_block(plan_of(made.small), block)
        assert first.format == "shared_owner" and first.predicted_loss > 0
        assert {one.format for one in others} == {"shared_follower"}
        assert {one.owner for one in others} == {first.site}
        assert {one.rank for one in others} == {first.rank}


def test_what_is_counted_is_what_the_files_hold(made: Made) -> None:
    plan, held = plan_of(made.small), stored(made.small)
    for one in made.factored():
        named = [t for name, t in held.items() if name.startswith(f"{one.site}.")]
        assert sum(tensor.numel() for tensor in named) == one.stored
    model = from_pretrained(made, made.small)
    assert size(model, made.small).linear_numbers == sum(one.stored for one in plan.decisions)
    said = {one["site"]: one["stored"] for one in inspect(str(made.small), made.folder)["sites"]}
    assert all(said[one.site] == one.stored for one in made.factored())


def test_saved_again_it_is_the_same(made: Made, tmp_path: Path) -> None:
    saved_again(made, tmp_path)


def test_it_gives_the_logits_of_the_matrices_multiplied_out(made: Made) -> None:
    small, model = from_pretrained(made, made.small), load(made.source)
    unpack(model)
    for one in made.factored():
        matrix = small.get_submodule(one.site).dense().detach()
        model.get_submodule(one.site).weight = nn.Parameter(matrix)
    torch.testing.assert_close(
        logits(small, tokens()), logits(model, tokens()), rtol=1e-4, atol=1e-4
    )


def test_the_plan_replayed_gives_the_same(made: Made) -> None:
    again = shrink(recipe(made.source, made.text), made.folder / "again", made.small / "plan.json")
    assert equal(stored(made.small), stored(again))


def test_ranks_of_one_basis_are_one(made: Made, tmp_path: Path) -> None:
    said = json.loads((made.small / "plan.json").read_text())
    first = next(one for one in said["decisions"] if one["format"] == "shared_owner")
    first["rank"] -= 1
    (tmp_path / "edited.json").write_text(json.dumps(said))
    with pytest.raises(SpectrimError, match="expert_basis cuts .* together; give all of them the"):
        shrink(recipe(made.source, made.text), tmp_path / "other", tmp_path / "edited.json")


@pytest.mark.parametrize("expert", [0, 1])
@pytest.mark.parametrize("family", KEEP)
def test_an_expert_without_tokens_is_left_out_and_the_report_says_so(
    family: str, expert: int, tmp_path: Path
) -> None:
    source = family_folder(tmp_path / "source", family)
    change_tensors(source, lambda held: starve_expert(held, expert))
    text = write_text(tmp_path / "text.txt")
    options = {"method": METHOD, "protect": ["block [12]"]}
    small = shrink(recipe(source, text, "97% of linear", **options), tmp_path / "small")
    before, held, plan = load(source), stored(small), plan_of(small)
    unpack(before)
    found = plan.about["found"]
    left = [one for one in of_block(plan, 0) if one.site in found["without_tokens"]]
    assert any(f".experts.{expert}." in one.site for one in left)
    assert {one.format for one in left} == {"dense"}
    for one in left:
        assert torch.equal(held[f"{one.site}.weight"], before.get_submodule(one.site).weight)
    first, *others = [one for one in of_block(plan, 0) if one not in left]
    assert first.format == "shared_owner" and others
    assert {one.format for one in others} == {"shared_follower"}
    (said,) = notes.sentences({"found": found})
    assert said.startswith("No token of the calibration text came to ") and left[0].site in said
    again = shrink(recipe(source, text), tmp_path / "again", small / "plan.json")
    assert equal(held, stored(again))


def test_where_all_experts_read_something_nothing_is_said(made: Made) -> None:
    found = plan_of(made.small).about["found"]
    assert "without_tokens" not in found and notes.sentences({"found": found}) == []


def test_of_many_maps_without_tokens_some_are_named() -> None:
    (many,) = notes.sentences({"found": {"without_tokens": [f"site{at}" for at in range(9)]}})
    assert many.startswith("No token of the calibration text came to 9 linear maps, which keep")
    assert many.endswith(": site0, site1, site2, site3, site4, site5 and 3 more.")
    (one,) = notes.sentences({"found": {"without_tokens": ["site0"]}})
    assert one.endswith(" came to 1 linear map, which keeps its weights: site0.")


def test_beside_single_cuts_the_prediction_is_no_worse(tmp_path: Path) -> None:
    losses = []
    for method in ("loss_aware_svd", f"loss_aware_svd,{METHOD}"):
        (tmp_path / method).mkdir()
        with envelope_kept():
            made = run("mixtral", tmp_path / method, method=method, format="low_rank")
        losses.append(plan_of(made.small).predicted_loss)
    assert losses[1] <= losses[0] * 1.0001


def test_a_profile_has_one_name_for_experts_that_are_cut_together(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "mixtral")
    text = write_text(tmp_path / "text.txt")
    asked = recipe(source, text, method=METHOD)
    for by in ("site", "role"):
        found = profile(asked, tmp_path / by, Asked(by=by), cache=tmp_path / "cache")
        assert {row["role"] for row in found["rows"]} == {"experts gate_up"}
