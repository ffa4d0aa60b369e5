"""Narrower MLPs: stock models where one width fits all blocks, and our checkpoints where not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear
from spectrim.job import stock
from spectrim.metrics.multiply_adds import multiply_adds
from spectrim.metrics.size import size
from spectrim.model.sites import find
from spectrim.model.weights import quiet
from spectrim.plan import Plan
from spectrim.report.card import write_card
from spectrim.verbs.inspect import inspect
from tiny_models import assert_generates_alike, logits, tokens
from tiny_runs import (
    Made,
    envelope_kept,
    equal,
    family_folder,
    files,
    from_pretrained,
    load,
    plan_of,
    recipe,
    shrink,
    stored,
    write_text,
)

WIDTHS = {
    "llama": ["intermediate_size"],
    "gpt2": ["n_inner"],
    "opt": ["ffn_dim"],
    "t5_gated": ["d_ff"],
    "bart": ["encoder_ffn_dim", "decoder_ffn_dim"],
    "falcon_alibi": ["ffn_hidden_size"],
}
OPTIONS = {"method": "neuron_selection", "allocator": "uniform", "refine": "off"}
PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
ids = torch.load(sys.argv[1])
for folder in sys.argv[2:]:
    both = "bart" in folder or "t5" in folder
    known = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
    model, report = known.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    given = {"decoder_input_ids": ids.flip(1)[:, :-3]} if both else {}
    with torch.no_grad():
        torch.save(model.eval()(input_ids=ids, **given, use_cache=False).logits, folder + ".pt")
assert not [name for name in sys.modules if name.startswith("spectrim")]
"""


def made_at(folder: Path, family: str, name: str, keep: str, **options: object) -> Made:
    source, text = folder / "source", folder / "text.txt"
    if not source.exists():
        folder.mkdir(exist_ok=True)
        family_folder(source, family)
        write_text(text)
    return Made(family, source, text, shrink(recipe(source, text, keep, **options), folder / name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one folder a family, where caches are shared by all tests."""
    return tmp_path_factory.mktemp("widths")


@pytest.fixture(scope="module")
def uniform(folder: Path) -> dict[str, Made]:
    """Return every family with MLPs of one width."""
    return {
        family: made_at(folder / family, family, "small", "80% of linear", **OPTIONS)
        for family in WIDTHS
    }


@pytest.fixture(scope="module", params=["llama", "gpt2", "opt", "t5", "bart"])
def uneven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a family with MLPs of several widths."""
    family = request.param
    options = {"method": "loss_aware_neuron_selection", "refine": "off", "rank_multiple": 1}
    return made_at(tmp_path_factory.mktemp(family), family, "small", "80% of linear", **options)


# stock models


def test_one_width_is_a_stock_model_that_needs_no_spectrim(
    uniform: dict[str, Made], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tokens(), folder / "ids.pt")
    small = [str(made.small) for made in uniform.values()]
    command = [sys.executable, "-W", "error", "-c", PLAIN, str(folder / "ids.pt"), *small]
    subprocess.run(command, check=True)
    for family, made in uniform.items():
        config = json.loads((made.small / "config.json").read_text())
        before = json.loads((made.source / "config.json").read_text())
        assert {key for key in config if config[key] != before.get(key)} == set(WIDTHS[family])
        assert not [name for name in stored(made.small) if name.endswith(("rows", "columns"))]
    monkeypatch.setattr(stock, "widths", lambda job: {})
    for family in ("llama", "gpt2"):  # the latter with biases and transposed matrices
        made = uniform[family]
        own = made_at(made.folder, family, "own", "80% of linear", **OPTIONS)
        assert "quantization_config" in json.loads((own.small / "config.json").read_text())
        expected = logits(from_pretrained(own, own.small), tokens())
        torch.testing.assert_close(torch.load(f"{made.small}.pt"), expected)


def test_one_width_stores_what_the_plan_says(uniform: dict[str, Made]) -> None:
    for made in uniform.values():
        decisions = plan_of(made.small).decisions
        said = sum(one.stored for one in decisions)
        assert said <= 0.8 * sum(one.dense for one in decisions)
        model = load(made.small)
        assert size(model).linear_numbers == multiply_adds(model).linear == said
        found = inspect(str(made.small), made.folder / "cache")["sites"]
        inside = [one for one in found if one["block"] >= 0]
        assert {one["format"] for one in inside} == {"dense", "fewer_outputs", "fewer_inputs"}
        assert sum(one["stored"] for one in inside) == said


def test_the_card_of_a_stock_model_asks_for_no_import(uniform: dict[str, Made]) -> None:
    text = write_card(uniform["llama"].small).read_text()
    assert "import spectrim" not in text and "mport `spectrim`" not in text
    assert "library_name: transformers" in text


def test_a_stock_model_can_be_made_smaller_again(uniform: dict[str, Made]) -> None:
    made = uniform["llama"]
    asked = recipe(made.small, made.text, "80% of linear", **OPTIONS)
    again = shrink(asked, made.folder / "again")
    widths = [load(at).config.intermediate_size for at in (made.source, made.small, again)]
    assert widths == sorted(set(widths), reverse=True)


def test_the_dense_block_of_a_mixture_gets_a_width_beside_its_experts(tmp_path: Path) -> None:
    made = made_at(tmp_path, "qwen3_moe", "small", "95% of linear", **OPTIONS)
    assert {one.role for one in made.factored()} == {"gate", "up", "down"}
    config = json.loads((made.small / "config.json").read_text())
    assert config["intermediate_size"] == made.factored()[0].rank
    assert config["moe_intermediate_size"] == 24 and "quantization_config" not in config
    assert logits(load(made.small), tokens()).isfinite().all()


# widths that differ


def test_widths_that_differ_load_through_our_plug_in(uneven: Made, tmp_path: Path) -> None:
    assert "quantization_config" in json.loads((uneven.small / "config.json").read_text())
    assert len({one.rank for one in uneven.factored()}) > 1
    one = from_pretrained(uneven, uneven.small)
    for decision in uneven.factored():
        assert isinstance(one.get_submodule(decision.site), FactoredLinear)
    with quiet():
        one.save_pretrained(tmp_path)
    other = from_pretrained(uneven, tmp_path)
    assert equal(one.state_dict(), other.state_dict())
    assert torch.equal(logits(one, tokens()), logits(other, tokens()))


def test_a_block_is_narrowed_in_all_its_maps(uneven: Made) -> None:
    ranks: dict[tuple[str, int], dict[str, int]] = {}
    for one in uneven.factored():
        stack = one.site.split(f".{one.block}.")[0]
        ranks.setdefault((stack, one.block), {})[one.role.split("_")[-1]] = one.rank
    for found in ranks.values():
        assert set(found) in ({"gate", "up", "down"}, {"up", "down"})
        assert len(set(found.values())) == 1


def test_counts_are_those_of_the_files(uneven: Made) -> None:
    decisions = plan_of(uneven.small).decisions
    said = sum(one.stored for one in decisions)
    assert said <= 0.8 * sum(one.dense for one in decisions)
    model = from_pretrained(uneven, uneven.small)
    assert size(model).linear_numbers == multiply_adds(model).linear == said
    found = inspect(str(uneven.small), uneven.folder / "cache")["sites"]
    assert sum(one["stored"] for one in found if one["block"] >= 0) == said
    paths = {site.name for site in find(model) if site.block >= 0}
    held = {n: t.numel() for n, t in stored(uneven.small).items() if n.rpartition(".")[0] in paths}
    numbers = {n: k for n, k in held.items() if not n.endswith((".bias", ".places"))}
    assert sum(numbers.values()) == said


def test_biases_are_cut_with_their_neurons(uneven: Made) -> None:
    model, dense = from_pretrained(uneven, uneven.small), load(uneven.source)
    for one in uneven.factored():
        now, before = (each.get_submodule(one.site).bias for each in (model, dense))
        assert (now is None) == (before is None)
        if now is not None and one.format == "fewer_outputs":
            assert len(now) == one.rank
            assert set(now.tolist()) <= set(before.tolist())
        elif now is not None:
            assert torch.equal(now, before)


def test_generation_with_a_cache_equals_that_without(uneven: Made) -> None:
    assert_generates_alike(from_pretrained(uneven, uneven.small))


def test_inspecting_a_stock_model_says_what_its_maps_were(uniform: dict[str, Made]) -> None:
    for made in uniform.values():
        plan = Plan.read(made.small / "plan.json")
        said = {
            one["site"]: one for one in inspect(str(made.small), made.folder / "cache")["sites"]
        }
        for one in plan.decisions:
            found = said[one.site]
            assert (found["out_features"], found["in_features"]) == (
                one.out_features, one.in_features,
            )  # fmt: skip
            assert (found["format"], found["stored"], found["dense"]) == (
                one.format, one.stored, one.dense,
            )  # fmt: skip


# beside other methods, and plans


def test_beside_another_method_and_refined(tmp_path: Path) -> None:
    options = {"method": "loss_aware_svd,neuron_selection", "refine": "on", "centre": True}
    with envelope_kept():
        made = made_at(tmp_path, "llama", "small", "60% of linear", **options)
    formats = {one.format for one in made.factored()}
    assert {"fewer_outputs", "fewer_inputs", "pivoted"} == formats
    model = from_pretrained(made, made.small)
    assert logits(model, tokens()).isfinite().all()
    for one in made.factored():  # neurons are never centred, so no bias is added
        assert one.bias == (one.format == "pivoted")


def test_packed_experts_have_no_narrower_form(tmp_path: Path) -> None:
    with pytest.raises(SpectrimError, match=r"cannot keep 80% of linear: .* take 100\.0% already"):
        made_at(tmp_path, "mixtral", "small", "80% of linear", **OPTIONS)


def test_a_plan_is_replayed_and_its_groups_kept_together(
    tmp_path: Path, uniform: dict[str, Made]
) -> None:
    made = uniform["llama"]
    asked = recipe(made.source, made.text, "80% of linear", **OPTIONS)
    again = shrink(asked, made.folder / "replayed", made.small / "plan.json")
    one, other = files(made.small), files(again)
    assert one["model.safetensors"] == other["model.safetensors"]
    assert one["config.json"] == other["config.json"]
    plan = plan_of(made.small)
    for changed, message in (
        ({"rank": 41}, "neuron_selection cuts .*gate.*up.*down.* together; give all of them the"),
        ({"format": "dense", "rank": 48}, "together; give all of them the same rank"),
        ({"rank": 81}, "down_proj rank 81; expected 1 to 80"),
    ):
        file = tmp_path / "plan.json"
        file.write_text(edited(plan, changed).to_json())
        with pytest.raises(SpectrimError, match=message):
            shrink(asked, tmp_path / "edited", file)


def edited(plan: Plan, changed: dict[str, int | str]) -> Plan:
    first = next(one for one in plan.decisions if one.format == "fewer_inputs")
    new = replace(first, **changed)  # type: ignore[arg-type]
    return replace(plan, decisions=tuple(new if d is first else d for d in plan.decisions))
