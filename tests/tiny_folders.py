"""Tiny models as folders on disk, with a tokenizer; and what can be done to their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from spectrim.model.weights import quiet
from tiny_models import VOCABULARY, build

WEIGHTS = "model.safetensors"


def tiny_folder(
    folder: Path,
    family: str = "llama",
    *,
    tie: bool | None = None,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    original: bool = True,
    head_dim: int | None = None,
) -> Path:
    """Save a tiny model and a tokenizer; original: under the names that the hub has, if others."""
    with quiet():
        build(family, tie=tie, head_dim=head_dim).to(dtype).save_pretrained(
            folder, max_shard_size=shard, save_original_format=original
        )
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words |= {f"w{index}": index for index in range(3, VOCABULARY)}
    plain = Tokenizer(WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder)
    return folder


def change_tensors(
    folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor] | None]
) -> None:
    """Rewrite a folder's only weight file with its tensors changed, in place or returned."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS, metadata={"format": "pt"})


def starve_expert(held: dict[str, Tensor], expert: int = 1) -> None:
    """Have no token come to an expert of the first block.

    The first dimension is made large in every token, and the router shuns it for that expert.
    """
    held["model.embed_tokens.weight"][:, 0] = 30.0
    held["model.layers.0.post_attention_layernorm.weight"][0] = 1.0
    (router,) = (
        name
        for name in held
        if name.startswith("model.layers.0.") and name.endswith(".gate.weight")
    )
    held[router][expert] = 0.0
    held[router][expert, 0] = -100.0


def change_config(folder: Path, **values: Any) -> None:
    """Rewrite a folder's config.json with some values set."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def raw_file(file: Path, header: Any, data: bytes) -> Path:
    """Write a safetensors file byte by byte; header: bytes, or what is written as JSON."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return file
