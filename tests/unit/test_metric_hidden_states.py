"""Cosines of hidden states: equal models, a spoilt block, other depths and families."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spectrim.errors import UnavailableError
from spectrim.metrics import hidden_states
from spectrim.metrics.hidden_states import block_names, block_states, cosines, largest_drop
from tiny_answers import asking, by_name, unigram
from tiny_models import VOCABULARY, build, tokens

SHOWN = hidden_states.SHOWN


def spoilt(model: Any, block: int) -> Any:
    """Return a copy whose MLP of one block writes the opposite."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[block].mlp.down_proj.weight.neg_()
    return other


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "bart", "t5"])
def test_equal_models_point_the_same_way(family: str) -> None:
    model = build(family)
    found = cosines(model, copy.deepcopy(model), tokens())
    assert found.shape == (len(block_names(model)), 2, 12)
    assert torch.allclose(found, torch.ones(()))


def test_states_are_those_that_transformers_returns() -> None:
    model = build("llama")
    with torch.no_grad():
        told = model(tokens(), output_hidden_states=True).hidden_states
    for one, expected in zip(block_states(model, tokens())[:-1], told[1:-1], strict=True):
        assert torch.equal(one, expected)


def test_blocks_of_encoder_and_decoder_have_names() -> None:
    names = block_names(build("bart"))
    assert names == [
        *("encoder block 0", "encoder block 1"),
        *("decoder block 0", "decoder block 1", "decoder block 2"),
    ]
    assert not build("bart").model.encoder.layers[0]._forward_hooks


def test_no_hook_stays_behind() -> None:
    model: Any = build("llama")
    block_states(model, tokens())
    assert not any(block._forward_hooks for block in model.model.layers)


def test_opposite_embeddings_give_opposite_states() -> None:
    dense, small = unigram(), unigram()  # blocks add nothing, so states are embeddings
    with torch.no_grad():
        small.model.embed_tokens.weight.neg_()
    assert torch.allclose(cosines(dense, small, tokens()), -torch.ones(()))


def test_models_of_other_depth_are_compared_at_the_same_share_of_it() -> None:
    assert [hidden_states._beside(block, 3, 6) for block in range(3)] == [1, 3, 5]
    assert [hidden_states._beside(block, 6, 6) for block in range(6)] == list(range(6))
    dense, small = unigram(), unigram()
    small.model.layers = small.model.layers[:2]
    assert torch.allclose(cosines(dense, small, tokens()), torch.ones(2, 2, 12))


def test_states_of_other_width_have_no_angle() -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with pytest.raises(UnavailableError, match="of 48 and 32 numbers have no angle"):
        cosines(build("llama"), LlamaForCausalLM(config), tokens())


def test_the_largest_drop_is_found() -> None:
    assert largest_drop([1.0, 0.9, 0.3, 0.25]) == (2, pytest.approx(0.6))
    assert largest_drop([0.2, 0.3]) == (0, pytest.approx(0.8))
    assert largest_drop([1.0, 1.0]) == (0, 0)


def test_the_block_that_breaks_is_told(tmp_path: Path) -> None:
    dense = build("llama")
    pair = asking(
        tmp_path,
        [dense, spoilt(dense, 1)],
        "hidden_states",
        texts={"wiki": tokens(sequences=4), "code": tokens(sequences=1)},
    )
    scores = by_name(hidden_states.measure(pair), "small", SHOWN)
    blocks = scores["cosine"].settings["blocks"]
    lows = scores["cosine_low"].settings["blocks_low"]
    assert len(blocks) == len(lows) == 3
    assert blocks[0] == lows[0] == 1 > blocks[1] > lows[1]
    assert scores["breaking_block"].settings["block"] == "block 1"
    assert scores["breaking_block"].value == 1
    assert scores["cosine"].n == 4 and scores["cosine"].settings["text_read"] == "wiki"
    assert scores["cosine"].value == pytest.approx(sum(blocks) / 3)
    assert scores["last_cosine"].value == pytest.approx(blocks[2])
    low, high = scores["cosine_low"].interval or (1, 0)
    assert low <= scores["cosine_low"].value <= high < 1


def test_equal_models_break_nowhere(tmp_path: Path) -> None:
    model, texts = build("llama"), {"wiki": tokens(sequences=3)}
    pair = asking(tmp_path, [model, copy.deepcopy(model)], "hidden_states", texts=texts)
    found = hidden_states.measure(pair)
    assert "dense" not in found
    scores = by_name(found, "small", SHOWN)
    assert scores["cosine"].value == scores["cosine_low"].value == scores["last_cosine"].value == 1
    assert "breaking_block" not in scores


def test_sentences_are_cut_from_the_text_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = hidden_states.sentences("its end. One two three four. Short one. A b c d e! And so")
    assert found == ["One two three four.", "A b c d e!"]
    texts = ["w5 w6 w7 w8 .", "w9 w10 w11 w12 ."]
    monkeypatch.setattr(hidden_states, "sentences", lambda text: texts)
    model = build("llama")
    dense_and = [model, spoilt(model, 0)]
    pair = asking(tmp_path, dense_and, "hidden_states", texts={"wiki": tokens()}, limit=2)
    scores = by_name(hidden_states.measure(pair), "small", SHOWN)
    assert scores["sentence_cosine"].n == 2
    assert scores["sentence_cosine_low"].value <= scores["sentence_cosine"].value < 1


def test_a_model_alone_is_compared_with_nothing(tmp_path: Path) -> None:
    pair = asking(tmp_path, [build("llama")], "hidden_states", texts={"wiki": tokens()})
    assert hidden_states.measure(pair) == {}
