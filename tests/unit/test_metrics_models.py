"""Metrics on real model classes: direction, and encoder-decoder models."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from spectrim.metrics import read
from spectrim.metrics.speed import speed

VOCABULARY = 32


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # surer of its predictions than random weights make it
        model.lm_head.weight.mul_(40)
    return model


def bart() -> BartForConditionalGeneration:
    sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers",)}
    heads = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    widths = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    config = BartConfig(
        vocab_size=VOCABULARY, max_position_embeddings=64, **sizes, **heads, **widths
    )
    return BartForConditionalGeneration(config)


def t5() -> T5ForConditionalGeneration:
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def written_by(model: PreTrainedModel, sequences: int = 24, length: int = 24) -> torch.Tensor:
    """Return text that the model samples: no other model predicts it better on average."""
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (sequences, 1))
    with torch.inference_mode():
        for _ in range(length - 1):
            last = model(input_ids=ids).logits[:, -1].softmax(-1)
            ids = torch.cat((ids, torch.multinomial(last, 1)), dim=1)
    return ids


def noisy(model: PreTrainedModel, scale: float) -> PreTrainedModel:
    torch.manual_seed(2)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(scale * weight.std().nan_to_num(0.0) * torch.randn_like(weight))
    return other


def test_more_noise_means_more_loss_more_divergence_and_less_agreement() -> None:
    dense = llama()
    ids = written_by(dense)
    reading = read([dense, noisy(dense, 0.05), noisy(dense, 0.3), noisy(dense, 1.0)], ids)
    losses, divergences, agreements = (
        sums.sum(-1).tolist() for sums in (reading.losses, reading.divergences, reading.agreements)
    )
    assert losses[0] < losses[1] < losses[2] < losses[3]
    assert 0 == divergences[0] < divergences[1] < divergences[2] < divergences[3]
    assert agreements[0] > agreements[1] > agreements[2] > agreements[3]


def test_own_loss_equals_that_of_transformers() -> None:
    model, ids = llama(), written_by(llama(), sequences=3)
    reading = read([model], ids)
    with torch.inference_mode():
        expected = float(model(input_ids=ids, labels=ids).loss)
    assert reading.mean(reading.losses[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [bart, t5])
def test_an_encoder_decoder_model_tells_back_what_it_reads(make: object) -> None:
    torch.manual_seed(0)
    model = make().eval()  # type: ignore[operator]
    ids = torch.randint(VOCABULARY, (2, 12))
    reading = read([model, model], ids)
    with torch.inference_mode():
        logits = model(input_ids=ids, decoder_input_ids=ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert reading.mean(reading.losses[0]) == pytest.approx(float(expected), rel=1e-5)
    assert reading.divergences.sum() == 0


@pytest.mark.parametrize("make", [llama, bart, t5])
def test_speed_of_every_kind_of_model(make: object) -> None:
    model = make()  # type: ignore[operator]
    found = speed([model, model], torch.randint(VOCABULARY, (1, 8)), rounds=2, new_tokens=3)
    assert all(len(one.prefill) == len(one.decode) == 2 for one in found)
    assert all(value > 0 for one in found for value in one.prefill + one.decode)
