"""Attention maps: distances of known distributions, and models whose attention is known."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from spectrim.errors import UnavailableError
from spectrim.metrics import Evaluation, Pair
from spectrim.metrics.attention import attention_maps, distances, fourier, measure

IDS = torch.arange(3, 15)
TOKENS = len(IDS)


class Words:
    """Numbers the words of a text in order; as much of a tokenizer as is needed."""

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[3 + place for place, _ in enumerate(text.split())])

    def decode(self, ids: list[int]) -> str:
        return f"word{ids[0]}"


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        initializer_range=0.8,
    )
    return LlamaForCausalLM(config).eval()


def uniform(model: LlamaForCausalLM, block: int) -> LlamaForCausalLM:
    """Return a copy whose queries of one block say nothing: all keys are then alike."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.model.layers[block].self_attn.q_proj.weight.zero_()
    return made


WORDS = Words()


def pair(*models: Any, tokenizer: Any = WORDS, **more: Any) -> Pair:
    named = dict(zip(("dense", "small", "int4"), models, strict=False))
    chosen = Evaluation(suite="quick", baselines={"int4": 0}, **more)
    return Pair(named, {}, chosen, tokenizer=tokenizer)


def test_distance_of_looking_at_oneself_from_looking_at_all() -> None:
    own = torch.eye(5)[None, None]
    even = torch.full((1, 1, 5, 5), 1 / 5)
    assert distances(own, even).tolist() == [[pytest.approx(1 - 1 / 5)]]
    assert distances(own, own).tolist() == [[0.0]]
    assert distances(own, own.flip(-1)).tolist() == [[pytest.approx(4 / 5)]]  # the middle row stays


def test_fourier_of_an_even_map_is_its_mean_frequency_alone() -> None:
    found = fourier(torch.full((4, 4), 0.25))
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[2, 2] = torch.log(torch.tensor(1 + 16 * 0.25, dtype=torch.float64))
    assert torch.allclose(found, expected, atol=1e-12)


def test_queries_that_say_nothing_look_at_all_before_them_alike() -> None:
    model = uniform(llama(), 0)
    before = model.config._attn_implementation
    maps = attention_maps(model, IDS)
    even = torch.ones(TOKENS, TOKENS).tril() / torch.arange(1, TOKENS + 1)[:, None]
    assert maps.shape == (2, 4, TOKENS, TOKENS)
    assert torch.allclose(maps[0], even.expand(4, -1, -1), atol=1e-6)
    assert not torch.allclose(maps[1], even.expand(4, -1, -1), atol=1e-2)
    assert torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5)
    assert model.config._attn_implementation == before != "eager"


def test_the_attention_of_the_encoder_sees_both_ways() -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    maps = attention_maps(T5ForConditionalGeneration(config), IDS)
    assert maps.shape == (2, 2, TOKENS, TOKENS)
    assert float(maps[0, 0, 0, -1]) > 0


def test_equal_models_are_nowhere_apart() -> None:
    model = llama()
    found = measure(pair(model, copy.deepcopy(model)))
    assert list(found) == ["small"]
    (score,) = found["small"]
    assert (score.value, score.better, score.n) == (0.0, "lower", 2 * 4)


def test_the_head_that_moved_most_is_shown_with_all_its_maps() -> None:
    model = llama()
    small = uniform(model, 1)
    (score,) = measure(pair(model, small))["small"]
    told = score.settings
    tokens = len(told["tokens"])
    ids = torch.arange(3, 3 + tokens)
    maps = attention_maps(model, ids), attention_maps(small, ids)
    apart = distances(*maps)
    assert score.value == pytest.approx(float(apart.mean()), abs=1e-6) and score.value > 0.01
    assert told["task"] == "Attention" and told["block"] == 1  # the first block is as it was
    assert told["blocks"][0] == 0 and told["blocks"][1] == pytest.approx(2 * score.value, abs=1e-4)
    assert told["head"] == int(apart[1].argmax())
    assert list(told["maps"]) == list(told["fourier"]) == ["dense", "small"]
    shown = torch.tensor(told["maps"]["small"])
    assert torch.allclose(shown, maps[1][1, told["head"]], atol=6e-5)
    assert all(round(value, 4) == value for row in told["maps"]["dense"] for value in row)


def test_baselines_are_shown_at_the_same_head_in_the_full_suite_only() -> None:
    model = llama()
    models = (model, uniform(model, 1), copy.deepcopy(model))
    assert list(measure(pair(*models))) == ["small"]
    chosen = Evaluation(suite="full", baselines={"int4": 0})
    found = measure(Pair(pair(*models).models, {}, chosen, tokenizer=Words()))  # type: ignore[arg-type]
    assert found["int4"][0].value == 0.0 and "maps" not in found["int4"][0].settings
    assert list(found["small"][0].settings["maps"]) == ["dense", "small", "int4"]


def test_nothing_is_measured_where_it_is_not_asked() -> None:
    model = llama()
    assert measure(pair(model, model, tasks=("boolq",))) == {}
    assert measure(pair(model)) == {}


def test_what_cannot_be_had_is_said_in_a_line() -> None:
    model = llama()
    with pytest.raises(UnavailableError, match="attention maps need a tokenizer; give"):
        measure(pair(model, model, tokenizer=None))

    class Blind(LlamaForCausalLM):
        def forward(self, **_: Any) -> Any:
            return SimpleNamespace(attentions=None)

    with pytest.raises(UnavailableError, match="Blind gives no attention maps; leave 'attention'"):
        attention_maps(Blind(model.config), IDS)
