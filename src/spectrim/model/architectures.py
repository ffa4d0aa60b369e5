"""Where each model family keeps its blocks, its linear maps, its embedding and its head."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spectrim.errors import SpectrimError

_EXPERT = re.compile(r"expert\d+_")


@dataclass(frozen=True)
class Stack:
    """A list of blocks that run one after the other."""

    path: str
    """Dotted path of the list, e.g. `model.layers`."""
    prefix: str = ""
    """What stands before the roles of its blocks, so that encoder and decoder stay apart."""
    width: str = "intermediate_size"
    """Entry of config.json that says how many neurons the MLP of each of its blocks has."""
    count: str = "num_hidden_layers"
    """Entry of config.json that says how many blocks it has."""
    heads: str = "num_attention_heads"
    """Entry of a config that says in how many heads the inputs of its `o` lie."""


@dataclass(frozen=True)
class Place:
    """One block of a model: the third of `model.layers` is `model.layers.2`."""

    stack: Stack
    index: int
    """Which block of its stack, from 0."""

    @property
    def name(self) -> str:
        """Return the dotted path of the block."""
        return f"{self.stack.path}.{self.index}"

    @property
    def prefix(self) -> str:
        """Return what the names of its tensors and sites begin with."""
        return f"{self.name}."

    @property
    def following(self) -> Place:
        """Return the next block of the stack; behind the last block, where there is none."""
        return Place(self.stack, self.index + 1)


@dataclass(frozen=True)
class Architecture:
    """The parts of one model family, all as dotted paths."""

    stacks: tuple[Stack, ...]
    roles: Mapping[str, str]
    """Path inside a block → role, in the order of the forward pass; absent paths are skipped."""
    embed: str
    head: str
    fused: Callable[[Any], tuple[int, int]] | None = None
    """Config → in how many groups the rows of a fused `qkv` lie, each of q, then k, then v; and how
    many times as many rows of a group are of q as of k, and of v. None: it cannot be split."""
    experts: str | None = None
    """Path inside a block of the module that holds all experts, packed as `[expert, out, in]`."""
    rotary: Callable[[Any], bool] = lambda config: True
    """Config → whether positions, or a norm, act on single dimensions of queries and keys, so that
    those of a head cannot be mixed."""
    learned_positions: bool = False
    """Positions are a table, so that no text may be longer than it."""
    shared_bias: bool = False
    """The first block of each stack computes the position bias that the others receive (T5)."""
    returns_tuple: bool = False
    """A block returns its hidden states as the first of a tuple, and the model takes it apart."""


def architecture_of(config: object) -> Architecture:
    """Return the architecture of a model's config.

    config: a transformers config; only its `model_type` is looked at, so that none is imported.

    Raises SpectrimError if its `model_type` is not in the table.
    """
    name = str(getattr(config, "model_type", ""))
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        part = f"{name}_text"  # a file says it, so that there is nothing to guess
        hint = f"; '{part}', its language model alone, is" if part in ARCHITECTURES else ""
        raise SpectrimError(f"model type '{name}' is not supported{hint}; supported are {known}")
    return ARCHITECTURES[name]


_ATTENTION = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
}

_LLAMA = Architecture(
    stacks=(Stack("model.layers"),),
    roles=_ATTENTION
    | {
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    },
    embed="model.embed_tokens",
    head="lm_head",
)

_QWEN3_MOE = replace(_LLAMA, experts="mlp.experts")  # some blocks may be dense

_MIXTRAL = replace(_QWEN3_MOE, roles=_ATTENTION)

_PHI = replace(
    _LLAMA,
    roles={
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.dense": "o",
        "mlp.fc1": "up",
        "mlp.fc2": "down",
    },
)


def _falcon_groups(config: Any) -> tuple[int, int]:
    """Return the layout by key head (new architecture), in one (multi-query), or by head."""
    heads, keys = config.num_attention_heads, config.num_kv_heads
    if config.new_decoder_architecture:
        return keys, heads // keys
    return (1, heads) if config.multi_query else (heads, 1)


_FALCON = Architecture(
    stacks=(Stack("transformer.h", width="ffn_hidden_size"),),
    roles={
        "self_attention.query_key_value": "qkv",
        "self_attention.dense": "o",
        "mlp.dense_h_to_4h": "up",
        "mlp.dense_4h_to_h": "down",
    },
    embed="transformer.word_embeddings",
    head="lm_head",
    fused=_falcon_groups,
    rotary=lambda config: not config.alibi,
    returns_tuple=True,
)

_GPT2 = Architecture(
    stacks=(Stack("transformer.h", width="n_inner", count="n_layer"),),
    roles={
        "attn.c_attn": "qkv",
        "attn.c_proj": "o",
        "mlp.c_fc": "up",
        "mlp.c_proj": "down",
    },
    embed="transformer.wte",
    head="lm_head",
    fused=lambda config: (1, 1),
    rotary=lambda config: False,
    learned_positions=True,
)

_GPT_NEOX = Architecture(
    stacks=(Stack("gpt_neox.layers"),),
    roles={
        "attention.query_key_value": "qkv",
        "attention.dense": "o",
        "mlp.dense_h_to_4h": "up",
        "mlp.dense_4h_to_h": "down",
    },
    embed="gpt_neox.embed_in",
    head="lm_head",
    fused=lambda config: (config.num_attention_heads, 1),
)

_OPT = Architecture(
    stacks=(Stack("model.decoder.layers", width="ffn_dim"),),
    roles={
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.out_proj": "o",
        "fc1": "up",
        "fc2": "down",
    },
    embed="model.decoder.embed_tokens",
    head="lm_head",
    rotary=lambda config: False,
    learned_positions=True,
)

_BART = Architecture(
    stacks=(
        Stack(
            "model.encoder.layers",
            "encoder_",
            "encoder_ffn_dim",
            "encoder_layers",
            "encoder_attention_heads",
        ),
        Stack(
            "model.decoder.layers",
            "decoder_",
            "decoder_ffn_dim",
            "decoder_layers",
            "decoder_attention_heads",
        ),
    ),
    roles={
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.out_proj": "o",
        "encoder_attn.q_proj": "cross_q",
        "encoder_attn.k_proj": "cross_k",
        "encoder_attn.v_proj": "cross_v",
        "encoder_attn.out_proj": "cross_o",
        "fc1": "up",
        "fc2": "down",
    },
    embed="model.shared",
    head="lm_head",
    rotary=lambda config: False,
    learned_positions=True,
)

_T5 = Architecture(
    stacks=(
        Stack("encoder.block", "encoder_", "d_ff", "num_layers"),
        Stack("decoder.block", "decoder_", "d_ff", "num_decoder_layers"),
    ),
    roles={
        "layer.0.SelfAttention.q": "q",
        "layer.0.SelfAttention.k": "k",
        "layer.0.SelfAttention.v": "v",
        "layer.0.SelfAttention.o": "o",
        "layer.1.EncDecAttention.q": "cross_q",
        "layer.1.EncDecAttention.k": "cross_k",
        "layer.1.EncDecAttention.v": "cross_v",
        "layer.1.EncDecAttention.o": "cross_o",
        # The feed-forward part comes after cross-attention where there is one; `wi` where it has
        # no gate, `wi_0` (through the activation) and `wi_1` where it has.
        "layer.1.DenseReluDense.wi": "up",
        "layer.1.DenseReluDense.wi_0": "gate",
        "layer.1.DenseReluDense.wi_1": "up",
        "layer.1.DenseReluDense.wo": "down",
        "layer.2.DenseReluDense.wi": "up",
        "layer.2.DenseReluDense.wi_0": "gate",
        "layer.2.DenseReluDense.wi_1": "up",
        "layer.2.DenseReluDense.wo": "down",
    },
    embed="shared",
    head="lm_head",
    rotary=lambda config: False,
    shared_bias=True,
    returns_tuple=True,
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "bart": _BART,
    "falcon": _FALCON,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _MIXTRAL,
    "opt": _OPT,
    "phi": _PHI,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _QWEN3_MOE,
    "t5": _T5,
}


def role_group(role: str) -> str:
    """Return the role, that of one expert as the one of all."""
    return _EXPERT.sub("experts ", role)
