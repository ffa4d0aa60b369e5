"""Widths and heads of every block, and the architecture of llama.cpp that reads them so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, GGUFWriter

from spectrim.exporters._dense_tensors import DenseTensors
from spectrim.exporters._gguf_blocks import BLOCK
from spectrim.exporters._gguf_families import Family, head_dim, rope_of, tell_rope


@dataclass(frozen=True)
class Layout:
    """The shape of a model for llama.cpp, block by block."""

    arch: MODEL_ARCH
    turned: bool
    """Whether rows of q and k lie pair by pair."""
    widths: tuple[int, ...]
    """Neurons of each MLP, multiples of 32."""
    heads: tuple[int, ...]
    """Heads of queries in each block; 0 where it has no attention."""
    key_heads: tuple[int, ...]


def layout_of(held: DenseTensors, family: Family) -> Layout:
    """Return the layout: the family's own architecture where all blocks are alike, else `deci`.

    That one reads width and heads of each block. It has rows of q and k pair by pair, which turns
    any rotary family into it whose blocks have no norms but its two. A family that it cannot read
    gets MLPs that are filled up to the widest. Such blocks are `llama`'s too, which alone divides
    the speeds of rotary positions one by one.
    """
    config = held.stock.config
    widths = tuple(-(-width // BLOCK) * BLOCK for width in held.widths.values())
    blocks = len(list(held.model.get_submodule(held.architecture.stacks[0].path).children()))
    widths = widths or (config.intermediate_size,) * blocks
    attends = tuple(_attends(held, name) for name in held.widths) or (True,) * blocks
    attends = (True, *attends[1:])  # llama.cpp takes the width of all heads from the first block
    uneven = len(set(widths)) > 1 or not all(attends)
    arch, turned = family.arch, family.turned
    if family.as_llama and rope_of(config).get("rope_type") == "llama3":
        arch, turned = MODEL_ARCH.LLAMA, True
    if uneven and family.as_llama:
        arch, turned = MODEL_ARCH.DECI, True
    else:
        widths, attends = (max(widths),) * blocks, (True,) * blocks
    heads, keys = config.num_attention_heads, key_heads(config)
    return Layout(arch, turned, widths, tuple(heads * one for one in attends),
                  tuple(keys * one for one in attends))  # fmt: skip


def key_heads(config: Any) -> int:
    """Return how many heads of keys a block has."""
    if config.model_type == "falcon":
        if config.new_decoder_architecture:
            return int(config.num_kv_heads)
        return 1 if config.multi_query else int(config.num_attention_heads)
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def tell(writer: GGUFWriter, config: Any, layout: Layout) -> None:
    """Write the metadata that says how large a model is and how it computes."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layout.widths))
    writer.add_feed_forward_length(_one(layout.widths))
    writer.add_head_count(_one(layout.heads))
    writer.add_head_count_kv(_one(layout.key_heads))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_vocab_size(config.vocab_size)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        known = getattr(config, "layer_norm_epsilon", None) or config.layer_norm_eps
        writer.add_layer_norm_eps(known)
    tell_rope(writer, config)


def _attends(held: DenseTensors, block: str) -> bool:
    """Return whether a block's attention adds anything: not where the map behind it is zeros."""
    path = next(path for path, role in held.architecture.roles.items() if role == "o")
    known = held.stock.state_dict()
    names = [name for kind in ("weight", "bias") if (name := f"{block}.{path}.{kind}") in known]
    return any(bool(held.tensor(name).any()) for name in names)


def _one(each: tuple[int, ...]) -> int | list[int]:
    """Return the number that all blocks have, else all."""
    return each[0] if len(set(each)) == 1 else list(each)
