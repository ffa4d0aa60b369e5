"""Fused q, k and v split: the rows that transformers reads as each, the same logits, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.model import sites
from spectrim.model.architectures import ARCHITECTURES
from spectrim.model.fused import ROLE, Fused, Layout, fused_maps, merge_fused, split_fused
from tiny_models import FAMILIES, build, build_empty, logits, model_type, tokens

torch.set_num_threads(1)

SPLIT = [name for name in FAMILIES if ARCHITECTURES[model_type(name)].fused]
OUT = {"gpt2": "c_proj", "gpt_neox": "dense", "falcon": "dense"}
APART = [name for name in ARCHITECTURES if name not in SPLIT]


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    return model.get_submodule(ARCHITECTURES[model.config.model_type].stacks[0].path)


def test_every_family_with_fused_maps_says_where_their_rows_lie() -> None:
    fused = {name for name, entry in ARCHITECTURES.items() if ROLE in entry.roles.values()}
    assert fused == {name for name, entry in ARCHITECTURES.items() if entry.fused}
    assert {"gpt2", "gpt_neox", "falcon", "falcon_new", "falcon_alibi"} <= set(SPLIT)


@pytest.mark.parametrize("family", SPLIT)
def test_three_maps_compute_what_one_did(family: str) -> None:
    whole, split = build(family), build(family)
    split_fused(split)
    assert sum(isinstance(module, Fused) for module in split.modules()) == 3
    ids = tokens(sequences=3, length=20)
    torch.testing.assert_close(logits(split, ids), logits(whole, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in SPLIT if name.startswith("falcon")])
def test_rows_are_those_that_falcon_itself_takes_apart(family: str) -> None:
    model = build(family)
    attention = model.get_submodule("transformer.h.0.self_attention")
    rows = torch.arange(attention.query_key_value.out_features).float()
    theirs = attention._split_heads(rows.view(1, 1, -1))
    split_fused(model)
    ours = attention.query_key_value.layout.parted(rows)
    assert torch.equal(theirs[0].flatten(), ours[0])
    for one, other in zip(theirs[1:], ours[1:], strict=True):  # repeated for queries that share it
        assert torch.equal(one.flatten().unique(), other)


@pytest.mark.parametrize("family", [name for name in SPLIT if name != "falcon_alibi"])
def test_without_queries_attention_is_the_mean_of_the_values(family: str) -> None:
    """With alibi it is not, but the rows lie as where `gpt_neox` has them."""
    model = build(family)
    model.set_attn_implementation("eager")
    split_fused(model)
    path = fused_maps(model)[0]
    fused = model.get_submodule(path)
    own = model.get_submodule(f"{path.rpartition('.')[0]}.{OUT[model_type(family)]}")
    entered: list[Tensor] = []
    for module in (fused, own):
        module.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0][0]))
    with torch.no_grad():
        for parameter in fused.q.parameters():
            parameter.zero_()
    logits(model, tokens(sequences=1, length=6))
    x, delivered = entered
    means = fused.v(x).cumsum(0) / torch.arange(1, 7)[:, None]  # [length, values]
    heads = model.config.num_attention_heads
    values = means.unflatten(-1, (-1, model.config.hidden_size // heads))
    expected = values.repeat_interleave(heads // values.shape[1], 1).flatten(1)
    torch.testing.assert_close(delivered, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", SPLIT)
def test_sites_are_three_with_or_without_weights(family: str) -> None:
    model, empty = build(family), build_empty(family)
    before = sites.find(model)
    for one in (model, empty):
        split_fused(one)
        split_fused(one)  # a second time does nothing
    found = sites.find(model)
    assert found == sites.find(empty)
    assert all(parameter.is_meta for parameter in empty.parameters())
    whole = next(site for site in before if site.role == ROLE)
    parts = [site for site in found if site.name.startswith(f"{whole.name}.")]
    assert [site.role for site in parts] == ["q", "k", "v"]
    assert sum(site.out_features for site in parts) == whole.out_features
    assert {site.in_features for site in parts} == {whole.in_features}
    assert ROLE not in {site.role for site in found}
    assert len(found) == len(before) + 2 * 3


@pytest.mark.parametrize("family", APART)
def test_other_families_are_left_as_they_are(family: str) -> None:
    model = build_empty(family)
    before = [type(module) for module in model.modules()]
    split_fused(model)
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("family", SPLIT)
def test_merged_it_is_bit_for_bit_what_it_was(family: str) -> None:
    model, untouched = build(family), build(family)
    split_fused(model)
    for block in blocks(model):
        merge_fused(block)
    expected = untouched.state_dict()
    assert list(model.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == [type(m) for m in untouched.modules()]
    assert torch.equal(logits(model, tokens()), logits(untouched, tokens()))


@pytest.mark.parametrize("family", SPLIT)
def test_the_three_load_what_is_stored_of_the_one(family: str) -> None:
    model, empty = build(family), build_empty(family)
    split_fused(empty)
    for index, block in enumerate(blocks(empty)):
        block.load_state_dict(blocks(model)[index].state_dict(), assign=True)
        again = copy.deepcopy(block)
        again.load_state_dict(block.state_dict())  # of the three, too
    split_fused(model)
    for one, other in zip(blocks(model).parameters(), blocks(empty).parameters(), strict=True):
        assert torch.equal(one, other)


def test_only_maps_of_named_sites_are_split() -> None:
    model = build("gpt2")
    split_fused(model, ["transformer.h.1.attn.c_attn.k", "transformer.h.2.attn.c_attn"])
    found = [name for name, module in model.named_modules() if isinstance(module, Fused)]
    assert found == ["transformer.h.1.attn.c_attn"]


def test_a_map_with_a_factored_part_stays_split() -> None:
    model = build("gpt2")
    split_fused(model)
    sites.replace(model, "transformer.h.1.attn.c_attn.k", nn.Identity())
    for block in blocks(model):
        merge_fused(block)
    found = [name for name, module in model.named_modules() if isinstance(module, Fused)]
    assert found == ["transformer.h.1.attn.c_attn"]


def test_rows_come_back_in_their_order() -> None:
    layout = Layout(groups=2, queries=3)
    q, k, v = layout.parted(torch.arange(20.0))
    assert q.tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    assert k.tolist() == [6, 7, 16, 17] and v.tolist() == [8, 9, 18, 19]
    assert torch.equal(layout.joined([q, k, v]), torch.arange(20.0))
