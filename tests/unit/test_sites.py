"""Every linear map of every family is found once, under the right name, role and block."""

from __future__ import annotations

import copy
import re
from collections import Counter

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spectrim.model import sites
from spectrim.model.architectures import ARCHITECTURES, architecture_of
from spectrim.model.sites import Site
from tiny_models import (
    FAMILIES,
    VOCABULARY,
    build,
    build_empty,
    logits,
    model_type,
    tokens,
    unpack,
)

torch.set_num_threads(1)

MIXTURES = [name for name, entry in ARCHITECTURES.items() if entry.experts]
PAIRS = [name for name in FAMILIES if model_type(name) in ("bart", "t5")]
SINGLES = [name for name in FAMILIES if name not in PAIRS]

# The role that each family's own name of a linear map stands for, apart from the gate of T5.
ROLES = {
    "q": {"q_proj", "q"},
    "k": {"k_proj", "k"},
    "v": {"v_proj", "v"},
    "o": {"o_proj", "o", "out_proj", "self_attention.dense", "attention.dense", "self_attn.dense",
          "attn.c_proj"},
    "qkv": {"query_key_value", "c_attn"},
    "gate": {"gate_proj", "wi_0"},
    "up": {"up_proj", "dense_h_to_4h", "c_fc", "fc1", "wi", "wi_1"},
    "down": {"down_proj", "dense_4h_to_h", "mlp.c_proj", "fc2", "wo", "down"},
    "gate_up": {"gate_up"},
}  # fmt: skip


def block_maps(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Find the linear maps inside blocks without the table: all but the ends of the model."""
    ends = (model.get_output_embeddings(), *_projections(model))
    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module not in ends:
            found[name] = tuple(module.weight.shape)
        if isinstance(module, Conv1D):
            found[name] = tuple(module.weight.shape[::-1])
        for part, packed in module.named_parameters(recurse=False):
            if packed.dim() == 3:
                for expert, matrix in enumerate(packed):
                    key = f"{name}.{expert}.{part.removesuffix('_proj')}"
                    found[key] = tuple(matrix.shape)
    return found


def _projections(model: PreTrainedModel) -> list[nn.Module]:
    """OPT-350m maps between hidden states and narrower embeddings, outside of any block."""
    return [m for n, m in model.named_modules() if n.endswith((".project_in", ".project_out"))]


def inside(model: PreTrainedModel) -> list[Site]:
    return [site for site in sites.find(model) if site.block >= 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_map_of_every_block_is_a_site_once(family: str) -> None:
    model = build(family)
    found = inside(model)
    assert {s.name: (s.out_features, s.in_features) for s in found} == block_maps(model)
    assert len({s.name for s in found}) == len(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_hold_all_numbers_but_norms_biases_positions_and_routers(family: str) -> None:
    model = build(family)
    counted = sum(s.out_features * s.in_features for s in sites.find(model))
    kept = [*_projections(model)]
    kept += [
        m for n, m in model.named_modules() if n.endswith((".gate", "relative_attention_bias"))
    ]
    kept += [m for n, m in model.named_modules() if n.endswith((".wpe", "embed_positions"))]
    apart = sum(p.numel() for m in kept for p in m.parameters() if p.dim() > 1)
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert counted + apart + vectors == model.num_parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_blocks_and_names_say_the_same(family: str) -> None:
    model = build(family)
    for site in inside(model):
        stack = next(
            s for s in architecture_of(model.config).stacks if site.name.startswith(s.path + ".")
        )
        block, _, path = site.name.removeprefix(stack.path + ".").partition(".")
        assert site.block == int(block)
        cross = "cross_" if "encoder_attn" in path or "EncDecAttention" in path else ""
        expert = f"expert{path.split('.')[-2]}_" if ".experts." in path else ""
        before = stack.prefix + cross + expert
        assert site.role.startswith(before)
        names = ROLES[site.role.removeprefix(before)]
        assert any(f".{path}".endswith(f".{name}") for name in names), site


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_sites_of_a_block_share_a_role(family: str) -> None:
    counts = Counter((site.block, site.role) for site in sites.find(build(family)))
    assert max(counts.values()) == 1


@pytest.mark.parametrize("family", PAIRS)
def test_encoder_and_decoder_are_numbered_apart(family: str) -> None:
    model = build(family)
    found = inside(model)
    encoder = [s for s in found if s.role.startswith("encoder_")]
    decoder = [s for s in found if s.role.startswith("decoder_")]
    assert len(encoder) + len(decoder) == len(found)
    stacks = [model.get_submodule(stack.path) for stack in architecture_of(model.config).stacks]
    assert len(stacks[0]) != len(stacks[1])
    assert {s.block for s in encoder} == set(range(len(stacks[0])))
    assert {s.block for s in decoder} == set(range(len(stacks[1])))
    cross = {f"decoder_cross_{part}" for part in "qkvo"}
    assert {s.role for s in found if "cross" in s.role} == cross


@pytest.mark.parametrize("family", FAMILIES)
def test_block_sites_are_the_sites_of_that_block(family: str) -> None:
    model = build_empty(family)
    parts = []
    for index, stack in enumerate(architecture_of(model.config).stacks):
        for block in range(len(model.get_submodule(stack.path))):
            parts += sites.block_sites(model, index, block)
    assert parts == inside(model)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head_is_counted_once_and_an_untied_one_reported(family: str, tie: bool) -> None:
    model = build(family, tie=tie)
    found = sites.find(model)
    width = model.get_input_embeddings().embedding_dim
    name = architecture_of(model.config).embed
    assert found[0] == Site(name, -1, "embed", VOCABULARY, width)
    ends = [site.role for site in found if site.block < 0]
    assert ends == (["embed"] if tie else ["embed", "head"])
    assert sites.tied(model) == tie
    if not tie:
        assert found[-1] == Site("lm_head", -1, "head", VOCABULARY, width)


@pytest.mark.parametrize("tie", [None, True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_sites_are_found_without_weights(family: str, tie: bool | None) -> None:
    empty = build_empty(family, tie=tie)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert sites.find(empty) == sites.find(build(family, tie=tie))


def step(site: Site) -> tuple[int, str]:
    """Return block and role, with q, k and v alike: which of them comes first is the family's."""
    return site.block, re.sub(r"(?<![a-z])[qkv]$", "qkv", site.role)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_meets_the_sites_in_their_order(family: str) -> None:
    model = build(family)
    unpack(model)
    met: list[Site] = []
    for site in inside(model):
        sites.module(model, site).register_forward_hook(lambda *_, site=site: met.append(site))
    logits(model, tokens(sequences=3, length=20))
    assert [step(site) for site in met] == [step(site) for site in inside(model)]
    assert set(met) == set(inside(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gate_is_the_map_that_goes_through_the_activation(family: str) -> None:
    model = build(family)
    for gate in (s for s in inside(model) if s.role.split("_")[-1] == "gate"):
        up = next(s for s in inside(model) if s.name == _beside(gate, "up"))
        down = next(s for s in inside(model) if s.name == _beside(gate, "down"))
        doubled = {}
        for site in (gate, up):
            changed = copy.deepcopy(model)
            for parameter in sites.module(changed, site).parameters():
                parameter.data.mul_(2)
            doubled[site.role] = _input(changed, down) / 2
        plain = _input(model, down)
        assert torch.equal(doubled[up.role], plain)
        assert not torch.allclose(doubled[gate.role], plain)


def _beside(gate: Site, role: str) -> str:
    """Return the name of the map of this role in the gate's feed-forward part."""
    parent, _, child = gate.name.rpartition(".")
    names = {
        "gate_proj": {"up": "up_proj", "down": "down_proj"},
        "wi_0": {"up": "wi_1", "down": "wo"},
    }
    return f"{parent}.{names[child][role]}"


def _input(model: PreTrainedModel, site: Site) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    hook = sites.module(model, site).register_forward_pre_hook(lambda _, x: caught.append(x[0]))
    logits(model, tokens())
    hook.remove()
    return caught[0]


def test_the_same_seed_builds_the_same_weights_and_another_seed_others() -> None:
    first, same, other = (build("bart", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_as_wide_as_attention_takes_it(family: str) -> None:
    model = build_empty(family)
    for stack_index, stack in enumerate(architecture_of(model.config).stacks):
        for index, block in enumerate(model.get_submodule(stack.path)):
            said = {
                site.role.removeprefix(stack.prefix): site.head_dim
                for site in sites.block_sites(model, stack_index, index)
            }
            known = {
                getattr(part, name)
                for part in block.modules()
                for name in ("head_dim", "head_size", "key_value_proj_dim")
                if hasattr(part, name)
            }
            assert {said[role] for role in said if role in ("v", "o", "cross_v")} == known
            assert not any(said.get(role) for role in ("gate", "up", "down", "qkv"))
