"""A GGUF file behind the server: what transformers generates, within the model's own positions."""

from __future__ import annotations

import openai
import pytest
import torch

from spectrim.errors import SpectrimError
from spectrim.exporters.gguf import gguf
from spectrim.model import sources
from spectrim.serve import Limits
from spectrim.serve.served import opened
from tiny_exports import exportable
from tiny_runs import load
from tiny_server import serving

PROMPT = [5, 9, 12, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a model that has learned 64 positions."""
    return exportable(tmp_path_factory.mktemp("serve") / "tiny", "gpt2")


@pytest.fixture(scope="module")
def file(folder):
    made = folder.parent / "tiny.gguf"
    gguf(folder, made, None)
    return made


def greedy(folder, count):
    """Return what transformers' own generation answers."""
    ids = torch.tensor([PROMPT])
    made = load(folder).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
    )
    tokenizer = sources.tokenizer(sources.Source("", folder, ""))
    return tokenizer.decode(made[0, len(PROMPT) :], skip_special_tokens=True)


def test_answers_fill_the_models_positions_and_no_more(folder, file):
    with serving(file, Limits()) as place, place.client() as client:
        assert client.models.retrieve("tiny.gguf").max_model_len == 64
        asked = {"model": "tiny.gguf", "prompt": PROMPT, "temperature": 0}
        found = client.completions.create(**asked, max_tokens=8)
        assert found.choices[0].text == greedy(folder, 8)
        whole = client.completions.create(**asked, max_tokens=60)
        assert whole.choices[0].text.startswith(found.choices[0].text)
        assert client.completions.create(**asked, max_tokens=8).choices[0].text == (
            found.choices[0].text
        )
        with pytest.raises(openai.BadRequestError, match="maximum context length is 64"):
            client.completions.create(**asked, max_tokens=61)


def test_a_longer_context_than_the_models_is_refused(file):
    with pytest.raises(SpectrimError, match="the model has 64 positions"):
        opened(file, Limits(context=65), threads=1)
