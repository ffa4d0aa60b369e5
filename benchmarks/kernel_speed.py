"""How fast models run through from_pretrained, and what inputs in eight bits cost the loss.

    python benchmarks/kernel_speed.py [--large] [--against rotated/] [-o run/]

One process, all models in turn: the dense model in bf16, its maps in few bits by torch's kernels
and by ours, and factored to 80 % in bf16. Prefill of 256 tokens, then 24 decoded ones. With
``--large`` the same for a Llama of 1.1 B random weights. Without it the losses of ten windows of a
novel too, the maps in 4 bits to the nearest: by torch, by ours as for many tokens, and by ours with
inputs in eight bits, as for few.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch
from decode import BILLION, GROUP, _copy, in_bits
from measuring import OUTSIDE, publish
from one_line_errors import told
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from spectrim.formats import FactoredLinear
from spectrim.formats.low_rank import LowRank
from spectrim.formats.packed import native
from spectrim.formats.packed.scales import Grid
from spectrim.formats.pivoted import Pivoted
from spectrim.formats.quantized_dense import QuantizedDense
from spectrim.formats.quantized_embedding import QuantizedEmbedding
from spectrim.formats.tied_head import TiedHead
from spectrim.kernels.library import library
from spectrim.metrics.speed import one_round
from spectrim.model import sites, sources
from spectrim.model.decoding import use_kernels
from spectrim.rounding.nearest import nearest
from spectrim.text import documents

ROUNDS, PROMPT, NEW_TOKENS = 5, 256, 24
KEEP = 0.8
ENDS = Grid(8, GROUP, symmetric=False)
WINDOWS, LENGTH = 10, 512


def main() -> None:
    """Measure and print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--against", default="demo")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=sources.default_cache())
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    found = library()
    print(f"kernels: {found.isa if found else 'none'}; {torch.get_num_threads()} threads")
    if asked.large:
        dense = AutoModelForCausalLM.from_config(LlamaConfig(**BILLION), dtype=torch.bfloat16)
        rows = speeds(dense.eval(), "a Llama of 1.1 B random weights", torch_too=False)
    else:
        source = sources.resolve(asked.against, asked.cache)
        dense = sources.model(source, dtype=torch.bfloat16)
        rows = speeds(dense, "the model", torch_too=True)
        novel = str(asked.data / OUTSIDE["novel"])
        windows = documents.read(novel, sources.tokenizer(source), LENGTH).ids
        rows += losses(dense, windows[2 : 2 + WINDOWS])
    if asked.output:
        asked.output.mkdir(parents=True, exist_ok=True)
        publish(
            asked.output, "kernels_large" if asked.large else "kernels", rows,
            model="a Llama of 1.1 B random weights" if asked.large else asked.against,
            text=f"{PROMPT} tokens in, {NEW_TOKENS} out, one sequence, {ROUNDS} rounds",
        )  # fmt: skip


def speeds(dense: PreTrainedModel, of: str, *, torch_too: bool) -> list[dict[str, Any]]:
    """Return a row for each model: tokens a second and ratios to the dense one, median and ends."""
    models = {"dense bf16": dense}
    if torch_too:
        models["4 bits, torch's kernels"] = in_bits(_copy(dense), (4,))
    for name, bits in {"4 bits": (4,), "4, 4, 4, 3 bits": (4, 4, 4, 3), "2 bits": (2,)}.items():
        models[name] = quick(with_ends(in_bits(_copy(dense), bits)))
    for form in (LowRank, Pivoted):
        models[f"{form.__name__}, bf16, 80 %"] = quick(factored(_copy(dense), form))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    prompt = torch.arange(PROMPT)[None] + 10
    with torch.inference_mode():
        for done in range(-1, ROUNDS):
            for name in list(models)[:: 1 if done % 2 else -1]:
                seconds = one_round(models[name], prompt, NEW_TOKENS)
                taken[name] += [seconds] if done >= 0 else []
    return [_speed(of, name, own, taken["dense bf16"]) for name, own in taken.items()]


def _speed(
    of: str, name: str, own: list[tuple[float, float]], dense: list[tuple[float, float]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"table": "kernels", "of": of, "model": name}
    for at, (part, count) in enumerate((("prefill", PROMPT), ("decode", NEW_TOKENS))):
        ratios = sorted(d[at] / o[at] for o, d in zip(own, dense, strict=True))
        row[part] = median(count / one[at] for one in own)
        row[f"{part}_ratio"] = [median(ratios), ratios[0], ratios[-1]]
    said = [f"{part} {row[part]:.1f} ({row[f'{part}_ratio'][0]:.2f} x dense)"
            for part in ("prefill", "decode")]  # fmt: skip
    print(f"{of}, {name}: {', '.join(said)}", flush=True)
    return row


def quick(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model as from_pretrained hands it out."""
    use_kernels(model)
    return model


def with_ends(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with embedding and head in eight bits; the values do not matter."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    words, width = table.weight.shape
    tied = head.weight is table.weight
    made: Any = QuantizedEmbedding if tied else QuantizedDense
    packed = made(width, words, width, False, ENDS).to(torch.bfloat16).requires_grad_(False)
    packed.quantized.packed.random_(0, 256)
    packed.quantized.unit.fill_(1e-3)
    packed.quantized.scale_code.fill_(100)
    packed.quantized.offset_code.fill_(0)
    if not tied:
        model.set_output_embeddings(packed.eval())
        return model
    follower = TiedHead(width, words, width, False).eval()
    follower.link(packed)
    model.set_input_embeddings(packed.eval())
    model.set_output_embeddings(follower)
    return model


def factored(model: PreTrainedModel, form: type[FactoredLinear]) -> PreTrainedModel:
    """Return the model with its maps factored, ranks in steps of 32; the values do not matter."""
    for site in sites.find(model):
        if site.block < 0:
            continue
        out, inside = site.out_features, site.in_features
        most = KEEP * out * inside
        ranks = range(32, min(out, inside) + 1, 32)
        rank = max(one for one in ranks if form.numbers(out, inside, one) <= most)
        made = form(inside, out, rank, False).to(torch.bfloat16).requires_grad_(False)
        for one in made.parameters():
            nn.init.normal_(one, std=0.02)
        if isinstance(made, Pivoted):
            made.order.copy_(torch.randperm(out))
        sites.replace(model, site.name, made.eval())
    return model


def losses(dense: PreTrainedModel, ids: torch.Tensor) -> list[dict[str, Any]]:
    """Return the losses of windows with all maps in 4 bits, by who multiplies."""
    model = _copy(dense)
    grid = Grid(4, GROUP, symmetric=False)
    for site in sites.find(model):
        if site.block < 0:
            continue
        weight = model.get_submodule(site.name).weight.detach()
        shape = (site.in_features, site.out_features, min(weight.shape))
        made = QuantizedDense(*shape, False, grid).to(torch.bfloat16).requires_grad_(False)
        found = nearest(weight.float(), torch.ones(weight.shape[1]), grid, torch.bfloat16)
        made.take(found.pieces("quantized"))
        sites.replace(model, site.name, made.eval())
    rows = [_loss("torch's kernels", model, ids)]
    use_kernels(model)
    rows.append(_loss("ours, many tokens", model, ids))
    native.FEW = LENGTH
    rows.append(_loss("ours, inputs in eight bits", model, ids))
    return rows


def _loss(name: str, model: PreTrainedModel, ids: torch.Tensor) -> dict[str, Any]:
    with torch.inference_mode():
        each = [float(model(one[None], labels=one[None]).loss) for one in ids]
    print(f"loss, {name}: {sum(each) / len(each):.5f}", flush=True)
    return {"table": "kernels_loss", "model": name, "loss": sum(each) / len(each)}


if __name__ == "__main__":
    told(main)
