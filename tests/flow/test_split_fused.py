"""Fused q, k and v taken as three sites, from a recipe to a model that transformers loads."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, formats
from spectrim.job.opening import open_job
from spectrim.methods import methods
from spectrim.metrics.size import size
from spectrim.model.architectures import ARCHITECTURES, Place
from spectrim.model.fused import ROLE, Fused, fused_maps
from spectrim.model.sites import replace as put
from spectrim.model.sources import resolve
from spectrim.model.weights import quiet
from spectrim.verbs.inspect import inspect
from spectrim.verbs.profile import Asked, profile
from spectrim.verbs.shrink import shrink as measured
from spectrim.walk.statistics import Statistics, block_statistics
from tiny_models import FAMILIES, assert_generates_alike, logits, model_type, tokens
from tiny_runs import (
    Made,
    equal,
    family_folder,
    from_pretrained,
    kept,
    load,
    plan_of,
    recipe,
    saved_again,
    shrink,
    stored,
    write_text,
)

SPLIT = [name for name in FAMILIES if ARCHITECTURES[model_type(name)].fused]
KEEP = "55% of linear"


@pytest.fixture(scope="module", params=SPLIT)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return run(request.param, tmp_path_factory.mktemp(request.param), refine="on")


def run(family: str, folder: Path, **options: object) -> Made:
    source = family_folder(folder / "source", family)
    text = write_text(folder / "text.txt")
    asked = recipe(source, text, KEEP, rank_multiple=1, split_fused=True, **options)
    return Made(family, source, text, shrink(asked, folder / "small"))


def split_maps(model: PreTrainedModel) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Fused)]


def parts(made: Made) -> list[str]:
    return [one.site for one in made.factored() if one.site.endswith((".q", ".k", ".v"))]


def test_the_parts_are_factored_one_by_one(made: Made) -> None:
    plan = plan_of(made.small)
    roles = [one.role for one in plan.decisions]
    assert roles.count("q") == roles.count("k") == roles.count("v") == 3
    assert ROLE not in roles
    model = from_pretrained(made, made.small)
    assert parts(made)
    for site in parts(made):
        assert isinstance(model.get_submodule(site), FactoredLinear)
    wholes = {site.rpartition(".")[0] for site in parts(made)}
    assert set(split_maps(model)) == wholes


def test_what_is_counted_is_what_the_files_hold(made: Made) -> None:
    plan, held = plan_of(made.small), stored(made.small)
    for site in parts(made):
        numbers = sum(
            tensor.numel()
            for name, tensor in held.items()
            if name.startswith(f"{site}.") and name != f"{site}.bias" and tensor.is_floating_point()
        )
        assert numbers == plan[site].stored
    model = from_pretrained(made, made.small)
    assert size(model, made.small).linear_numbers == sum(one.stored for one in plan.decisions)


def test_loaded_gives_the_logits_of_the_model_replaced_in_memory(made: Made) -> None:
    held, model = stored(made.small), load(made.source)
    loaded = from_pretrained(made, made.small)
    for path in split_maps(loaded):
        put(model, path, loaded.get_submodule(path))
    for one in made.factored():
        if one.site not in parts(made):
            start = f"{one.site}."
            own = {k.removeprefix(start): v for k, v in held.items() if k.startswith(start)}
            new = formats.get(one.format)(
                one.in_features, one.out_features, one.rank, "bias" in own
            )
            new.load_state_dict(own)
            put(model, one.site, new)
    assert torch.equal(logits(loaded, tokens()), logits(model.eval(), tokens()))


def test_dense_parts_and_biases_are_those_of_the_fused_map(made: Made) -> None:
    before, after = load(made.source), from_pretrained(made, made.small)
    for path in split_maps(after):
        whole, split = before.get_submodule(path), after.get_submodule(path)
        if whole.bias is not None:
            biases = [part.bias for part in (split.q, split.k, split.v)]
            assert torch.equal(split.layout.joined(biases), whole.bias)
    for path in set(fused_maps(before)) - set(split_maps(after)):
        assert torch.equal(before.get_submodule(path).weight, after.get_submodule(path).weight)


def test_saved_again_it_is_the_same(made: Made, tmp_path: Path) -> None:
    saved_again(made, tmp_path)


def test_generation_with_a_cache_equals_that_without(made: Made) -> None:
    assert_generates_alike(from_pretrained(made, made.small))


def test_inspecting_says_what_the_plan_says(made: Made) -> None:
    found = inspect(str(made.small), made.folder / "cache")["sites"]
    said = {one["site"]: (one["format"], one["rank"], one["stored"]) for one in found}
    wholes = {site.rpartition(".")[0] for site in parts(made)}
    for one in plan_of(made.small).decisions:
        if one.format != "dense" or one.site.rpartition(".")[0] in wholes:
            assert said.pop(one.site) == (one.format, one.rank, one.stored)


def test_the_plan_replayed_gives_the_same(made: Made) -> None:
    asked = recipe(made.source, made.text)  # what the plan was made with stands in the plan
    again = shrink(asked, made.folder / "again", made.small / "plan.json")
    assert equal(stored(made.small), stored(again))


@pytest.mark.parametrize("method", methods.names())
@pytest.mark.parametrize("made", ["gpt2", "falcon_new"], indirect=True)
def test_every_method_runs(made: Made, method: str) -> None:
    options = {"method": method, "refine": "off", "split_fused": True}
    asked = recipe(made.source, made.text, "85% of linear", **options)
    try:
        small = shrink(asked, made.folder / "other")
    except SpectrimError as error:  # what a method does not reach cannot be made smaller by it
        assert methods.constant(method, "FORMAT") is not None and "cannot keep" in str(error)
        return
    assert logits(from_pretrained(made, small), tokens()).isfinite().all()
    if method.endswith("shared_basis"):
        owners = {one.role for one in plan_of(small).decisions if one.format == "shared_owner"}
        assert owners == {"q"}


# single cases


def test_kept_whole_nothing_is_split_and_everything_kept_is_the_same(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "falcon_new")
    text = write_text(tmp_path / "text.txt")
    asked = recipe(source, text, KEEP, split_fused=False)
    whole = shrink(asked, tmp_path / "whole")
    assert ROLE in {one.role for one in plan_of(whole).decisions}
    assert not split_maps(load(whole))
    asked = recipe(source, text, "100% of linear", split_fused=True)
    assert equal(stored(shrink(asked, tmp_path / "all")), stored(source))
    assert len(kept(tmp_path / "cache", "statistics")) == 2


@pytest.mark.parametrize("family", ["gpt2", "falcon_new"])
def test_statistics_of_the_parts_are_blocks_of_those_of_the_whole(
    family: str, tmp_path: Path
) -> None:
    source = family_folder(tmp_path / "source", family)
    text = write_text(tmp_path / "text.txt")
    found: dict[str, Statistics] = {}
    for split in (False, True):
        job = open_job(
            recipe(source, text), resolve(str(source), tmp_path), tmp_path, lambda *_: None
        )
        if split:
            job.split_fused()
        found |= block_statistics(job.statistics(), Place(job.architecture.stacks[0], 1))
    path = fused_maps(load(source))[1]
    fused = job.model.get_submodule(path)
    whole = found[path]
    rows = fused.layout.parted(torch.arange(float(len(whole.gradient_moment))))
    for part, own in zip("qkv", rows, strict=True):
        one, at = found[f"{path}.{part}"], own.long()
        assert one.tokens == whole.tokens
        torch.testing.assert_close(one.input_moment, whole.input_moment, rtol=1e-3, atol=1e-4)
        block = whole.gradient_moment[at][:, at]
        scale = float(block.abs().max())
        torch.testing.assert_close(one.gradient_moment, block, rtol=1e-3, atol=1e-4 * scale)


def test_a_protected_part_stays_dense_beside_the_others(tmp_path: Path) -> None:
    made = run("gpt2", tmp_path, protect=["^k$"])
    assert {site.rpartition(".")[2] for site in parts(made)} == {"q", "v"}
    before, after = load(made.source), from_pretrained(made, made.small)
    for path in split_maps(after):
        rows = before.get_submodule(path).weight.T[48:96]
        assert torch.equal(after.get_submodule(path).k.weight, rows)


def test_biases_make_up_for_the_mean_of_every_part(tmp_path: Path) -> None:
    made = run("falcon", tmp_path, centre=True)
    held = stored(made.small)
    assert parts(made) and all(held[f"{site}.bias"].any() for site in parts(made))
    assert logits(from_pretrained(made, made.small), tokens()).isfinite().all()


def test_a_plan_of_whole_maps_does_not_fit_split_ones(tmp_path: Path) -> None:
    made = run("gpt2", tmp_path)
    plan = plan_of(made.small)
    whole = plan.about["recipe"]
    (stage,) = whole["stages"]
    about = {**plan.about, "recipe": {**whole, "stages": [_without(stage, "split_fused")]}}
    file = tmp_path / "edited.json"
    file.write_text(replace(plan, about=about).to_json())
    with pytest.raises(
        SpectrimError, match=r"c_attn.q is 48 x 48 in the plan and not in the model"
    ):
        shrink(recipe(made.source, made.text), tmp_path / "other", file)


def _without(stage: dict[str, dict[str, object]], option: str) -> dict[str, dict[str, object]]:
    return {
        name: {key: value for key, value in options.items() if key != option}
        for name, options in stage.items()
    }


def test_measuring_and_profiling_know_the_parts(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "gpt_neox")
    text = write_text(tmp_path / "text.txt")
    asked = recipe(source, text, "70% of linear", split_fused=True)
    with quiet():
        small = measured(asked, tmp_path / "small", cache=tmp_path / "cache", predictions=True)
        found = profile(asked, tmp_path / "profile", Asked(by="role"), cache=tmp_path / "cache")
    assert "query_key_value.q" in (small / "report.html").read_text()
    predicted = json.loads((small / "scores.json").read_text())["prediction"]
    assert all(isfinite(one) for one in predicted["measured"])
    assert {"q", "k", "v"} <= {row["role"] for row in found["rows"]}
