"""What llama.cpp calls each model family, and what it wants to be told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType

from spectrim.errors import SpectrimError

SILU = ("silu", "swish")
GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # llama.cpp has one for all


@dataclass(frozen=True)
class Family:
    """How a model type of transformers becomes an architecture of llama.cpp."""

    arch: MODEL_ARCH
    activations: tuple[str, ...]
    """What llama.cpp's architecture bends MLPs by, in transformers' words."""
    turned: bool = False
    """Rows of q and k lie pair by pair there, (0, d/2, 1, d/2 + 1, …), not half by half."""
    as_llama: bool = False
    """Its blocks compute as those of `llama` do, and of `deci`, where they may differ in width."""
    biased: tuple[str, ...] = ()
    """Roles of the maps that the architecture has biases for."""
    head_apart: bool = False
    """The architecture has a head of its own, also where the model reads its embedding's table."""
    one_more: bool = False
    """Gains of norms are stored without the 1 that is added to them, and with it there."""
    tell: Callable[[GGUFWriter, Any], None] = lambda writer, config: None
    refuse: Callable[[Any], str | None] = lambda config: None
    """What in a config llama.cpp's architecture cannot express, None where nothing."""


def family_of(config: Any) -> Family:
    """Return the family of a config; SpectrimError where llama.cpp does not run such a model."""
    kind = config.model_type
    if kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise SpectrimError(f"no GGUF is written of model type '{kind}'; supported are {known}")
    family = FAMILIES[kind]
    reason = family.refuse(config) or _refused_rope(config, family)
    reason = reason or _refused_activation(config, family)
    if reason is not None:
        raise SpectrimError(f"llama.cpp cannot run this {kind} model: {reason}; export --to dense")
    return family


def tell_rope(writer: GGUFWriter, config: Any) -> None:
    """Tell how positions turn queries and keys; factors by frequency are a tensor of their own."""
    rope = rope_of(config)
    if "rope_theta" not in rope:
        return
    dim = head_dim(config)
    writer.add_rope_dimension_count(int(dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def rope_of(config: Any) -> dict[str, Any]:
    """Return what a config says of rotary positions, of blocks that see all tokens."""
    said = getattr(config, "rope_parameters", None) or {}
    return dict(said.get("full_attention", said))


def head_dim(config: Any) -> int:
    """Return how many dimensions a head of attention has."""
    known = getattr(config, "head_dim", None)
    return int(known or config.hidden_size // config.num_attention_heads)


def _refused_rope(config: Any, family: Family) -> str | None:
    kind = rope_of(config).get("rope_type", "default")
    by_frequency = family.as_llama or family.arch is MODEL_ARCH.LLAMA
    if kind in ("default", "linear") or (kind == "llama3" and by_frequency):
        return None
    return f"rotary positions of type '{kind}' are not written of it"


def _refused_activation(config: Any, family: Family) -> str | None:
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    said = next((one for name in names if (one := getattr(config, name, None))), None)
    return None if said in family.activations else f"its activation is '{said}'"


def _mixture(writer: GGUFWriter, config: Any) -> None:
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)


def _gemma(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    _gemma(writer, config)
    local = dict(config.rope_parameters).get("sliding_attention", {})
    writer.add_rope_freq_base_swa(local.get("rope_theta", 10000.0))
    writer.add_sliding_window_pattern(_period(config) or len(config.layer_types) + 1)


def _period(config: Any) -> int | None:
    """Return how often a block sees all tokens, as the last of so many; None where none does."""
    full = [at for at, kind in enumerate(config.layer_types) if kind == "full_attention"]
    return full[0] + 1 if full else None


def _refused_windows(config: Any, period: int | None = None) -> str | None:
    """Return why windows that differ from block to block cannot be told."""
    if config.query_pre_attn_scalar != head_dim(config):
        return "its attention is scaled by another number than the width of its heads"
    every = period or _period(config) or len(config.layer_types) + 1
    whole = [(at + 1) % every == 0 for at in range(len(config.layer_types))]
    if whole != [kind == "full_attention" for kind in config.layer_types]:
        return "its blocks with and without a window do not take turns, as where some were dropped"
    return None


def _gemma2_refused(config: Any) -> str | None:
    if not (config.attn_logit_softcapping and config.final_logit_softcapping):
        return "its logits are not capped, and there they always are"
    return _refused_windows(config, 2)


def _gemma3_refused(config: Any) -> str | None:
    if config.attn_logit_softcapping:
        return "the scores of its attention are capped"
    if config.use_bidirectional_attention:
        return "its tokens attend to those behind them"
    return _refused_windows(config)


def _gpt2_refused(config: Any) -> str | None:
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        return "its attention is scaled by another number than the width of its heads"
    return None


def _phi_refused(config: Any) -> str | None:
    return "its queries and keys are normalised" if config.qk_layernorm else None


def _falcon_refused(config: Any) -> str | None:
    if config.alibi:
        return "its positions are ALiBi"
    if config.bias:
        return "its maps have biases"
    if not (config.parallel_attn or config.new_decoder_architecture):
        return "attention and MLP of a block run one after the other"
    return None


ALL = ("q", "k", "v", "qkv", "o", "gate", "up", "down")
_LLAMA = Family(MODEL_ARCH.LLAMA, SILU, turned=True, as_llama=True, biased=ALL)

FAMILIES: dict[str, Family] = {
    "falcon": Family(MODEL_ARCH.FALCON, GELU, refuse=_falcon_refused),
    "gemma2": Family(MODEL_ARCH.GEMMA2, GELU, one_more=True, tell=_gemma, refuse=_gemma2_refused),
    "gemma3_text": Family(
        MODEL_ARCH.GEMMA3, GELU, one_more=True, tell=_gemma3, refuse=_gemma3_refused
    ),
    "gpt2": Family(MODEL_ARCH.GPT2, GELU, biased=ALL, refuse=_gpt2_refused),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": Family(MODEL_ARCH.LLAMA, SILU, turned=True, tell=_mixture),
    "phi": Family(MODEL_ARCH.PHI2, GELU, biased=ALL, head_apart=True, refuse=_phi_refused),
    "qwen2": Family(MODEL_ARCH.QWEN2, SILU, as_llama=True, biased=("q", "k", "v")),
    "qwen3": Family(MODEL_ARCH.QWEN3, SILU),
}
