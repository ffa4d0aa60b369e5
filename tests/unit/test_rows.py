"""Sequences in one batch: each goes on as it does alone, whoever else comes and goes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from spectrim.serve import rows
from spectrim.serve.batched import Batched
from tiny_models import build

TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")))


def alone(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].numpy()


# Sliding windows, learned positions, positions by distance, other key heads: all know left padding.
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "falcon_alibi", "qwen3"])
def test_sequences_do_not_notice_each_other(family, monkeypatch):
    monkeypatch.setattr(rows, "_COLUMNS", 8)  # so that columns run out, and are moved and widened
    monkeypatch.setattr(rows, "_SPARE", 2)
    draw, model = random.Random(0), build(family)
    batch = Batched(model, TOKENIZER, slots=3, context=64)
    texts: dict[int, list[int]] = {}
    for _ in range(24):
        free = [slot for slot in range(3) if slot not in texts]
        if free and draw.random() < 0.5:
            texts[free[0]] = [draw.randrange(3, 112) for _ in range(draw.randrange(1, 14))]
            batch.read(free[0], texts[free[0]][:-1], last=False) if len(texts[free[0]]) > 1 else 0
            found = batch.read(free[0], texts[free[0]][-1:], last=True)
            np.testing.assert_allclose(found, alone(model, texts[free[0]]), atol=2e-4)
        if texts:
            new = {slot: draw.randrange(3, 112) for slot in texts}
            for slot, logits in batch.step(new).items():
                texts[slot].append(new[slot])
                np.testing.assert_allclose(logits, alone(model, texts[slot]), atol=2e-4)
        if texts and draw.random() < 0.3:
            gone = draw.choice(sorted(texts))
            batch.free(gone)
            del texts[gone]
