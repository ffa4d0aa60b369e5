"""Every family from a model folder to a smaller model folder that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import spectrim
from spectrim.formats import FactoredLinear, formats
from spectrim.model import sources
from spectrim.model.architectures import architecture_of
from spectrim.model.sites import bias, find, module, replace, tied
from spectrim.model.weights import Weights, quiet
from spectrim.verbs.inspect import inspect
from tiny_folders import change_tensors, starve_expert
from tiny_models import FAMILIES, assert_generates_alike, build_empty, logits, tokens, unpack
from tiny_runs import (
    Made,
    equal,
    family_folder,
    files,
    from_pretrained,
    load,
    make,
    plan_of,
    recipe,
    saved_again,
    shrink,
    stored,
    write_text,
)


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a family's tiny model at 70 %, made once for all tests of this file."""
    return make(request.param, tmp_path_factory.mktemp(request.param))


def test_some_sites_are_factored(made: Made) -> None:
    assert len(made.factored()) > 3
    model = from_pretrained(made, made.small)
    for decision in made.factored():
        assert isinstance(model.get_submodule(decision.site), FactoredLinear)


def test_loaded_gives_the_logits_of_the_model_replaced_in_memory(made: Made) -> None:
    held, model = stored(made.small), load(made.source)
    if any(".experts." in one.site for one in made.factored()):
        unpack(model)  # packed and single experts add up in one order, but not in one kernel
    for one in made.factored():
        parts = {
            name.removeprefix(one.site + "."): tensor
            for name, tensor in held.items()
            if name.startswith(one.site + ".")
        }
        new = formats.get(one.format)(one.in_features, one.out_features, one.rank, "bias" in parts)
        new.load_state_dict(parts)
        replace(model, one.site, new)
    loaded = from_pretrained(made, made.small)
    assert torch.equal(logits(loaded, tokens()), logits(model.eval(), tokens()))


def test_what_is_not_factored_keeps_its_bits(made: Made) -> None:
    before = load(made.source)
    unpack(before)
    after = from_pretrained(made, made.small)
    unpack(after)
    sites = {one.site for one in made.factored()}
    kept = {
        name: tensor
        for name, tensor in before.state_dict().items()
        if name.rpartition(".")[0] not in sites or name.endswith(".bias")
    }
    found = after.state_dict()
    assert equal(kept, {name: found[name] for name in kept})


def test_saved_again_it_is_the_same(made: Made, tmp_path: Path) -> None:
    saved_again(made, tmp_path)
    said = [json.loads((at / "config.json").read_text()) for at in (made.small, tmp_path)]
    assert said[0]["quantization_config"] == said[1]["quantization_config"]


def test_biases_survive(made: Made) -> None:
    before, held = load(made.source), stored(made.small)
    unpack(before)
    biased = {
        f"{one.site}.bias": bias(before.get_submodule(one.site))
        for one in made.factored()
        if bias(before.get_submodule(one.site)) is not None
    }
    assert equal(biased, {name: held[name] for name in biased})
    assert not {f"{one.site}.bias" for one in made.factored()} & held.keys() - biased.keys()


def test_ties_stay_and_are_stored_once(made: Made) -> None:
    before, after = load(made.source), from_pretrained(made, made.small)
    outside = tuple(f"{stack.path}." for stack in architecture_of(before.config).stacks)
    assert tied(after) == tied(before)
    names = [
        {name for name in stored(folder) if not name.startswith(outside)}
        for folder in (made.source, made.small)
    ]
    assert len(names[0]) == len(names[1])
    if tied(after):
        assert after.get_input_embeddings().weight is after.get_output_embeddings().weight


def test_the_files_hold_no_more_linear_numbers_than_allowed(made: Made) -> None:
    inside = [site for site in find(build_empty(made.family)) if site.block >= 0]
    dense = sum(site.out_features * site.in_features for site in inside)
    held = stored(made.small)
    paths = {site.name for site in inside}
    packed = sum(t.numel() for name, t in held.items() if name.endswith(("gate_up_proj", "_proj")))
    numbers = packed + sum(
        tensor.numel()
        for name, tensor in held.items()
        if name.rpartition(".")[0] in paths
        and not name.endswith(".bias")
        and tensor.is_floating_point()
    )
    assert numbers == sum(one.stored for one in plan_of(made.small).decisions)
    assert 0.6 * dense < numbers <= 0.7 * dense


def test_inspecting_says_what_the_plan_says(made: Made) -> None:
    found = inspect(str(made.small), made.folder / "cache")["sites"]
    said = {one["site"]: (one["format"], one["rank"], one["stored"]) for one in found}
    for one in plan_of(made.small).decisions:
        assert said.pop(one.site) == (one.format, one.rank, one.stored)
    assert {one["role"] for one in found if one["site"] in said} <= {"embed", "head"}


def test_generation_with_a_cache_equals_that_without(made: Made) -> None:
    assert_generates_alike(from_pretrained(made, made.small))


def test_keeping_everything_changes_nothing(made: Made) -> None:
    whole = shrink(recipe(made.source, made.text, "100% of linear"), made.folder / "whole")
    before = Weights(sources.resolve(str(made.source), made.folder / "cache").folder)
    assert equal(stored(whole), before.read(before.names()))
    said = [json.loads((at / "config.json").read_text()) for at in (whole, made.source)]
    assert said[0] == said[1]
    assert torch.equal(
        logits(from_pretrained(made, whole), tokens()),
        logits(from_pretrained(made, made.source), tokens()),
    )


# single cases


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_type_of_every_tensor_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama", dtype=dtype)

    def in_float32(held: dict[str, Tensor]) -> None:
        name = "model.layers.1.input_layernorm.weight"
        held[name] = held[name].float() * (1 + 1e-4)

    change_tensors(source, in_float32)
    text = write_text(tmp_path / "text.txt")
    small = shrink(recipe(source, text, refine="on"), tmp_path / "small")
    before, after = stored(source), stored(small)
    assert equal(
        {name: before[name] for name in before.keys() & after.keys()},
        {name: after[name] for name in before.keys() & after.keys()},
    )
    types = {t.dtype for name, t in after.items() if name not in before}
    assert types == {dtype, torch.int32}
    assert logits(load(small), tokens()).isfinite().all()


def test_a_head_stored_apart_stays_apart(tmp_path: Path) -> None:
    """The config may say tied where the files hold another head."""
    source = family_folder(tmp_path / "source", "gemma2")
    assert "lm_head.weight" not in stored(source)

    def untie(held: dict[str, Tensor]) -> None:
        held["lm_head.weight"] = held["model.embed_tokens.weight"].flip(0).clone()

    change_tensors(source, untie)
    text = write_text(tmp_path / "text.txt")
    small = shrink(recipe(source, text), tmp_path / "small")
    assert torch.equal(stored(small)["lm_head.weight"], stored(source)["lm_head.weight"])


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_an_expert_that_no_token_reached_stays_dense(family: str, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", family)
    change_tensors(source, starve_expert)
    text = write_text(tmp_path / "text.txt")
    plan = plan_of(small := shrink(recipe(source, text, "55% of linear"), tmp_path / "small"))
    before = load(source)
    unpack(before)
    held = stored(small)
    starved = [one for one in plan.decisions if one.block == 0 and one.role.startswith("expert1_")]
    assert [one.format for one in starved] == ["dense", "dense"]
    for one in starved:
        assert torch.equal(held[f"{one.site}.weight"], before.get_submodule(one.site).weight)
    curves = json.loads((small / "curves.json").read_text())
    assert [len(curves[one.site]["ranks"]) for one in starved] == [1, 1]
    others = [one for one in plan.decisions if one.block == 0 and "expert" in one.role]
    assert [one.format for one in others].count("pivoted") > 2


def test_experts_stay_packed_in_a_block_without_factored_ones(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "mixtral")
    text = write_text(tmp_path / "text.txt")
    asked = recipe(source, text, "75% of linear", protect=["layers.1.*expert"])
    small = shrink(asked, tmp_path / "small")
    before, held = load(source).state_dict(), stored(small)
    packed, single = "model.layers.1.mlp.experts.", "model.layers.0.mlp.experts.0."
    assert [name for name in held if name.startswith(single)]
    assert equal(
        {name: tensor for name, tensor in before.items() if name.startswith(packed)},
        {name: tensor for name, tensor in held.items() if name.startswith(packed)},
    )
    factored = [one for one in plan_of(small).decisions if one.block == 1 and one.format != "dense"]
    assert factored, "attention beside the packed experts"
    from_pretrained(Made("mixtral", source, text, small), small)


def test_from_python_it_is_one_call(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama")
    text = write_text(tmp_path / "text.txt")
    with quiet():
        model = spectrim.shrink(
            str(source),
            keep="70% of linear",
            calibration=str(text),
            tokens="12x32",
            output=tmp_path / "small",
            cache=tmp_path / "cache",
        )
    assert torch.equal(logits(model, tokens()), logits(load(tmp_path / "small"), tokens()))
    scores = json.loads((tmp_path / "small" / "scores.json").read_text())
    assert [row["label"] for row in scores["rows"]] == ["dense", "small", "int8", "int4"]
    assert (tmp_path / "small" / "report.html").stat().st_size > 1000


def test_the_same_recipe_gives_the_same_bits(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama")
    text = write_text(tmp_path / "text.txt")
    results = []
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        results.append(files(shrink(recipe(source, text), tmp_path / place / "small")))
    assert results[0] == results[1]


def test_a_protected_site_keeps_its_matrix(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "gpt2")
    text = write_text(tmp_path / "text.txt")
    asked = recipe(source, text, "90% of linear", protect=["^qkv$", "block 2"])
    small = shrink(asked, tmp_path / "small")
    kept = {one.site for one in plan_of(small).decisions if one.format == "dense"}
    model = build_empty("gpt2")
    wanted = {site.name for site in find(model) if site.role == "qkv" or site.block == 2}
    assert wanted <= kept
    assert all(module(model, site) is not None for site in find(model))
