"""Maps that share a basis, from a recipe to a model that transformers loads and runs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from spectrim.formats.shared_follower import SharedFollower
from spectrim.metrics.multiply_adds import multiply_adds
from spectrim.metrics.size import bytes_on_disk, size
from spectrim.plan import Decision
from spectrim.report.folder import read
from spectrim.report.page import page
from spectrim.verbs.inspect import inspect
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

PLAIN, AWARE = "shared_basis", "loss_aware_shared_basis"
CASES = {
    "llama": (PLAIN, "55% of linear", {"q", "gate"}),
    "qwen2": (AWARE, "75% of linear", {"q", "gate"}),
    "opt": (AWARE, "85% of linear", {"q"}),
    "bart": (AWARE, "85% of linear", {"encoder_q", "decoder_q", "decoder_cross_k"}),
    "t5_gated": (PLAIN, "75% of linear", {"encoder_q", "decoder_q", "decoder_cross_k"}),
    "llama_biased": (f"{AWARE},truncated_svd", "60% of linear", {"q"}),
}


def run(family: str, folder: Path, method: str, keep: str, **options: object) -> Made:
    source = family_folder(folder / "source", family)
    text = write_text(folder / "text.txt")
    asked = recipe(source, text, keep, method=method, **options)
    return Made(family, source, text, shrink(asked, folder / "small"))


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    method, keep, _ = CASES[request.param]
    return run(request.param, tmp_path_factory.mktemp(request.param), method, keep)


def sharing(made: Made) -> list[Decision]:
    return [one for one in made.factored() if one.format.startswith("shared_")]


def test_groups_are_cut_as_the_family_has_them(made: Made) -> None:
    owners = {one.role for one in sharing(made) if one.format == "shared_owner"}
    assert CASES[made.family][2] <= owners
    assert not {one.role for one in sharing(made)} & {"o", "down", "decoder_cross_q", "cross_q"}
    plan = plan_of(made.small)
    for one in sharing(made):
        if one.format == "shared_follower":
            owner = plan[one.owner]
            assert owner.format == "shared_owner" and owner.rank == one.rank
            assert owner.site.rpartition(".")[0] == one.site.rpartition(".")[0]
            assert one.predicted_loss == 0.0


def test_what_is_counted_is_what_the_files_hold(made: Made) -> None:
    plan, held = plan_of(made.small), stored(made.small)
    for one in sharing(made):
        numbers = sum(
            tensor.numel()
            for name, tensor in held.items()
            if name.startswith(one.site + ".") and not name.endswith(".bias")
        )
        assert numbers == one.stored
    keep = float(CASES[made.family][1].partition("%")[0]) / 100
    whole = sum(one.dense for one in plan.decisions)
    assert (keep - 0.1) * whole < sum(one.stored for one in plan.decisions) <= keep * whole
    model = from_pretrained(made, made.small)
    counted = size(model, made.small)
    assert counted.linear_numbers == sum(one.stored for one in plan.decisions)
    assert counted.bytes_on_disk == bytes_on_disk(made.small)
    followers = [one for one in sharing(made) if one.format == "shared_follower"]
    again = sum(one.rank * one.in_features for one in followers)
    assert multiply_adds(model).linear == counted.linear_numbers + again


def test_saved_again_it_is_the_same(made: Made, tmp_path: Path) -> None:
    saved_again(made, tmp_path)


def test_it_gives_the_logits_of_the_matrices_multiplied_out(made: Made) -> None:
    small, model = from_pretrained(made, made.small), load(made.source)
    for one in made.factored():
        dense, module = model.get_submodule(one.site), small.get_submodule(one.site)
        dense.weight = nn.Parameter(module.dense().detach())
    torch.testing.assert_close(
        logits(small, tokens()), logits(model, tokens()), rtol=1e-4, atol=1e-4
    )


def test_a_copy_runs_on_its_own_bases(made: Made) -> None:
    model = from_pretrained(made, made.small)
    other, before = copy.deepcopy(model), logits(model, tokens())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(other, tokens()), before)


def test_generation_with_a_cache_equals_that_without(made: Made) -> None:
    assert_generates_alike(from_pretrained(made, made.small))


def test_inspection_and_report_show_it(made: Made) -> None:
    said = {one["site"]: one for one in inspect(str(made.small), made.folder / "cache")["sites"]}
    shown = page(read(made.small, unmeasured=True))
    for one in made.factored():
        assert said[one.site]["stored"] == one.stored
        assert one.site in shown


def test_the_plan_replayed_gives_the_same(made: Made) -> None:
    method, keep, _ = CASES[made.family]
    asked = recipe(made.source, made.text, keep, method=method)
    again = shrink(asked, made.folder / "again", made.small / "plan.json")
    assert equal(stored(made.small), stored(again))


# single cases


@pytest.mark.parametrize("family", ["gpt2", "falcon"])
def test_fused_maps_are_left_to_other_methods(family: str, tmp_path: Path) -> None:
    made = run(family, tmp_path, f"{AWARE},loss_aware_svd", "70% of linear")
    assert made.factored() and not sharing(made)


def test_refinement_leaves_shared_bases_alone(tmp_path: Path) -> None:
    methods = f"{PLAIN},truncated_svd"
    folders = [tmp_path / "with", tmp_path / "without"]
    for folder in folders:
        folder.mkdir()
    one = run("llama", folders[0], methods, "75% of linear", refine="on")
    other = run("llama", folders[1], methods, "75% of linear", refine="off")
    sites = tuple(f"{decision.site}." for decision in sharing(one))
    assert sites
    held, before = stored(one.small), stored(other.small)
    for name in held:
        if name.startswith(sites):
            assert torch.equal(held[name], before[name])
    assert not equal(held, before)


def test_biases_of_followers_make_up_for_the_mean(tmp_path: Path) -> None:
    made = run("qwen2", tmp_path, PLAIN, "70% of linear", centre=True)
    assert any(one.format == "shared_follower" and one.bias for one in made.factored())
    held = stored(made.small)
    for one in sharing(made):
        assert held[f"{one.site}.bias"].any()
    model = from_pretrained(made, made.small)
    assert logits(model, tokens()).isfinite().all()


def test_allocators_that_measure_try_shared_bases(tmp_path: Path) -> None:
    made = run("llama", tmp_path, AWARE, "70% of linear", allocator="measured")
    assert sharing(made)


def test_training_moves_the_basis_by_all_who_read_it(tmp_path: Path) -> None:
    made = run("llama", tmp_path, AWARE, "70% of linear")
    model = from_pretrained(made, made.small).train()
    follower = next(one for one in model.modules() if isinstance(one, SharedFollower))
    follower.coefficients.requires_grad_()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert follower.coefficients.grad is not None and follower.coefficients.grad.any()


def test_who_owns_the_basis_follows_from_an_edited_plan(tmp_path: Path) -> None:
    made = run("llama", tmp_path, AWARE, "60% of linear")
    plan = plan_of(made.small)
    edited = tuple(replace(one, owner="") for one in plan.decisions)
    file = tmp_path / "edited.json"
    file.write_text(replace(plan, decisions=edited).to_json())
    asked = recipe(made.source, made.text, "60% of linear", method=AWARE)
    again = shrink(asked, tmp_path / "other", file)
    assert plan_of(again).decisions == plan.decisions
    assert equal(stored(made.small), stored(again))


def test_beside_single_cuts_the_prediction_is_no_worse(tmp_path: Path) -> None:
    losses = []
    for method in ("loss_aware_svd", f"loss_aware_svd,{AWARE}"):
        (tmp_path / method).mkdir()
        with envelope_kept():
            made = run(
                "llama_biased", tmp_path / method, method, "50% of linear", format="low_rank"
            )
        losses.append(plan_of(made.small).predicted_loss)
    assert losses[1] <= losses[0] * 1.0001
