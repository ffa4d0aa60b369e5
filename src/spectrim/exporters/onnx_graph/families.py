"""Which models have a form in ONNX here: families, activations and rotary positions."""

from __future__ import annotations

from typing import Any

from spectrim.errors import SpectrimError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
ACTIVATIONS = {"silu": "QuickGelu", "gelu_pytorch_tanh": "Gelu"}
ROTARY = ("default", "linear", "llama3", "yarn")  # whose frequencies do not change with the length
HEADS = 8  # what a head's dimensions are a multiple of


def refuse(config: Any) -> None:
    """Raise SpectrimError for a model that this graph does not compute."""
    if config.model_type not in FAMILIES:
        raise SpectrimError(
            f"model type '{config.model_type}' has no ONNX form here; it has for "
            f"{', '.join(FAMILIES)}"
        )
    if activation(config) not in ACTIVATIONS:
        raise SpectrimError(
            f"activation '{activation(config)}' has no ONNX form here; it has for "
            f"{', '.join(ACTIVATIONS)}"
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if width % HEADS:
        raise SpectrimError(
            f"heads of {width} dimensions have no ONNX form; GroupQueryAttention takes multiples "
            f"of {HEADS}"
        )
    for kind in _rotary_kinds(config):
        if kind not in ROTARY:
            raise SpectrimError(
                f"rotary positions of type '{kind}' change with the length of the text, which "
                f"the ONNX form does not; it knows {', '.join(ROTARY)}"
            )
    if getattr(config, "use_bidirectional_attention", False):
        raise SpectrimError("attention to later tokens has no ONNX form here; expected a decoder")


def activation(config: Any) -> str:
    """Return the name of the activation of a config's MLPs."""
    return str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", ""))


def _rotary_kinds(config: Any) -> list[str]:
    """Return the types of rotary positions that a config names, of each kind of attention."""
    known = config.rope_parameters
    each = [known] if "rope_type" in known else [one for one in known.values() if one]
    return [str(one["rope_type"]) for one in each]
