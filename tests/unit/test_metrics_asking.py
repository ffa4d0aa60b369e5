"""Asking a model: each shortcut gives what one plain forward pass gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from spectrim.metrics.asking.ways import continuation_losses, embedded, written
from spectrim.model import sources
from tiny_folders import tiny_folder

FAMILIES = ["llama", "gpt2", "falcon", "gemma2", "opt", "qwen3_moe"]


def asked(folder: Path, family: str) -> tuple[Any, Any]:
    return sources.load(str(tiny_folder(folder, family)), cache=folder / "cache")


def plain_loss(model: Any, ids: list[int], start: int) -> float:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start - 1 : -1]
    return float(functional.cross_entropy(logits, torch.tensor(ids[start:]), reduction="sum"))


@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_upon_a_cache_cost_what_whole_texts_cost(tmp_path: Path, family: str) -> None:
    model, tokenizer = asked(tmp_path, family)
    context, ends = "w5 w9 w11 w4", [" w7", " w8 w3 w12", " w6 w10"]
    found = continuation_losses(model, tokenizer, context, ends)
    begin = tokenizer(context).input_ids
    for (loss, tokens), end in zip(found, ends, strict=True):
        whole = tokenizer(context + end).input_ids
        assert tokens == len(whole) - len(begin)
        assert loss == pytest.approx(plain_loss(model, whole, len(begin)), rel=1e-4)


def test_a_text_without_context_begins_with_the_token_for_it(tmp_path: Path) -> None:
    model, tokenizer = asked(tmp_path, "llama")
    ((loss, tokens),) = continuation_losses(model, tokenizer, "", ["w5 w6 w7"])
    ids = [tokenizer.bos_token_id, *tokenizer("w5 w6 w7").input_ids]
    assert tokens == 3 and loss == pytest.approx(plain_loss(model, ids, 1), rel=1e-5)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_encoder_decoder_reads_the_context_with_its_encoder(tmp_path: Path, family: str) -> None:
    model, tokenizer = asked(tmp_path, family)
    ((loss, tokens),) = continuation_losses(model, tokenizer, "w5 w9", ["w7 w8"])
    told, targets = torch.tensor([tokenizer("w5 w9").input_ids]), tokenizer("w7 w8").input_ids
    begins = torch.tensor([[model.config.decoder_start_token_id, targets[0]]])
    with torch.inference_mode():
        logits = model(input_ids=told, decoder_input_ids=begins).logits[0]
    expected = functional.cross_entropy(logits, torch.tensor(targets), reduction="sum")
    assert tokens == 2 and loss == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bart"])
def test_prompts_written_together_read_as_if_alone(tmp_path: Path, family: str) -> None:
    model, tokenizer = asked(tmp_path, family)
    prompts = ["w5 w9 w11 w4 w7", "w3", "w8 w12"]
    alone = [written(model, tokenizer, [one], 6, until=None)[0] for one in prompts]
    assert written(model, tokenizer, prompts, 6, until=None) == alone
    assert sum(map(bool, alone)) > 1


def test_writing_stops_before_the_mark(tmp_path: Path) -> None:
    model, tokenizer = asked(tmp_path, "llama")
    (whole,) = written(model, tokenizer, ["w5 w9"], 6, until=None)
    mark = whole.split()[2]
    (cut,) = written(model, tokenizer, ["w5 w9"], 6, until=mark)
    assert cut == whole.partition(mark)[0].strip()


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_embeddings_are_means_over_the_tokens_of_each_text(tmp_path: Path, family: str) -> None:
    model, tokenizer = asked(tmp_path, family)
    texts = ["w5 w9 w11 w4 w7", "w3 w4"]
    body = model.get_encoder() if family == "bart" else model.base_model
    for row, one in zip(embedded(model, tokenizer, texts), texts, strict=True):
        with torch.inference_mode():
            states = body(input_ids=torch.tensor([tokenizer(one).input_ids])).last_hidden_state
        torch.testing.assert_close(row, states[0].mean(0), rtol=1e-4, atol=1e-5)
    first = embedded(model, tokenizer, texts[:1], most=2)
    torch.testing.assert_close(first, embedded(model, tokenizer, ["w5 w9"]))
