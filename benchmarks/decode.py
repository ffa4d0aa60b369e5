"""How fast smaller models decode: beside dense and int4, and as a part of what memory allows.

    python benchmarks/decode.py small/ [--against rotated/] [-o run/]

Decoding reads every stored number once a token, so no model decodes faster than memory is copied.
In one process, taking turns: the dense model in bf16, its linear maps in int4 (groups of 64), and
the smaller folder; the same for a Llama of 1.1 B random weights, where memory matters, all maps in
int4 and half of them in 3 bits. Then dense and smaller model again under torch.compile.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import publish
from one_line_errors import told
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.scales import Grid
from spectrim.formats.quantized_dense import QuantizedDense
from spectrim.metrics.speed import one_round
from spectrim.model import sites, sources
from spectrim.model.sources import Source

GROUP = 64
ROUNDS, PROMPT, NEW_TOKENS = 5, 64, 32
COPIED = 1 << 28  # bytes of the buffer that is copied to measure memory
BILLION = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
}  # fmt: skip


def main() -> None:
    """Measure and print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", default="demo")
    parser.add_argument("--cache", type=Path, default=sources.default_cache())
    parser.add_argument("-o", "--output", type=Path, help="folder for decode.json and results.md")
    asked = parser.parse_args()
    memory = bandwidth()
    print(f"memory is copied at {memory / 1e9:.1f} GB/s (read and written) by "
          f"{torch.get_num_threads()} threads, {platform.machine()}")  # fmt: skip
    dense = sources.model(sources.resolve(asked.against, asked.cache))
    small = sources.model(Source(str(asked.folder), asked.folder, ""))
    demo = {"dense bf16": dense, "int4": in_bits(_copy(dense), (4,)), str(asked.folder): small}
    found = {"model": table("the model", demo, memory)}
    compiled = {name: torch.compile(demo[name]) for name in ("dense bf16", str(asked.folder))}
    found["compiled"] = table("the model under torch.compile", compiled, memory)
    del demo, compiled, dense, small
    billion = AutoModelForCausalLM.from_config(LlamaConfig(**BILLION), dtype=torch.bfloat16).eval()
    large = {"dense bf16": billion, "int4": in_bits(_copy(billion), (4,)),
             "int4 and int3": in_bits(_copy(billion), (4, 3))}  # fmt: skip
    found["billion"] = table("a Llama of 1.1 B random weights", large, memory)
    if asked.output:
        asked.output.mkdir(parents=True, exist_ok=True)
        publish(
            asked.output, "decode", rows_of(found), copied_gb_per_second=memory / 1e9,
            model=f"{asked.against}, and a Llama of 1.1 B random weights",
            text=f"{PROMPT} tokens in, {NEW_TOKENS} out, one sequence",
        )  # fmt: skip


def rows_of(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each model: tokens a second and ratios, the median first, then both ends."""
    rows = []
    for title, models in found.items():
        for name, one in models.items():
            ratios = one["ratios"]
            rows.append(
                {"table": "decode_large" if title == "billion" else "decode",
                 "model": f"{name}, torch.compile" if title == "compiled" else name,
                 "tokens_per_second": median(one["rates"]),
                 "ratio": [median(ratios), ratios[0], ratios[-1]],
                 "mb_per_token": one["bytes"] / 1e6, "of_limit": one["limit"]}
            )  # fmt: skip
    return rows


def bandwidth() -> float:
    """Return the bytes per second that a copy reads and writes, the best of five."""
    source, target = (torch.empty(COPIED, dtype=torch.uint8) for _ in "ab")
    source.fill_(1)
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        target.copy_(source)
        taken.append(time.perf_counter() - began)
    return 2 * COPIED / min(taken[1:])


def in_bits(model: PreTrainedModel, bits: tuple[int, ...]) -> PreTrainedModel:
    """Return the model with its blocks' maps in these bits, in turn; the values do not matter."""
    inside = [site for site in sites.find(model) if site.block >= 0]
    for at, site in enumerate(inside):
        shape = (site.in_features, site.out_features, min(site.in_features, site.out_features))
        grid = Grid(bits[at % len(bits)], GROUP, symmetric=False)
        made = QuantizedDense(*shape, False, grid).to(torch.bfloat16)
        with torch.no_grad():
            made.quantized.packed.random_(0, 256)
            made.quantized.unit.fill_(1e-4)
            made.quantized.scale_code.fill_(100)  # type: ignore[union-attr]
            made.quantized.offset_code.fill_(0)  # type: ignore[union-attr]
        sites.replace(model, site.name, made.eval().requires_grad_(False))
    return model


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model that shares all weights, so that its maps can be replaced."""
    with torch.device("meta"):
        empty: PreTrainedModel = AutoModelForCausalLM.from_config(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    empty.tie_weights()
    for name, buffer in model.named_buffers():
        path, _, last = name.rpartition(".")
        empty.get_submodule(path).register_buffer(last, buffer, persistent=False)
    return empty.eval()


def bytes_a_token(model: Any) -> int:
    """Return the bytes that one token reads: all that is stored but the embedding, unless tied."""
    held = {id(one): one for one in [*model.parameters(), *model.buffers()]}
    kept = {
        id(b)
        for m in model.modules()
        if isinstance(m, PackedMatrix)
        for b in (m._layout, m._scales_and_offsets)
    }
    whole = sum(one.numel() * one.element_size() for key, one in held.items() if key not in kept)
    table = model.get_input_embeddings()
    head = model.get_output_embeddings()
    tied = getattr(table, "weight", None) is getattr(head, "weight", None)
    return (
        whole
        if tied
        else whole
        - sum(one.numel() * one.element_size() for one in [*table.parameters(), *table.buffers()])
    )


def table(title: str, models: dict[str, Any], memory: float) -> dict[str, Any]:
    """Decode with all models in turn and print tokens per second, ratios and parts of the limit."""
    prompt = torch.arange(PROMPT)[None] + 10
    taken: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for done in range(-1, ROUNDS):
            for name in list(models)[:: 1 if done % 2 else -1]:
                seconds = one_round(models[name], prompt, NEW_TOKENS)[1]
                if done >= 0:
                    taken[name].append(NEW_TOKENS / seconds)
    first = taken[next(iter(models))]
    print(f"\n{title}\n| model | tokens/s | x dense (rounds) | MB a token | part of the limit |")
    print("|---|---|---|---|---|")
    found = {}
    for name, rates in taken.items():
        ratios = sorted(own / other for own, other in zip(rates, first, strict=True))
        read = bytes_a_token(models[name])
        limit = median(rates) * read / (memory / 2)  # a copy reads half of what it moves
        found[name] = {"rates": rates, "ratios": ratios, "bytes": read, "limit": limit}
        print(f"| {name} | {median(rates):.1f} | {median(ratios):.2f} ({ratios[0]:.2f} to "
              f"{ratios[-1]:.2f}) | {read / 1e6:.1f} | {limit:.0%} |")  # fmt: skip
    return found


if __name__ == "__main__":
    told(main)
