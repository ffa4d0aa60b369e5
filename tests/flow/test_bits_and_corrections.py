"""Ranks and bits chosen together, and what makes up for the rounding, on tiny models end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.cutting.bit_losses import bit_losses, quantised_ranks
from spectrim.cutting.decompose import decompose
from spectrim.cutting.groups import groups
from spectrim.errors import SpectrimError
from spectrim.formats.fewer_inputs import FewerInputs
from spectrim.formats.fewer_outputs import FewerOutputs
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.recipe.recipe import Recipe
from spectrim.rounding.few_bits import narrowed
from spectrim.walk.statistics import Statistics
from tiny_models import logits, tokens
from tiny_runs import (
    TOKENS,
    Made,
    equal,
    family_folder,
    from_pretrained,
    make,
    plan_of,
    shrink,
    stored,
    write_text,
)

BITS = {"format": "low_rank", "refine": "off", "bits": [2, 4, 8], "group": 32, "rank_multiple": 1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a tiny llama, its cache shared by all runs."""
    return make("llama", tmp_path_factory.mktemp("bits"))


def asked(made: Made, keep: str, *stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "model": str(made.source),
            "keep": keep,
            "calibration": {"text": str(made.text), "tokens": TOKENS},
            "stages": list(stages),
        }
    )


def linear_bytes(folder: Path) -> int:
    """Return the bytes in the file of what the plan decides about, biases and norms apart."""
    sites = tuple(f"{one.site}." for one in plan_of(folder).decisions)
    tensors = stored(folder)
    return sum(t.numel() * t.element_size() for n, t in tensors.items() if n.startswith(sites))


def test_ranks_and_bits_are_chosen_within_the_bytes(plain: Made) -> None:
    small = shrink(
        asked(plain, "30% of linear bytes", {"factorize": BITS}, {"quantize": {}}),
        plain.folder / "chosen",
    )
    plan = plan_of(small)
    assert {one.bits for one in plan.decisions} - {0}
    whole = sum(one.dense for one in plan.decisions) * 4
    assert 0.2 * whole < linear_bytes(small) <= 0.3 * whole
    model = from_pretrained(plain, small)
    assert torch.isfinite(logits(model, tokens())).all()


def test_a_plan_with_bits_is_replayed_bit_for_bit(plain: Made) -> None:
    small = plain.folder / "chosen"
    again = shrink(
        asked(plain, "30% of linear bytes", {"factorize": BITS}, {"quantize": {}}),
        plain.folder / "replayed", plan=small / "plan.json",
    )  # fmt: skip
    assert equal(stored(small), stored(again))
    assert plan_of(small) == plan_of(again)


NARROWER = {"factorize": {**BITS, "method": "loss_aware_svd,loss_aware_neuron_selection"}}


def test_narrower_maps_are_chosen_in_few_bits_and_cost_what_is_said(plain: Made) -> None:
    folder = plain.folder / "narrower"
    small = shrink(asked(plain, "16% of linear bytes", NARROWER, {"quantize": {}}), folder)
    plan = plan_of(small)
    narrow = [one for one in plan.decisions if one.format.startswith("fewer_")]
    assert {one.stored_as for one in narrow} == {
        "quantized_fewer_outputs",
        "quantized_fewer_inputs",
    }
    assert plan.about["budget"]["size"] >= linear_bytes(small)
    note = plan.about["found"]["quantized"]
    assert note["predicted_loss"] > 0 and not note["without_tokens"]
    model = from_pretrained(plain, small)
    assert torch.isfinite(logits(model, tokens())).all()
    again = shrink(
        asked(plain, "16% of linear bytes", NARROWER, {"quantize": {}}),
        plain.folder / "narrower-replayed", plan=small / "plan.json",
    )  # fmt: skip
    assert equal(stored(small), stored(again))


def test_rounding_costs_what_it_was_said_to_cost(plain: Made) -> None:
    as_priced = {"quantize": {"inputs": "dense", "cycles": 0}}
    asked_for = asked(plain, "50% of linear bytes", NARROWER, as_priced)
    cache = plain.folder / "cache"
    job = open_job(asked_for, sources.resolve(str(plain.source), cache), cache, lambda *_: None)
    options = asked_for.factorize
    assert options is not None
    decompose(job, options)
    known = bit_losses(job, options)
    method = "loss_aware_neuron_selection"
    (group,) = groups(method, job.block_sites(job.each_block()[0]), options)
    rank = quantised_ranks(group)[1]
    names = {site.name: name for site, name in zip(group.sites, group.formats, strict=True)}
    small = shrink(asked_for, plain.folder / "to-edit")
    decisions = tuple(
        replace(one, format=names[one.site], rank=rank, bits=4, group=32, method=method)
        if one.site in names
        else replace(one, format="dense", rank=min(one.out_features, one.in_features), bits=0,
                     group=0, method="")
        for one in plan_of(small).decisions
    )  # fmt: skip
    edited = plain.folder / "edited.json"
    edited.write_text(replace(plan_of(small), decisions=decisions).to_json())
    again = shrink(asked_for, plain.folder / "edited", plan=edited)
    found = plan_of(again).about["found"]["quantized"]["predicted_loss"]
    expected = known[group.key][1, options.bits.index(4)]
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_what_a_narrower_map_sees_is_the_moment_of_what_it_keeps() -> None:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(200, size, generator=generator) for size in (12, 9))
    known = Statistics(200, x.mean(0), x.T @ x / 200, g.T @ g / 200)
    places = torch.tensor([7, 0, 4], dtype=torch.int32)
    down = FewerInputs(12, 9, 3, False)
    down.places.copy_(places)
    seen = narrowed(known, down, None)
    kept = x[:, places.long()]
    torch.testing.assert_close(seen.input_moment, kept.T @ kept / 200)
    torch.testing.assert_close(seen.input_mean, kept.mean(0))
    assert seen.gradient_moment is known.gradient_moment
    up = narrowed(known, FewerOutputs(12, 9, 3, False), places)
    felt = g[:, places.long()]
    torch.testing.assert_close(up.gradient_moment, felt.T @ felt / 200)
    assert up.input_moment is known.input_moment


def test_gptq_of_a_narrower_map_beats_the_nearest_by_its_own_measure(plain: Made) -> None:
    narrow = {"factorize": {"method": "loss_aware_neuron_selection", "refine": "off"}}
    lost = {}
    for rounding in ("gptq", "nearest"):
        few = {"quantize": {"bits": 3, "group": 32, "rounding": rounding}}
        small = shrink(asked(plain, "80% of linear", narrow, few), plain.folder / rounding)
        assert "quantized_fewer_inputs" in {one.stored_as for one in plan_of(small).decisions}
        lost[rounding] = plan_of(small).about["found"]["quantized"]["predicted_loss"]
    assert 0 < lost["gptq"] < lost["nearest"]


def test_bits_alone_keep_every_rank(plain: Made) -> None:
    small = shrink(
        asked(
            plain, "25% of linear bytes", {"factorize": {**BITS, "cut": False}}, {"quantize": {}}
        ),
        plain.folder / "alone",
    )
    assert {one.format for one in plan_of(small).decisions} == {"dense"}


@pytest.mark.parametrize(
    ("keep", "stages", "said"),
    [
        ("30% of linear", [{"factorize": BITS}, {"quantize": {}}], "save no numbers"),
        ("30% of linear bytes", [{"factorize": BITS}], "add the stage quantize"),
        ("30%", [{"factorize": {**BITS, "allocator": "measured"}}, {"quantize": {}}], "measures"),
        ("80% of linear", [{"factorize": {}}, {"compensate": {}}], "makes up for"),
    ],
)
def test_what_cannot_be_is_one_line(
    plain: Made, keep: str, stages: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(SpectrimError, match=said) as caught:
        shrink(asked(plain, keep, *stages), plain.folder / "refused")
    assert "\n" not in str(caught.value)
    assert not (plain.folder / "refused").exists()


@pytest.mark.parametrize("broken", [{"quantize": {"bits": 2, "group": 32}}, {"sparsify": {}}])
def test_a_correction_saves_what_it_says(plain: Made, broken: dict[str, Any]) -> None:
    (name,) = broken
    small = shrink(
        asked(plain, "100%", broken, {"compensate": {"rank": 4}}), plain.folder / f"mended-{name}"
    )
    note = plan_of(small).about["found"]["compensated"]
    assert 0 < note["predicted_after"] < 0.9 * note["predicted_before"]
    assert {one.correction for one in plan_of(small).decisions} == {4}
    model = from_pretrained(plain, small)
    assert torch.isfinite(logits(model, tokens())).all()


def test_zeros_are_made_up_for_behind_rounding_too(plain: Made) -> None:
    rounded = {"quantize": {"bits": 8}}
    missing = []
    for earlier in ([], [{"sparsify": {}}]):
        stages = [*earlier, rounded, {"compensate": {"rank": 4}}]
        small = shrink(asked(plain, "100%", *stages), plain.folder / f"zeros-{len(earlier)}")
        missing.append(plan_of(small).about["found"]["compensated"]["predicted_before"])
    assert missing[1] > 100 * missing[0]


def test_rounding_again_never_loses_by_its_own_measure(plain: Made) -> None:
    found = []
    for rounds in (1, 3):
        stages = (
            {"quantize": {"bits": 2, "group": 32}},
            {"compensate": {"rank": 4, "rounds": rounds}},
        )
        small = shrink(asked(plain, "100%", *stages), plain.folder / f"rounds-{rounds}")
        found.append(plan_of(small).about["found"]["compensated"]["predicted_after"])
    assert found[1] < found[0]


def test_both_sides_save_more_loss_than_the_inputs_alone(plain: Made) -> None:
    found = {}
    for metric in ("loss", "inputs"):
        stages = (
            {"quantize": {"bits": 2, "group": 32}},
            {"compensate": {"rank": 4, "metric": metric}},
        )
        small = shrink(asked(plain, "100%", *stages), plain.folder / f"metric-{metric}")
        found[metric] = plan_of(small).about["found"]["compensated"]["predicted_after"]
    assert found["loss"] < found["inputs"]


@pytest.mark.parametrize("family", ["gpt2", "falcon", "mixtral", "bart", "t5", "opt"])
def test_every_family_has_ranks_and_bits_chosen_and_mended(family: str, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", family)
    made = Made(family, source, write_text(tmp_path / "text.txt"), tmp_path / "small")
    few_ranks = {**BITS, "rank_multiple": 8}
    stages = {"factorize": few_ranks}, {"quantize": {}}, {"compensate": {"rank": 2}}
    small = shrink(asked(made, "35% of linear bytes", *stages), made.small)
    found = plan_of(small).about["found"]["compensated"]
    assert found["predicted_after"] <= found["predicted_before"]
    assert torch.isfinite(logits(from_pretrained(made, small), tokens())).all()
