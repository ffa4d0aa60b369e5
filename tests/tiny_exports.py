"""Tiny models with tokenizers that merge pairs, and how far an engine is from transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from spectrim.engines import Running
from spectrim.formats import make_format
from spectrim.model import sites
from spectrim.model.checkpoint import attach
from spectrim.model.weights import quiet
from tiny_models import VOCABULARY, _randomise, config

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
MERGES = [("h", "e"), ("t", "he"), ("i", "n"), ("a", "n"), ("o", "u"), ("r", "e"), ("in", "g")]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }} and {% endfor %}"
TEXT = "the king and the queen, 12 years ago\nreading"


def byte_pairs() -> Tokenizer:
    """Return a tokenizer that merges pairs of bytes, as GPT-2's does."""
    words = ["<unk>", "<s>", "</s>", *LETTERS, *"0123456789,.!?-", "Ġ", "Ċ"]
    merges = [*MERGES, ("Ġ", "the"), ("Ġ", "an")]
    words += [left + right for left, right in merges]
    made = Tokenizer(BPE({word: place for place, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def pieces() -> Tokenizer:
    """Return a tokenizer of SentencePiece's kind, which spells other bytes by their numbers."""
    merges = [*MERGES, ("▁", "the"), ("▁", "an")]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    words += [left + right for left, right in merges]
    known = {word: place for place, word in enumerate(words)}
    made = Tokenizer(BPE(known, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return made


def exportable(
    folder: Path, family: str = "llama", *, words: Tokenizer | None = None, **changes: Any
) -> Path:
    """Save a tiny model that engines can load; changes: of its config."""
    settings = config(family)
    for name, value in changes.items():
        setattr(settings, name, value)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    _randomise(model, 0)
    return saved(folder, model, words)


def chatting(folder: Path, **changes: Any) -> Path:
    """Save a tiny model whose every token has a text, with a template of chats."""
    words = byte_pairs()
    made = exportable(folder, words=words, vocab_size=words.get_vocab_size(), **changes)
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(made)
    return made


def saved(folder: Path, model: PreTrainedModel, words: Tokenizer | None = None) -> Path:
    """Save a model, with a tokenizer beside it."""
    with quiet():
        model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words or byte_pairs(), **SPECIAL)
    tokenizer.save_pretrained(folder)
    return folder


def in_formats(model: Any, made: dict[str, Any]) -> Any:
    """Put formats in the place of maps of a model, and have it say so when it is saved."""
    for name, module in made.items():
        sites.replace(model, name, module)
    attach(model, {name: about(module) for name, module in made.items()})
    return model


def about(module: Any) -> dict[str, Any]:
    """Return what config.json says of a format."""
    words = "".join(f"_{one.lower()}" if one.isupper() else one for one in type(module).__name__)
    return {"format": words.removeprefix("_"), **module.shape()}


def narrower(model: Any, widths: list[int]) -> Any:
    """Keep the first neurons of each block's MLP."""
    made = {}
    for index, width in enumerate(widths):
        for part, name in (("gate", "fewer_outputs"), ("up", "fewer_outputs"),
                           ("down", "fewer_inputs")):  # fmt: skip
            path = f"model.layers.{index}.mlp.{part}_proj"
            weight = model.get_submodule(path).weight.detach()
            root = torch.eye(weight.shape[1]).double()
            pieces = {"rows": weight, "columns": weight, "root": root,
                      "order": torch.arange(max(weight.shape))}  # fmt: skip
            shape = (weight.shape[0], weight.shape[1], width)
            made[path] = make_format(name, shape, pieces, None, weight.dtype)
    return in_formats(model, made)


@torch.no_grad()
def apart(model: PreTrainedModel, running: Running, length: int = 12) -> float:
    """Return how far the logits of an engine are from the model's, the rest apart that few see."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
    expected = model(ids[None]).logits[0].float().numpy()
    running.clear()
    first = length // 2
    got = [running.feed(ids[:first].tolist())]
    got += [running.feed([one]) for one in ids[first:].tolist()]
    return float(np.abs(np.stack(got) - expected[first - 1 :]).max())
