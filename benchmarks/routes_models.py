"""The models of benchmarks/routes.py: llama.cpp's Q4_0, and a random Llama in two sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from decode import BILLION
from gguf import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from spectrim.exporters import gguf as exporter
from spectrim.exporters._gguf_types import Stored
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.model import checkpoint
from spectrim.rounding import ggml

BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
LARGE = {**BILLION, "vocab_size": 49152, "tie_word_embeddings": True,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
STEP = 64  # ranks and widths are multiples of it


def write_q4_0(folder: Path, file: Path) -> None:
    """Write a dense model as llama.cpp's own Q4_0 is: its head in Q6_K, or in Q8_0 if narrow."""

    def kind(tensor: Stored) -> Kind:
        if len(tensor.shape) == 1:
            return Kind.F32
        tied = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
        if tensor.name.startswith("token_embd" if tied else "output"):
            return Kind.Q8_0 if tensor.shape[1] % 256 else Kind.Q6_K
        return Kind.Q4_0

    def encoded(tensor: Stored, kind: Kind) -> np.ndarray:
        values = tensor.dense().float()
        numbers: np.ndarray = values.numpy()
        return numbers if kind is Kind.F32 else ggml.quantize(values, kind)

    with patch.object(exporter, "encoded", encoded):
        exporter.gguf(folder, file, None, choose=kind)


def write_large(small: Path, dense: Path, smaller: Path) -> None:
    """Write a Llama of 1.1 B random weights, and one made smaller as a small model is.

    Block by block along the depth, each map has the small one's format, bits, and part of the rank
    or width. The codes are random.
    """
    torch.manual_seed(0)
    whole = LlamaForCausalLM._from_config(LlamaConfig(**LARGE), dtype=torch.bfloat16)
    whole.save_pretrained(dense)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LARGE)).to(torch.bfloat16)
    held = like(json.loads((small / "config.json").read_text()), whole)
    del whole
    checkpoint.install(model, held)
    model.to_empty(device="cpu")
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config)
    fill(model)
    checkpoint.attach(model, held)
    model.save_pretrained(smaller)
    for name in BESIDE:
        for folder in (dense, smaller):
            shutil.copy(small / name, folder / name)


def like(config: dict[str, Any], model: Any) -> dict[str, dict[str, Any]]:
    """Return the format of every map of a model, taken from a made model's config."""
    sites, blocks = config["quantization_config"]["sites"], config["num_hidden_layers"]
    held = {}
    for name, module in model.named_modules():
        parts = name.split(".")
        if not isinstance(module, torch.nn.Linear) or "layers" not in parts:
            continue
        last = LARGE["num_hidden_layers"] - 1
        parts[2] = str(round(int(parts[2]) * (blocks - 1) / last))
        said = sites[".".join(parts)]
        own, theirs = module.weight.shape, (said["out_features"], said["in_features"])
        of = {"fewer_outputs": 0, "fewer_inputs": 1}.get(said["format"].partition("_")[2])
        full, was = (min(one) if of is None else one[of] for one in (own, theirs))
        rank = max(STEP, int(said["rank"] / was * full) // STEP * STEP)
        held[name] = {**said, "out_features": own[0], "in_features": own[1], "rank": rank}
    words, width = LARGE["vocab_size"], LARGE["hidden_size"]
    shape = {"out_features": words, "in_features": width, "rank": width, "bias": False}
    table = sites["model.embed_tokens"]
    held["model.embed_tokens"] = {**table, **shape}
    held["lm_head"] = {"format": "tied_head", "owner": "model.embed_tokens", **shape}
    return held


@torch.no_grad()
def fill(model: Any) -> None:
    """Fill a model with random codes and numbers of the size of a trained one's."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1)
    for part in model.modules():
        if isinstance(part, PackedMatrix):
            part.packed.random_(0, 256)
            part.unit.fill_(0.04 / 2**part.grid.bits)
            if part.scale_code is not None:
                part.scale_code.fill_(200)
            if part.offset_code is not None:
                part.offset_code.random_(-8, 8)
