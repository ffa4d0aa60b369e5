"""What blocks promise that decode by the kernels: what their own forward computes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from spectrim.model import stacked_decoding
from spectrim.model.block_decoding import Decoding
from spectrim.model.decoding import use_kernels
from spectrim.model.stacked_decoding import Room, StackedDecoding
from tiny_models import build, tokens
from tiny_packed import off, small

CASES = [(family, "dense") for family in ("llama", "mistral", "qwen2", "qwen3")]
CASES += [("llama", name) for name in (
    "low_rank", "pivoted", "corrected_dense", "quantized_dense", "quantized_low_rank",
    "quantized_pivoted", "binary_low_rank", "trellis",
)]  # fmt: skip


@pytest.mark.parametrize(("family", "name"), CASES)
@torch.no_grad()
def test_blocks_decode_as_their_own_forward_does(family: str, name: str) -> None:
    model = small(name, build(family).to(torch.bfloat16))
    ids = tokens(sequences=1, length=12)
    expected = model(ids).logits[:, 6:]
    use_kernels(model)
    output, found = model(ids[:, :6], use_cache=True), []
    for at in range(6, 12):
        cache = output.past_key_values
        output = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        found.append(output.logits)
    block = model.model.layers[0].forward
    assert isinstance(block, Decoding) and block.pointer() is not None
    assert off(torch.cat(found, dim=1), expected) < 0.06
    if family == "mistral":
        return  # blocks that attend to a window are computed one by one
    assert stacked(model, output.past_key_values).length == 12
    del model.model.forward
    output = model(ids[:, :6], use_cache=True)
    for at in range(6, 12):
        cache = output.past_key_values
        output = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        assert torch.equal(output.logits, found[at - 6]), "block by block, the bits are others"


def stacked(model: Any, cache: Any) -> Room:
    """Return the buffer of a cache that all blocks were computed with in one call."""
    forward = model.model.forward
    assert isinstance(forward, StackedDecoding)
    return forward._rooms[cache]


def decoded(model: Any, cache: Any, written: list[int]) -> Tensor:
    """Return the logits behind each of some tokens, fed one by one."""
    found = [model(torch.tensor([[one]]), past_key_values=cache).logits for one in written]
    return torch.cat(found)


@torch.no_grad()
def test_caches_stay_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_decoding, "ROOM", 4)  # so that buffers are filled
    model = small("quantized_dense", build("llama").to(torch.bfloat16))
    use_kernels(model)
    prompt = tokens(sequences=1, length=6)
    plain = model(prompt, use_cache=True).past_key_values
    expected = decoded(model, plain, [1, 2, 3, 4, 5, 6, 7])
    cache = model(prompt, use_cache=True).past_key_values
    decoded(model, cache, [1, 2])
    other, held = copy.deepcopy(cache), cache.layers[0].keys
    before = held.clone()
    cache.crop(-1)
    assert not torch.equal(decoded(model, cache, [9, 9, 9])[-1], expected[4])
    assert torch.equal(held, before), "who goes back writes over what others hold"
    assert torch.equal(decoded(model, other, [3, 4, 5, 6, 7]), expected[2:])
    cache.crop(-3)
    assert cache.get_seq_length() == 7
    assert torch.equal(decoded(model, cache, [2, 3, 4, 5, 6, 7]), expected[1:])
    masked = torch.ones(1, 14, dtype=torch.long)
    masked[0, 0] = 0
    one = torch.tensor([[1]])
    with_mask = model(one, past_key_values=copy.deepcopy(cache), attention_mask=masked).logits
    assert not torch.equal(with_mask, model(one, past_key_values=cache).logits)


@torch.no_grad()
def test_a_window_of_the_models_mask_alone_is_seen() -> None:
    model = small("quantized_dense", build("mistral").to(torch.bfloat16))
    model.config.sliding_window = 5
    ids = tokens(sequences=1, length=12)
    expected = model(ids, use_cache=False).logits[:, 8:]
    use_kernels(model)
    cache = DynamicCache()  # without the config it keeps all tokens, and the mask hides some
    model(ids[:, :8], past_key_values=cache)
    found = decoded(model, cache, ids[0, 8:].tolist()).transpose(0, 1)
    assert off(found, expected) < 0.06


@torch.no_grad()
def test_masks_by_kinds_of_blocks_are_taken() -> None:
    model = small("quantized_dense", build("qwen2").to(torch.bfloat16))
    use_kernels(model)
    cache = model(tokens(sequences=1, length=6), use_cache=True).past_key_values
    other, one = copy.deepcopy(cache), torch.tensor([[5]])
    found = model(one, past_key_values=cache, attention_mask={"full_attention": None}).logits
    assert torch.equal(found, model(one, past_key_values=other).logits)


@torch.no_grad()
def test_a_block_sees_what_has_changed() -> None:
    model = small("pivoted", build("llama").to(torch.bfloat16))
    use_kernels(model)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    ids = torch.tensor([[1]])
    before = model(ids, use_cache=True).logits
    other = {key: -one if one.is_floating_point() else one
             for key, one in model.state_dict().items()}  # fmt: skip
    model.load_state_dict(other, assign=True)
    after = model(ids, use_cache=True).logits
    assert torch.equal(copied(ids, use_cache=True).logits, before)
    assert not torch.allclose(before, after)
    seen = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    model(ids, use_cache=True)
    handle.remove()
    assert seen == [1]


@torch.no_grad()
def test_all_blocks_in_one_call_see_what_has_changed() -> None:
    model = small("pivoted", build("llama").to(torch.bfloat16))
    use_kernels(model)
    cache = model(tokens(sequences=1, length=6), use_cache=True).past_key_values

    def logits() -> Tensor:
        found = decoded(model, cache, [5])[0]
        cache.crop(-1)
        return found

    first = logits()
    assert torch.equal(logits(), first) and stacked(model, cache).length == 7
    mlp, kept = model.model.layers[1].mlp, model.model.layers[1].mlp.up_proj
    mlp.up_proj = copy.deepcopy(kept)
    mlp.up_proj.rows.mul_(2)
    changed = logits()
    assert not torch.allclose(changed, first)
    mlp.up_proj = kept
    assert torch.equal(logits(), first)
    kept.rows.data = 2 * kept.rows.data
    assert torch.equal(logits(), changed)
    seen = []
    handle = mlp.register_forward_hook(lambda *_: seen.append(1))
    assert off(logits(), changed) < 0.02 and seen == [1]
    handle.remove()
    model.model.layers[0].forward = lambda x, **_: x
    assert not torch.allclose(logits(), changed)
    states = model(torch.tensor([[5]]), past_key_values=cache, output_hidden_states=True)
    assert len(states.hidden_states) == len(model.model.layers) + 1
