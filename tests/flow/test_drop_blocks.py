"""Models that lose blocks or run some twice, end to end by a recipe."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.metrics.size import size
from spectrim.model.architectures import architecture_of
from spectrim.model.sites import find
from spectrim.model.weights import quiet
from spectrim.recipe.recipe import Recipe
from spectrim.stages import _importance
from spectrim.verbs.inspect import inspect
from tiny_models import assert_generates_alike, build_empty, logits, tokens
from tiny_runs import (
    TOKENS,
    Made,
    equal,
    family_folder,
    files,
    from_pretrained,
    load,
    plan_of,
    shrink,
    stored,
    write_text,
)

FREE = {"protect_first": 0, "protect_last": 0}
FAMILIES = ["llama", "gemma2", "gpt2", "falcon", "mixtral", "qwen3_moe", "bart", "t5"]


def asked(made: Made, *stages: object, keep: str = "60% of linear") -> Recipe:
    changes = {
        "model": str(made.source),
        "keep": keep if any("factorize" in stage for stage in stages) else None,
        "calibration.text": str(made.text),
        "calibration.tokens": TOKENS,
        "stages": list(stages),
    }
    return Recipe.build(None, changes)


def made_of(family: str, folder: Path) -> Made:
    source = family_folder(folder / "source", family)
    return Made(family, source, write_text(folder / "text.txt"), folder / "small")


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a family's tiny model and an output folder, nothing made yet."""
    return made_of(request.param, tmp_path_factory.mktemp(request.param))


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def dropped(folder: Path) -> list[dict[str, Any]]:
    return plan_of(folder).about["found"]["dropped"]


def by_hand(made: Made, place: int, order: list[int]) -> PreTrainedModel:
    """Return the model with its list of blocks rewired in memory, for use without a cache."""
    model = load(made.source)
    stack = architecture_of(model.config).stacks[place]
    blocks: Any = model.get_submodule(stack.path)
    model.set_submodule(stack.path, nn.ModuleList(copy.deepcopy(blocks[at]) for at in order))
    setattr(model.config, stack.count, len(order))
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[at] for at in order]
    return model


def same(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """Assert equal tensors; where they lie in memory moves the last bit of what experts give."""
    assert equal(one.state_dict(), other.state_dict())
    both = (logits(model, tokens()) for model in (one, other))
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)


def test_what_is_left_is_a_stock_model(made: Made) -> None:
    small = shrink(asked(made, {"drop_blocks": {"drop": 1, **FREE}}), made.small)
    assert "quantization_config" not in settings(small)
    (note,) = dropped(small)
    model = from_pretrained(made, small)
    expected = by_hand(made, -1, note["blocks"])
    same(model, expected)
    assert_generates_alike(model)
    measured = note["rounds"][0]["importance"]
    removed = note["rounds"][0]["removed"]
    losses = note["search_loss"]
    assert removed not in note["blocks"]
    assert measured[str(removed)] == min(measured.values())
    assert losses["after"] - losses["before"] == pytest.approx(measured[str(removed)], abs=1e-6)
    if made.family == "t5":  # whose first block holds what all others need
        assert note["blocks"] == [0] and list(measured) == ["1"]


def test_blocks_that_repeat_are_stored_once_and_run_twice(made: Made) -> None:
    place = 0 if made.family == "t5" else -1  # a T5's decoder may not be the longer one
    both = {"stack": "encoder"} if made.family == "t5" else {}
    small = shrink(asked(made, {"drop_blocks": {"layers": "0-1, 1-2", **both}}), made.folder / "re")
    model = from_pretrained(made, small)
    stack = architecture_of(model.config).stacks[place]
    expected = by_hand(made, place, [0, 1, 1, 2])
    same(model, expected)
    assert_generates_alike(model)
    first, again = (model.get_submodule(f"{stack.path}.{at}") for at in (1, 2))
    assert first is not again
    shared = zip(first.parameters(), again.parameters(), strict=True)
    assert all(one is other for one, other in shared)
    held = stored(small)
    assert not [name for name in held if name.startswith(f"{stack.path}.2.")]
    before = sum(tensor.nbytes for tensor in stored(made.source).values())
    assert sum(tensor.nbytes for tensor in held.values()) == before
    sizes = [size(load(folder), folder) for folder in (made.source, small)]
    assert sizes[0].linear_numbers == sizes[1].linear_numbers
    assert sizes[0].bytes_on_disk == sizes[1].bytes_on_disk
    with quiet():
        model.save_pretrained(made.folder / "again")
    other = from_pretrained(made, made.folder / "again")
    assert equal(model.state_dict(), other.state_dict())
    assert stored(made.folder / "again").keys() == stored(small).keys() or made.family == "mixtral"
    assert torch.equal(logits(model, tokens()), logits(other, tokens()))


# single cases


@pytest.mark.parametrize("family", ["gemma2", "bart"])
def test_what_is_cut_after_it_keeps_to_a_part_of_the_model_as_it_came(
    family: str, tmp_path: Path
) -> None:
    made = made_of(family, tmp_path)
    stages = ({"drop_blocks": {"drop": 1, "importance": "angular", **FREE}}, "factorize")
    small = shrink(asked(made, *stages, keep="45% of linear"), made.small)
    whole = sum(
        site.out_features * site.in_features
        for site in find(build_empty(made.family))
        if site.block >= 0
    )
    kept = sum(one.stored for one in plan_of(small).decisions)
    assert 0.35 * whole < kept <= 0.45 * whole
    assert any(one.format != "dense" for one in plan_of(small).decisions)
    assert logits(from_pretrained(made, small), tokens()).isfinite().all()


@pytest.fixture
def llama(tmp_path: Path) -> Made:
    return made_of("llama", tmp_path)


def test_repeats_may_be_cut_apart_and_protected_ones_still_share(llama: Made) -> None:
    stages = (
        {"drop_blocks": {"layers": [0, 1, 1, 2, 0]}},
        {"factorize": {"protect": ["block [04]"]}},
    )
    small = shrink(asked(llama, *stages, keep="100% of linear"), llama.small)
    shares = settings(small)["quantization_config"]["shared_blocks"]
    assert shares == {"model.layers.4": "model.layers.0"}
    ranks = {one.site: one.rank for one in plan_of(small).decisions if one.format != "dense"}
    assert {name.split(".")[2] for name in ranks} >= {"1", "2"}
    model = from_pretrained(llama, small)
    assert model.model.layers[4].mlp.up_proj.weight is model.model.layers[0].mlp.up_proj.weight
    assert_generates_alike(model)
    assert len({one["block"] for one in inspect(str(small))["sites"] if one["block"] >= 0}) == 5


def test_the_encoder_of_both_may_lose_blocks(tmp_path: Path) -> None:
    bart = made_of("bart", tmp_path)
    one = {"drop_blocks": {"drop": 1, "stack": "encoder", **FREE}}
    other = {"drop_blocks": {"layers": [0, 2]}}
    small = shrink(asked(bart, one, other), bart.small)
    said = settings(small)
    assert (said["encoder_layers"], said["decoder_layers"]) == (1, 2)
    assert [note["stack"].split(".")[1] for note in dropped(small)] == ["encoder", "decoder"]
    model = from_pretrained(bart, small)
    assert_generates_alike(model)


def test_interrupted_it_goes_on_with_what_it_has_measured(
    llama: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []
    real = _importance.IMPORTANCES["angular"]

    def measured(model: Any, candidates: list[int]) -> dict[int, float]:
        calls.append(model.order)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, candidates)

    monkeypatch.setitem(_importance.IMPORTANCES, "angular", measured)
    recipe = asked(llama, {"drop_blocks": {"drop": 2, "importance": "angular", **FREE}})
    with pytest.raises(KeyboardInterrupt):
        shrink(recipe, llama.small)
    assert not llama.small.exists()
    small = shrink(recipe, llama.small)
    assert [len(order) for order in calls] == [3, 2, 2], "the first round is not measured again"
    assert len(dropped(small)[0]["blocks"]) == 1


def test_replayed_from_its_plan_it_is_the_same(llama: Made) -> None:
    stages = ({"drop_blocks": {"drop": 1, **FREE}}, "factorize")
    recipe = asked(llama, *stages, keep="45% of linear")
    one = shrink(recipe, llama.folder / "one" / "small")
    other = shrink(recipe, llama.folder / "other" / "small", plan=one / "plan.json")
    assert files(one) == files(other)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([{"drop_blocks": {"drop": 1}}], "cannot drop 1 of 3 blocks"),
        ([{"drop_blocks": {"layers": "0-3"}}], "layers names block 3; this model has 3, 0 to 2"),
        ([{"drop_blocks": {"layers": "0-1", "stack": "encoder"}}], "this model has no encoder;"),
        (["factorize", {"drop_blocks": {"layers": "0"}}], "put drop_blocks first"),
    ],
)
def test_what_cannot_be_says_so(llama: Made, stages: list[object], told: str) -> None:
    with pytest.raises(SpectrimError, match=told) as error:
        shrink(asked(llama, *stages), llama.small)
    assert "\n" not in str(error.value)
    assert not llama.small.exists()


def masked(ids: Tensor, start: int) -> Tensor:
    mask = torch.ones_like(ids)
    mask[0, :start] = 0
    return mask


@torch.no_grad()
def test_a_repeated_block_sees_no_padding_and_no_future(llama: Made) -> None:
    small = shrink(asked(llama, {"drop_blocks": {"layers": [0, 1, 1, 1, 2]}}), llama.small)
    model, ids = from_pretrained(llama, small), tokens(sequences=2, length=10)
    full = model(ids, attention_mask=masked(ids, 3)).logits
    alone = model(ids[:1, 3:]).logits
    torch.testing.assert_close(full[:1, 3:], alone, rtol=1e-4, atol=1e-4)
    changed = ids.clone()
    changed[:, -1] = 5
    assert torch.equal(model(changed).logits[:, :-1], model(ids).logits[:, :-1])
    cache = model(ids, use_cache=True).past_key_values
    assert [cache.get_seq_length(at) for at in range(5)] == [10] * 5
