"""On the demo model: int4 loses more than int8 off a grid only; bigger models take more memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from noise import with_noise
from spectrim.formats import from_factors
from spectrim.metrics import Evaluation, Pair, read
from spectrim.metrics.memory import measure
from spectrim.model import sites, sources
from spectrim.model.checkpoint import attach
from spectrim.model.weights import quiet
from spectrim.rounding import baselines
from tiny_models import build

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the warm sun. " * 4
MEGABYTE = 1_000_000


def divergences(models: list[Any], tokenizer: Any) -> list[float]:
    """Return the divergence of every model from the first on the text, in nats per token."""
    ids = torch.tensor(tokenizer(TEXT)["input_ids"])[None, :64]
    found = read(models, ids)
    return (found.divergences.sum(dim=1) / found.tokens.sum()).tolist()


def off_the_grid(dense: Any) -> Any:
    """Return a copy with noise far below the weights but not below the grid's steps."""
    return with_noise(dense, 0.05)


def test_int4_loses_more_than_int8(demo_models: tuple[Any, Any, Any]) -> None:
    dense, _, tokenizer = demo_models
    moved = off_the_grid(dense)
    both = baselines.of(moved)
    _, eight, four = divergences([moved, *both.values()], tokenizer)
    assert 0 < eight < 0.02
    assert four > 3 * eight
    assert baselines.stored_bytes(both["int4"]) < baselines.stored_bytes(both["int8"])


def test_int4_loses_next_to_nothing_of_weights_on_a_grid(demo_models: tuple[Any, Any, Any]) -> None:
    dense, noisy, tokenizer = demo_models
    _, eight, four, spoilt = divergences([dense, *baselines.of(dense).values(), noisy], tokenizer)
    assert 0 < eight < 0.02 and 0 < four < 0.02 < spoilt


def test_a_process_with_a_bigger_model_takes_more_memory(
    demo_models: tuple[Any, Any, Any], demo_cache: Path, tmp_path: Path
) -> None:
    folder = sources.resolve("demo", demo_cache).folder
    models = {"dense": demo_models[0], "small": demo_models[0]}
    texts = {"text": torch.full((1, 16), 5)}
    folders = {"dense": folder, "small": tiny_folder_in_our_format(tmp_path)}
    found = measure(Pair(models, texts, Evaluation(folders=folders, prompt_tokens=8, new_tokens=2)))
    sizes = {label: {one.name: one.value for one in own} for label, own in found.items()}
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    grown = sizes["dense"]["peak_memory"] - sizes["small"]["peak_memory"]
    assert 0.9 * weights < grown < 4 * weights
    assert sizes["small"]["model_memory"] < 200 * MEGABYTE < sizes["small"]["peak_memory"]


def tiny_folder_in_our_format(folder: Path) -> Path:
    """Save a tiny model with one factored map; only who imports spectrim can load it."""
    model, name = build("llama"), "model.layers.0.mlp.up_proj"
    rows, columns = sites.shape(model.get_submodule(name))
    factors = from_factors(
        "pivoted", torch.randn(rows, 4), torch.randn(4, columns), None, torch.float32
    )
    sites.replace(model, name, factors)
    attach(model, {name: {"format": "pivoted", **factors.shape()}})
    with quiet():
        model.save_pretrained(folder)
    return folder
