"""Tiny models with random weights, one per family, built from the family's real config class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)

from spectrim.model.architectures import ARCHITECTURES, architecture_of
from spectrim.model.experts import unpack_experts

VOCABULARY = 112

_COMMON = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_PLAIN = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_WIDE = {**_GROUPED, "head_dim": 16}  # heads wider together than the hidden states
_WINDOWS = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 16,
}
_FALCON = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": False}
_OPT = {"hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
_T5 = {
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 80,
    "num_layers": 3,
    "num_decoder_layers": 2,  # transformers sizes the cache of both by num_layers
    "num_heads": 4,
    "decoder_start_token_id": 0,
}

_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "bart": {
        "d_model": 48,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 6,
        "encoder_ffn_dim": 80,
        "decoder_ffn_dim": 72,
        "forced_eos_token_id": None,
        "decoder_start_token_id": 2,
    },
    "falcon": {**_FALCON, "multi_query": True},
    "gemma2": {**_WIDE, **_WINDOWS},
    "gemma3_text": {**_WIDE, **_WINDOWS},
    "gpt2": {"n_embd": 48, "n_inner": 80, "n_layer": 3, "n_head": 4},
    "gpt_neox": {**_PLAIN, "num_attention_heads": 3},
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 5},
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "opt": _OPT,
    "phi": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _WIDE,
    "qwen3_moe": {
        **_WIDE,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "t5": {**_T5, "feed_forward_proj": "relu"},
}

_VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "falcon_new": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": (
        "falcon",
        {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "llama_biased": ("llama", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "opt_projected": (
        "opt",
        {**_OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    "t5_gated": ("t5", {**_T5, "feed_forward_proj": "gated-gelu"}),
}

FAMILIES: tuple[str, ...] = (*ARCHITECTURES, *_VARIANTS)
"""Every model type of the table, and the variants whose blocks differ."""


def model_type(family: str) -> str:
    """Return the model type of a family or variant."""
    return _VARIANTS[family][0] if family in _VARIANTS else family


def config(
    family: str, *, tie: bool | None = None, head_dim: int | None = None
) -> PretrainedConfig:
    """Return the config of a tiny model; tie and head_dim: as in `build`."""
    name = model_type(family)
    options = _VARIANTS[family][1] if family in _VARIANTS else _CONFIGS[name]
    tying = {} if tie is None else {"tie_word_embeddings": tie}
    if name == "bart":
        tying = {}  # the flag would part the tables of encoder and decoder too, as no BART does
    width = {} if head_dim is None else {"head_dim": head_dim}
    return AutoConfig.for_model(name, **{**_COMMON, **options, **tying, **width})


def build(
    family: str, *, seed: int = 0, tie: bool | None = None, head_dim: int | None = None
) -> PreTrainedModel:
    """Return a tiny model in float32 and eval mode, every bias and norm away from its default.

    tie: whether head and embedding share their weights; None for what the family's config says.
    head_dim: dimensions of one head of attention; None for what the family has here.
    """
    settings = config(family, tie=tie, head_dim=head_dim)
    model = _class(settings).from_config(settings, dtype=torch.float32)
    if tie is False and settings.is_encoder_decoder:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    _randomise(model, seed)
    return model.eval()


def build_empty(family: str, *, tie: bool | None = None) -> PreTrainedModel:
    """Return the same model without weights, on the meta device."""
    settings = config(family, tie=tie)
    with torch.device("meta"):
        model = _class(settings).from_config(settings, dtype=torch.float32)
        if tie is False and settings.is_encoder_decoder:
            model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model.eval()


def tokens(
    *, sequences: int = 2, length: int = 12, seed: int = 0
) -> Int[Tensor, "sequences length"]:
    """Return random token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (sequences, length), generator=generator)


@torch.no_grad()
def logits(
    model: PreTrainedModel, ids: Int[Tensor, "sequences length"]
) -> Float[Tensor, "sequences length vocabulary"]:
    """Return the logits; an encoder–decoder reads the ids, and predicts from them reversed."""
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)[:, :-3]  # not as long as what the encoder reads
    return model(**inputs, use_cache=False).logits


def assert_generates_alike(model: PreTrainedModel) -> None:
    """Assert that greedy generation with a cache gives what it gives without one."""
    one, other = (_generated(model, cached) for cached in (True, False))
    assert torch.equal(one.sequences, other.sequences)
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-3, atol=1e-3)


def _generated(model: PreTrainedModel, cached: bool) -> Any:
    return model.generate(
        tokens(sequences=2, length=8),
        attention_mask=torch.ones(2, 8, dtype=torch.long),
        use_cache=cached,
        do_sample=False,
        min_new_tokens=8,
        max_new_tokens=8,
        return_dict_in_generate=True,
        output_logits=True,
    )


def unpack(model: PreTrainedModel) -> None:
    """Unpack the experts of every block, where there are any."""
    architecture = architecture_of(model.config)
    if architecture.experts:
        for block in model.get_submodule(architecture.stacks[0].path):
            unpack_experts(block, architecture.experts)


def _class(settings: PretrainedConfig) -> Any:
    return AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM


@torch.no_grad()
def _randomise(model: nn.Module, seed: int) -> None:
    """Draw weights large enough that every part of the model moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.add_(0.2 * noise)
        else:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
