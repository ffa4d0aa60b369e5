"""What is read of a site is what it computes, and what is put in its place takes its part."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.model import sites
from spectrim.model.sites import Site
from tiny_models import FAMILIES, build, build_empty, logits, tokens, unpack

torch.set_num_threads(1)


def inside(model: PreTrainedModel) -> list[Site]:
    return [site for site in sites.find(model) if site.block >= 0]


def as_linear(module: nn.Module) -> nn.Linear:
    """Return a new nn.Linear that holds what `weight` and `bias` say of a module."""
    out_features, in_features = sites.shape(module)
    offset = sites.bias(module)
    linear = nn.Linear(in_features, out_features, bias=offset is not None)
    linear.weight = nn.Parameter(sites.weight(module).detach().clone())
    if offset is not None:
        linear.bias = nn.Parameter(offset.detach().clone())
    return linear


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_and_bias_are_what_the_module_computes(family: str) -> None:
    model = build(family).double()
    unpack(model)
    generator = torch.Generator().manual_seed(0)
    for site in sites.find(model):
        if site.role == "embed":
            continue
        module = sites.module(model, site)
        weight, bias = sites.weight(module), sites.bias(module)
        assert weight.shape == (site.out_features, site.in_features)
        x = torch.randn(3, site.in_features, dtype=torch.float64, generator=generator)
        expected = torch.stack([weight @ row + (0 if bias is None else bias) for row in x])
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_looks_up_the_rows_of_its_weight(family: str) -> None:
    model = build(family)
    embed = sites.module(model, sites.find(model)[0])
    ids = tokens()
    scale = getattr(embed, "embed_scale", 1.0)  # Gemma keeps it beside the table
    assert torch.equal(embed(ids), sites.weight(embed)[ids] * scale)


def test_weights_are_read_without_a_copy() -> None:
    for family in ("gpt2", "llama"):
        model = build(family)
        for site in sites.find(model):
            module = sites.module(model, site)
            assert sites.weight(module).data_ptr() == module.weight.data_ptr()


BIASED = {"bart", "falcon_alibi", "gpt2", "gpt_neox", "llama_biased", "opt", "opt_projected", "phi"}


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_are_found_where_the_family_has_them(family: str) -> None:
    model = build(family)
    unpack(model)
    biased = {s.role for s in inside(model) if sites.bias(sites.module(model, s)) is not None}
    roles = {s.role for s in inside(model)}
    assert biased == (
        roles if family in BIASED else {"q", "k", "v"} if family == "qwen2" else set()
    )
    for site in inside(model):
        bias = sites.bias(sites.module(model, site))
        assert bias is None or bias.abs().min() > 0  # so that losing one shows in the logits


@pytest.mark.parametrize("tie", [None, True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_replaced_by_what_was_read_leave_the_logits(family: str, tie: bool | None) -> None:
    model, changed = build(family, tie=tie), build(family, tie=tie)
    for each in (model, changed):
        each.set_experts_implementation("eager")
    unpack(changed)
    for site in sites.find(changed):
        if site.role != "embed":
            sites.replace(changed, site.name, as_linear(sites.module(changed, site)))
    expected, got = logits(model, tokens()), logits(changed, tokens())
    if family in ("gpt2", "falcon_alibi"):
        # Conv1D multiplies by the transposed matrix and biased FalconLinear adds its bias in a
        # second step: the same sums in another order.
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_generation_equals_uncached_on_replaced_maps(family: str) -> None:
    model = build(family)
    unpack(model)
    for site in inside(model):
        sites.replace(model, site.name, as_linear(sites.module(model, site)))
    runs = [
        model.generate(
            tokens(length=7),
            max_new_tokens=9,  # beyond the sliding windows
            min_new_tokens=9,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    cached, uncached = (torch.stack(run.logits) for run in runs)
    torch.testing.assert_close(cached, uncached, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_moves_the_logits(family: str) -> None:
    """Else a wrong replacement could hide."""
    model = build(family)
    unpack(model)
    ids = tokens(sequences=3, length=20)
    generator = torch.Generator().manual_seed(1)  # 0 would scale the weights, and norms undo that
    before = logits(model, ids)
    for site in sites.find(model):
        weight = sites.weight(sites.module(model, site)).data
        kept = weight.clone()
        weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
        assert not torch.allclose(logits(model, ids), before, atol=1e-3), site
        weight.copy_(kept)


@pytest.mark.parametrize("name", ["model.layers.9.mlp.up_proj", "nothing", ""])
def test_replacing_what_is_not_there_is_an_error(name: str) -> None:
    model = build_empty("llama")
    with pytest.raises(SpectrimError, match=f"no module '{name}' in this model; nothing was"):
        sites.replace(model, name, nn.Identity())


def test_what_is_not_a_dense_map_is_an_error() -> None:
    with pytest.raises(SpectrimError, match="Identity has no dense matrix; expected nn.Linear"):
        sites.weight(nn.Identity())
    with pytest.raises(SpectrimError, match="Identity is no linear map; expected nn.Linear"):
        sites.shape(nn.Identity())
