"""Experts unpacked: the same sites, the same bits, no copy, and back again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.model import sites
from spectrim.model.architectures import ARCHITECTURES
from spectrim.model.experts import Experts
from tiny_models import build, build_empty, logits, tokens, unpack

torch.set_num_threads(1)

MIXTURES = [name for name, entry in ARCHITECTURES.items() if entry.experts]


def pack(model: PreTrainedModel) -> None:
    for block in model.get_submodule("model.layers"):
        sites.pack_experts(block, "mlp.experts")


@pytest.mark.parametrize("family", MIXTURES)
def test_packed_and_unpacked_experts_are_the_same_sites(family: str) -> None:
    for model in (build(family), build_empty(family)):
        before = sites.find(model)
        unpack(model)
        assert sites.find(model) == before
        experts = [s for s in before if s.role.startswith("expert")]
        assert all(isinstance(sites.module(model, s), nn.Linear) for s in experts)
        names = {s.role: s.name for s in experts if s.block == 0}
        assert names["expert3_gate_up"] == "model.layers.0.mlp.experts.3.gate_up"
        assert names["expert3_down"] == "model.layers.0.mlp.experts.3.down"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", MIXTURES)
def test_unpacked_experts_compute_bit_for_bit_what_packed_ones_do(
    family: str, dtype: torch.dtype
) -> None:
    packed, unpacked = build(family).to(dtype), build(family).to(dtype)
    packed.set_experts_implementation("eager")
    unpack(unpacked)
    for ids in (tokens(), tokens(sequences=5, length=40), tokens(sequences=1, length=1)):
        assert torch.equal(logits(packed, ids), logits(unpacked, ids))


@pytest.mark.parametrize("family", MIXTURES)
def test_unpacking_copies_nothing_and_keeps_nothing_else(family: str) -> None:
    model = build(family)
    block = model.get_submodule("model.layers.0.mlp")
    before = {part: getattr(block.experts, f"{part}_proj").data for part in ("gate_up", "down")}
    original = block.experts
    sites.unpack_experts(block, "experts")
    for index, expert in enumerate(block.experts):
        for part, packed in before.items():
            assert getattr(expert, part).weight.data_ptr() == packed[index].data_ptr()
    assert all(parameter.is_meta for parameter in original.parameters())


@pytest.mark.parametrize("family", MIXTURES)
def test_unpacking_stays_on_the_meta_device(family: str) -> None:
    model = build_empty(family)
    unpack(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    pack(model)
    assert model.state_dict().keys() == build_empty(family).state_dict().keys()


@pytest.mark.parametrize("family", MIXTURES)
def test_packing_restores_the_state_dict_and_the_module(family: str) -> None:
    model, untouched = build(family), build(family)
    unpack(model)
    unpack(model)  # a second time does nothing
    assert (
        sum(isinstance(m, Experts) for m in model.modules())
        == {"mixtral": 3, "qwen3_moe": 2}[family]
    )
    pack(model)
    pack(model)
    expected = untouched.state_dict()
    assert list(model.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert [type(m) for m in model.modules()] == [type(m) for m in untouched.modules()]
    assert not any(m.training for m in model.modules())
    assert torch.equal(logits(model, tokens()), logits(untouched, tokens()))


@pytest.mark.parametrize("family", MIXTURES)
def test_packing_takes_what_was_trained(family: str) -> None:
    model = build(family)
    unpack(model)
    experts = model.get_submodule("model.layers.0.mlp.experts")
    experts[1].down.weight.data += 1
    wanted = experts[1].down.weight.detach().clone()
    pack(model)
    packed = model.get_submodule("model.layers.0.mlp.experts").down_proj
    assert torch.equal(packed[1], wanted)
    assert packed.requires_grad


@pytest.mark.parametrize("family", MIXTURES)
def test_gradients_through_unpacked_experts_are_those_of_packed_ones(family: str) -> None:
    packed, unpacked = build(family), build(family)
    packed.set_experts_implementation("eager")
    unpack(unpacked)
    ids = tokens()
    for model in (packed, unpacked):
        model(input_ids=ids, labels=ids).loss.backward()
    experts = unpacked.get_submodule("model.layers.0.mlp.experts")
    expected = packed.get_submodule("model.layers.0.mlp.experts").gate_up_proj.grad
    for index, expert in enumerate(experts):
        got = expert.gate_up.weight.grad
        torch.testing.assert_close(
            torch.zeros_like(expected[index]) if got is None else got, expected[index]
        )


@pytest.mark.parametrize("family", MIXTURES)
def test_expert_maps_say_which_tokens_came_to_them(family: str) -> None:
    model = build(family)
    unpack(model)
    experts = model.get_submodule("model.layers.0.mlp.experts")
    entered: list[tuple[torch.Tensor, ...]] = []
    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    experts.register_forward_pre_hook(lambda _, inputs: entered.append(inputs))
    for linear in (part for expert in experts for part in (expert.gate_up, expert.down)):
        linear.register_forward_pre_hook(lambda m, x: seen.update({m: (m.token_index, x[0])}))
    logits(model, tokens(sequences=3, length=20))
    hidden, chosen, _ = entered[0]
    for index, expert in enumerate(experts):
        token, x = seen[expert.gate_up]
        assert torch.equal(x, hidden[token])
        assert torch.equal(token.sort().values, torch.where(chosen == index)[0])
        assert seen[expert.down][0] is token


def test_the_site_of_a_packed_expert_has_no_module_yet() -> None:
    model = build_empty("mixtral")
    site = next(s for s in sites.find(model) if s.role == "expert0_down")
    with pytest.raises(SpectrimError, match="experts.0.down' in this model; .* unpack_experts"):
        sites.module(model, site)


def test_factored_experts_cannot_be_packed() -> None:
    model = build("mixtral")
    unpack(model)
    sites.replace(model, "model.layers.1.mlp.experts.2.down", nn.Identity())
    with pytest.raises(SpectrimError, match="expert 2 down is Identity; only nn.Linear can be"):
        sites.pack_experts(model, "model.layers.1.mlp.experts")
