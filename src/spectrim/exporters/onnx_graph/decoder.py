"""The decoder of a Llama-like model as an ONNX graph, in the layout of onnxruntime-genai.

Inputs: input_ids [batch, tokens], attention_mask [batch, past and new tokens], and of every block
past_key_values.N.key and .value [batch, heads, places, dimensions]. Outputs: logits, present.N.key
and .value, which may be bound to the buffers that the past came from. An input that may be left
out, ``logits_to_keep`` [1], says of how many last tokens logits are wanted; without it, of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from spectrim.exporters.onnx_graph.ends import embedding, head
from spectrim.exporters.onnx_graph.families import ACTIVATIONS, activation
from spectrim.exporters.onnx_graph.graph import Graph
from spectrim.exporters.onnx_graph.maps import linear, together
from spectrim.model.sites import shape
from spectrim.progress import Progress

ALL = 2**62  # logits_to_keep: more tokens than there are


@dataclass(frozen=True)
class Step:
    """What every block of a step through the decoder reads."""

    lengths: ir.Value
    """[batch], int32: tokens so far, less one."""
    total: ir.Value
    """int32: the largest of them, plus one."""
    tables: Callable[[str], tuple[ir.Value, ir.Value]]
    """Kind of attention → cosines and sines [context, dimensions / 2]."""


@dataclass(frozen=True)
class Shapes:
    """What the attention of each block keeps: (heads of keys and values, dimensions)."""

    caches: tuple[tuple[int, int], ...]


def decoder(
    graph: Graph, model: Any, progress: Progress
) -> tuple[list[ir.Value], list[ir.Value], Shapes]:
    """Add a whole model; return the graph's inputs, its outputs and what its caches are."""
    config, inner = model.config, model.model
    ids, mask, keep = _inputs(graph)
    step = _step(graph, inner, config, mask)
    inputs, outputs = [ids, mask], list[ir.Value]()
    caches: list[tuple[int, int]] = []
    hidden = embedding(graph, ids, inner.embed_tokens, "embed")
    added: ir.Value | None = None
    for index, block in enumerate(inner.layers):
        name = f"layers.{index}"
        heads, width = _cache(block.self_attn)
        past, present = _cache_values(index, heads, width)
        hidden, added = _block(graph, block, (hidden, added), step, (past, present), name)
        inputs, outputs = inputs + past, outputs + present
        caches.append((heads, width))
        progress(index + 1, len(inner.layers), "graph")
    last, _ = _normed(graph, (hidden, added), inner.norm, "norm")
    last = graph.op("Slice", last, graph.op("Neg", keep), graph.numbers([ALL]), graph.numbers([1]))
    logits = _logits(graph, head(graph, last, model.lm_head, inner.embed_tokens, "head"), config)
    logits.name, logits.dtype = "logits", ir.DataType.FLOAT
    logits.shape = ir.Shape(("batch", "kept", shape(model.lm_head)[0]))
    return [*inputs, keep], [logits, *outputs], Shapes(tuple(caches))


def _inputs(graph: Graph) -> tuple[ir.Value, ir.Value, ir.Value]:
    ids = ir.val("input_ids", ir.DataType.INT64, ("batch", "tokens"))
    mask = ir.val("attention_mask", ir.DataType.INT64, ("batch", "total"))
    keep = graph.constant("logits_to_keep", torch.tensor([ALL], dtype=torch.int64))
    return ids, mask, keep


def _step(graph: Graph, inner: Any, config: Any, mask: ir.Value) -> Step:
    tokens = graph.op("ReduceSum", mask, graph.numbers([1]), keepdims=0)
    lengths = graph.op("Sub", tokens, graph.numbers(1))
    total = graph.op("Gather", graph.op("Shape", mask), graph.numbers(1))

    def tables(kind: str) -> tuple[ir.Value, ir.Value]:
        return graph.once(  # type: ignore[no-any-return]
            ("rotary", kind), lambda: _rotary_tables(graph, inner.rotary_emb, config, kind)
        )

    lengths, total = (graph.op("Cast", one, to=ir.DataType.INT32) for one in (lengths, total))
    return Step(lengths, total, tables)


def _rotary_tables(graph: Graph, rotary: Any, config: Any, kind: str) -> tuple[ir.Value, ir.Value]:
    """Return nodes that make the tables from the frequencies, once, when the model is loaded."""
    prefix = f"{kind}_" if hasattr(rotary, f"{kind}_inv_freq") else ""
    frequencies = getattr(rotary, f"{prefix}inv_freq")
    factor = float(getattr(rotary, f"{prefix}attention_scaling"))
    places = graph.op(
        "Range", graph.numbers(0), graph.numbers(config.max_position_embeddings), graph.numbers(1)
    )
    column = graph.op("Unsqueeze", graph.single(places), graph.numbers([1]))
    angles = graph.op("Mul", column, graph.vector(f"{prefix}frequencies", frequencies[None]))
    made = [graph.op(name, angles) for name in ("Cos", "Sin")]
    if factor != 1.0:
        scale = graph.vector(f"{prefix}factor", torch.tensor(factor))
        made = [graph.op("Mul", one, scale) for one in made]
    return made[0], made[1]


def _block(
    graph: Graph,
    block: Any,
    state: tuple[ir.Value, ir.Value | None],
    step: Step,
    caches: tuple[list[ir.Value], list[ir.Value]],
    name: str,
) -> tuple[ir.Value, ir.Value]:
    """Add one block; return the hidden states and what is still to be added to them."""
    around = hasattr(block, "pre_feedforward_layernorm")  # Gemma's: a norm behind each part, too
    x, hidden = _normed(graph, state, block.input_layernorm, f"{name}.input_norm")
    y = _attention(graph, block.self_attn, x, step, caches, f"{name}.attention")
    norm = block.post_attention_layernorm
    if around:
        y = _norm(graph, y, norm, f"{name}.post_attention_norm")
        norm = block.pre_feedforward_layernorm
    x, hidden = _normed(graph, (hidden, y), norm, f"{name}.mlp_norm")
    y = _mlp(graph, block.mlp, x, f"{name}.mlp")
    if around:
        y = _norm(graph, y, block.post_feedforward_layernorm, f"{name}.post_mlp_norm")
    return hidden, y


def _attention(
    graph: Graph,
    attention: Any,
    x: ir.Value,
    step: Step,
    caches: tuple[list[ir.Value], list[ir.Value]],
    name: str,
) -> ir.Value:
    maps = [attention.q_proj, attention.k_proj, attention.v_proj]
    normed = hasattr(attention, "q_norm")
    whole = None if normed else together(graph, x, maps, f"{name}.qkv")
    q = whole or linear(graph, x, maps[0], f"{name}.q")
    k, v = (
        None if whole else linear(graph, x, one, f"{name}.{part}")
        for one, part in zip(maps[1:], "kv", strict=True)
    )
    heads, width = _cache(attention)
    if normed and k is not None:
        q = _head_norm(graph, q, attention.q_norm, width, f"{name}.q_norm")
        k = _head_norm(graph, k, attention.k_norm, width, f"{name}.k_norm")
    past, present = caches
    kind = str(getattr(attention, "layer_type", "") or "full_attention")
    cos, sin = step.tables(kind)
    made = graph.microsoft(
        "GroupQueryAttention", 3, q, k, v, *past, step.lengths, step.total, cos, sin,
        num_heads=shape(attention.q_proj)[0] // width,
        kv_num_heads=heads,
        do_rotary=1,
        scale=float(attention.scaling),
        softcap=float(getattr(attention, "attn_logit_softcapping", None) or 0.0),
        local_window_size=_window(attention),
    )  # fmt: skip
    for value, there in zip(made[1:], present, strict=True):
        value.name, value.dtype, value.shape = there.name, there.dtype, there.shape
    present[:] = made[1:]
    return linear(graph, made[0], attention.o_proj, f"{name}.o")


def _mlp(graph: Graph, mlp: Any, x: ir.Value, name: str) -> ir.Value:
    maps = [mlp.gate_proj, mlp.up_proj]
    both = together(graph, x, maps, f"{name}.gate_up")
    if both is None:
        gate, up = (
            linear(graph, x, one, f"{name}.{part}")
            for one, part in zip(maps, ("gate", "up"), strict=True)
        )
    else:
        gate, up = graph.ops("Split", 2, both, axis=-1, num_outputs=2)
    if ACTIVATIONS[activation(mlp.config)] == "QuickGelu":  # with factor 1, SiLU
        bent = graph.microsoft("QuickGelu", 1, gate, alpha=1.0)[0]
    else:
        bent = graph.op("Gelu", gate, approximate="tanh")
    return linear(graph, graph.op("Mul", bent, up), mlp.down_proj, f"{name}.down")


def _normed(
    graph: Graph, state: tuple[ir.Value, ir.Value | None], norm: Any, name: str
) -> tuple[ir.Value, ir.Value]:
    """Add a norm of hidden states to which something is added first; return both."""
    hidden, added = state
    if added is None:
        return _norm(graph, hidden, norm, name), hidden
    found = graph.microsoft(
        "SkipSimplifiedLayerNormalization",
        4,
        hidden,
        added,
        graph.vector(f"{name}.weight", _gain(norm)),
        epsilon=_epsilon(norm),
    )
    return found[0], found[3]


def _norm(graph: Graph, x: ir.Value, norm: Any, name: str) -> ir.Value:
    gain = graph.vector(f"{name}.weight", _gain(norm))
    return graph.op(
        "SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=_epsilon(norm), stash_type=1
    )


def _head_norm(graph: Graph, x: ir.Value, norm: Any, width: int, name: str) -> ir.Value:
    """Add a norm of every head."""
    parts = graph.op("Reshape", x, graph.numbers([0, 0, -1, width]))
    normed = _norm(graph, parts, norm, name)
    return graph.op("Reshape", normed, graph.op("Shape", x))


def _gain(norm: Any) -> Tensor:
    """Return what a norm multiplies by; Gemma's store it less one."""
    weight: Tensor = norm.weight.detach().float()
    return 1.0 + weight if type(norm).__name__.startswith("Gemma") else weight


def _epsilon(norm: Any) -> float:
    return float(norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)


def _logits(graph: Graph, logits: ir.Value, config: Any) -> ir.Value:
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is None:
        return logits
    limit = graph.vector("logits_cap", torch.tensor(float(cap)))
    return graph.op("Mul", graph.op("Tanh", graph.op("Div", logits, limit)), limit)


def _cache(attention: Any) -> tuple[int, int]:
    """Return how many heads of keys a block has, and the dimensions of each."""
    return shape(attention.k_proj)[0] // attention.head_dim, int(attention.head_dim)


def _cache_values(index: int, heads: int, width: int) -> tuple[list[ir.Value], list[ir.Value]]:
    """Return the inputs and outputs that hold the keys and values of a block."""
    past, present = (
        [
            ir.val(f"{name}.{index}.{part}", ir.DataType.FLOAT, ("batch", heads, length, width))
            for part in ("key", "value")
        ]
        for name, length in (("past_key_values", "past"), ("present", "places"))
    )
    return past, present


def _window(attention: Any) -> int:
    """Return how many tokens attention reaches back, itself counted; -1 for all."""
    known = getattr(attention, "sliding_window", None)
    if not hasattr(attention, "sliding_window") and attention.config.model_type == "mistral":
        known = attention.config.sliding_window
    return -1 if known is None else int(known)
