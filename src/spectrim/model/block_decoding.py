"""A block of Llama's family that decodes one token, by the kernels where they fit.

It takes two calls instead of forty: one up to the keys and values that go into the cache, one for
all that follows. Everything else runs as transformers wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.formats import FactoredLinear
from spectrim.kernels.library import Library, checked, library
from spectrim.kernels.maps import Kept, Made, Parts, made
from spectrim.kernels.structures import Block, Numbers, address, readable
from spectrim.model.elementwise import SILU

FAMILIES = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
WIDEST_HEAD = 1024
PLAIN_ATTENTION = ("sdpa", "eager")


class Decoding:
    """The forward of a block of the Llama family: by the kernels for one token, else its own."""

    def __init__(self, block: nn.Module) -> None:
        self.block: Any = block
        self.kept = Kept()

    def __call__(self, hidden_states: Tensor, *args: Any, **named: Any) -> Tensor:
        """Return the hidden states behind the block, as its own forward does."""
        if hidden_states.shape[:2] == (1, 1) and not args and self._fits(hidden_states, named):
            library_ = library()
            pointer = self.pointer()
            if pointer is not None and library_ is not None:
                return self._decoded(library_, pointer, hidden_states, named)
        found: Tensor = type(self.block).forward(self.block, hidden_states, *args, **named)
        return found

    def _fits(self, x: Tensor, named: dict[str, Any]) -> bool:
        """Return whether this call is the plain one: one token behind a cache, nothing masked."""
        if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not x.is_contiguous():
            return False
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.block.training:
            return False
        if named.get("attention_mask") is not None or named.get("past_key_values") is None:
            return False
        angles = named.get("position_embeddings")
        attention = self.block.self_attn
        return (
            angles is not None
            and angles[0].dtype == torch.bfloat16
            and angles[0].numel() == attention.head_dim
            and attention.config._attn_implementation in PLAIN_ATTENTION
        )

    def _decoded(self, library_: Library, pointer: Any, x: Tensor, named: dict[str, Any]) -> Tensor:
        structure = self.kept.structure
        heads, key_heads, size = structure.heads, structure.key_heads, structure.head
        cosine, sine = named["position_embeddings"]
        cache = named["past_key_values"]
        queries = torch.empty(heads * size, dtype=torch.bfloat16)
        new = torch.empty(2, 1, key_heads, 1, size, dtype=torch.bfloat16)
        threads = torch.get_num_threads()
        at, queries_at = x.data_ptr(), queries.data_ptr()
        checked(library_.before(pointer, at, cosine.data_ptr(), sine.data_ptr(), queries_at,
                                new.data_ptr(), threads))  # fmt: skip
        keys, values = cache.update(*new.unbind(), self.block.self_attn.layer_idx)
        keys, values = (one.to(torch.bfloat16).contiguous() for one in (keys, values))
        out = torch.empty_like(x)
        checked(library_.after(pointer, at, queries_at, keys.data_ptr(), values.data_ptr(),
                               keys.shape[2], out.data_ptr(), threads))  # fmt: skip
        return out

    def pointer(self) -> Any:
        """Return a pointer to the block's structure; None where the library cannot compute it."""
        inner = inner_modules(self.block)
        if any(one._forward_hooks or one._forward_pre_hooks for one in inner):
            return None
        tensors = [
            one
            for module in inner
            for held in (module._parameters, module._buffers)
            for one in held.values()
            if one is not None
        ]
        return self.kept.pointer(tensors, lambda: structure_of(self.block))


def inner_modules(module: nn.Module) -> list[nn.Module]:
    """Return all modules inside a block, itself left out."""
    found: list[nn.Module] = []
    for child in module._modules.values():
        if child is not None:
            found.append(child)
            if child._modules:
                found += inner_modules(child)
    return found


@dataclass(frozen=True)
class MadeBlock:
    """A block's structure, and all tensors whose addresses it holds."""

    structure: Block
    tensors: list[Tensor]


def structure_of(block: Any) -> MadeBlock | None:
    """Return what the library computes a block with; None where it cannot."""
    attention, mlp = block.self_attn, block.mlp
    maps = [map_of(getattr(attention, name)) for name in ATTENTION]
    maps += [map_of(getattr(mlp, name, None)) for name in MLP]
    found = [one for one in maps if one is not None]
    norms = [block.input_layernorm, block.post_attention_layernorm,
             getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)]  # fmt: skip
    weights = [None if norm is None else norm.weight for norm in norms]
    if len(found) < len(maps) or type(mlp.act_fn).__name__ not in SILU:
        return None
    size = attention.head_dim
    (q, k, v, o, gate, up, down), hidden = [one.structure for one in found], len(norms[0].weight)
    heads, key_heads = q.outputs // size, k.outputs // size
    fits = (
        readable(one for one in weights if one is not None)
        and size <= WIDEST_HEAD and size % 2 == 0
        and q.outputs == o.inputs == heads * size
        and k.outputs == v.outputs == key_heads * size
        and heads == key_heads * attention.num_key_value_groups
        and gate.outputs == up.outputs == down.inputs
        and {q.inputs, k.inputs, v.inputs, gate.inputs, up.inputs, o.outputs, down.outputs}
        == {hidden}
    )  # fmt: skip
    if not fits:
        return None
    structure = Block(
        q, k, v, o, gate, up, down, *(address(one) for one in weights),
        block.input_layernorm.variance_epsilon, attention.scaling, hidden, heads, key_heads, size,
    )  # fmt: skip
    kept = [tensor for one in found for tensor in one.tensors]
    return MadeBlock(structure, kept + [one for one in weights if one is not None])


def map_of(module: nn.Module | None) -> Made | None:
    """Return a linear map for the library; None where it cannot compute with it."""
    if isinstance(module, FactoredLinear):
        parts = module.parts()
        shape = (module.delivered(), delivered_inputs(module))
        return None if parts is None else made(parts, module.bias, shape)
    if type(module) is nn.Linear:
        shape = (module.out_features, module.in_features)
        return made(Parts(Numbers(module.weight)), module.bias, shape)
    return None


def delivered_inputs(module: FactoredLinear) -> int:
    """Return how many inputs a map reads: those that were kept of a narrower MLP."""
    parts = module.parts()
    direct = None if parts is None else parts.direct
    if direct is None:
        return module.in_features
    return direct.matrix.shape[1] if isinstance(direct, Numbers) else direct.columns
