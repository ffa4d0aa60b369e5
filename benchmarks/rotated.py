"""A fair dense model to quantise: the demo model, computing the same, off its four-bit grid.

    python benchmarks/rotated.py -o rotated/ [--seed 0]

The demo's weights were unpacked from four bits in groups of 32, so int4 in groups of 32 costs it
nothing, and no comparison with int4 means anything. Here the gains of its norms go into the maps
that read them, its residual stream is turned by a random orthogonal matrix, which an RMSNorm
without gains does not notice (Ashkboos et al., "SliceGPT", 2401.15024, section 3.2), and its head
is parted from its embedding. The logits stay; the grid goes. What is printed is checked first: a
model that fails is not written. One that is there already is left as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int
from measuring import arguments
from one_line_errors import told
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.job.remake import copy_companions
from spectrim.metrics.grid import grid
from spectrim.metrics.perplexity import perplexity
from spectrim.model import sites, sources
from spectrim.model.sources import Source
from spectrim.model.weights import quiet
from spectrim.outputs.folder import output_folder
from spectrim.rounding import baselines
from spectrim.text import documents

RECORD = "rotated.json"  # the seed and what was measured
TEXT = "lm/wikitext2_tokens/valid.txt"
WINDOWS, LENGTH = 2, 512
ALIKE = 1e-5  # largest difference of logits as a part of the largest logit; float32 rounds to 1e-7
REAL = 0.05  # least relative error of int4 off a grid; normally distributed weights have 0.08
READ = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")  # behind a block's two norms
WRITTEN = ("self_attn.o_proj", "mlp.down_proj")


def main() -> None:
    """Write the folder unless it is there."""
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    write_demo(asked.output, asked.cache, asked.data, asked.seed)


def chosen(asked: argparse.Namespace) -> Path:
    """Return the folder of the model that --model names, or of the demo's turned one, made here."""
    if asked.model is not None:
        return Path(asked.model)
    folder: Path = asked.output / "rotated"
    write_demo(folder, asked.cache, asked.data)
    return folder


def write_demo(folder: Path, cache: Path, data: Path, seed: int = 0) -> None:
    """Write the demo model, turned, unless it is there.

    Raises:
        SpectrimError: a check fails, there is no demo model or text, or the folder holds other
            things.
    """
    if is_there(folder, seed):
        print(f"{folder} is there already")
        return
    source = sources.resolve("demo", cache)
    ids = documents.read(str(data / TEXT), sources.tokenizer(source), LENGTH).ids[:WINDOWS]
    write(source, folder, ids, seed)


def is_there(folder: Path, seed: int) -> bool:
    """Return whether the folder holds the model that was turned by this seed.

    Raises:
        SpectrimError: it holds something else, which would be lost.
    """
    record = folder / RECORD
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["seed"] == seed:
        return True
    if folder.exists() and any(folder.iterdir()):
        raise SpectrimError(
            f"{folder} holds something else than the model of seed {seed}; name another folder"
        )
    return False


def write(
    source: Source,
    folder: Path,
    ids: Int[Tensor, "windows length"],
    seed: int,
    change: Callable[[PreTrainedModel, int], PreTrainedModel] | None = None,
) -> None:
    """Write a Llama model, turned, in bf16, and print what was checked.

    ids: tokens that logits and perplexity are compared on. change: instead of turning it.

    Raises:
        SpectrimError: it is no Llama model, or a check fails; nothing is written then.
    """
    dense = sources.model(source, dtype=torch.float32)
    turned = (change or rotate)(dense, seed)
    found = {"seed": seed, **check(dense, turned, ids)}
    with output_folder(folder, "rotated") as partial:
        tied = turned.config.tie_word_embeddings
        tensors = {
            name: one.bfloat16().contiguous()
            for name, one in turned.state_dict().items()
            if not (tied and name == "lm_head.weight")
        }
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
        config |= {"tie_word_embeddings": tied, "dtype": "bfloat16"}
        config.pop("torch_dtype", None)  # the older name of the same
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_companions(source.folder, partial)
        del dense, turned
        found |= _perplexities(source, Source(str(partial), partial, ""), ids)
        (partial / RECORD).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def rotation(width: int, seed: int) -> Float[Tensor, "width width"]:
    """Return a random orthogonal matrix in float64, every one as likely (Haar).

    The signs make it so: Mezzadri, "How to generate random matrices from the classical compact
    groups", math-ph/0609050, section 5.
    """
    drawn = torch.randn(
        width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    q, r = torch.linalg.qr(drawn)
    return q * r.diagonal().sign()


@torch.no_grad()
def rotate(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Return a Llama model in float32 that computes the same logits from other weights.

    Its gains are ones, its residual stream x is x Q, and its head is a matrix of its own.

    Raises:
        SpectrimError: the model is of another family.
    """
    if model.config.model_type != "llama":
        raise SpectrimError(
            f"the model's family is {model.config.model_type}; only llama can be rotated here, "
            "so name a Llama model"
        )
    q = rotation(model.config.hidden_size, seed)
    settings = type(model.config).from_dict(
        {**model.config.to_dict(), "tie_word_embeddings": False}
    )
    with quiet():
        turned: PreTrainedModel = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    tensors = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for name in _read_behind_norms(tensors, len(model.model.layers)):
        tensors[name] = tensors[name] @ q
    for name in _written(tensors):
        tensors[name] = q.T @ tensors[name]  # biases [hidden] too
    turned.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return turned.eval()


def check(
    dense: PreTrainedModel, turned: PreTrainedModel, ids: Int[Tensor, "windows length"]
) -> dict[str, float]:
    """Return, and print, how far apart the logits are and what int4 costs both models.

    Raises:
        SpectrimError: the logits differ by more than rounding, or the turned model is on a grid.
    """
    largest, apart = _logits_apart(dense, turned, ids)
    print(f"largest logit {largest:.1f}, largest difference {apart:.1e}")
    if not apart <= ALIKE * largest:
        raise SpectrimError(
            f"the logits differ by {apart:.1e} of {largest:.1f}, more than float32 rounds; "
            "nothing was written, so look at what the model computes besides a Llama"
        )
    before, after = rounding_error(dense), rounding_error(turned)
    shares = grid(dense), grid(turned)
    print(f"relative error of int4 in groups of 32: {before:.3f} before, {after:.3f} after")
    print(f"share on a four-bit grid: {shares[0]:.2f} before, {shares[1]:.2f} after")
    if not (after >= REAL and shares[1] == 0):
        raise SpectrimError(
            f"int4 has a relative error of {after:.3f} only, and {shares[1]:.0%} is on a grid; "
            "nothing was written, so try another --seed"
        )
    return {"largest_logit": largest, "largest_difference": apart,
            "int4_error_before": before, "int4_error_after": after}  # fmt: skip


@torch.no_grad()
def rounding_error(model: PreTrainedModel) -> float:
    """Return ‖W - Ŵ‖ / ‖W‖ over all maps of the blocks, Ŵ rounded to int4 in groups of 32."""
    lost = whole = 0.0
    for site in sites.find(model):
        if site.block >= 0:
            weight = sites.weight(sites.module(model, site))
            lost += float((baselines.rounded(weight, 4) - weight).double().square().sum())
            whole += float(weight.double().square().sum())
    return (lost / whole) ** 0.5


def _read_behind_norms(tensors: dict[str, Tensor], blocks: int) -> Iterator[str]:
    """Fold every norm's gain into the maps that read it; name all that read the residual stream."""
    norms: dict[str, list[str]] = {"model.norm": ["lm_head"]}
    for index in range(blocks):
        block = f"model.layers.{index}"
        attention, mlp = READ
        norms[f"{block}.input_layernorm"] = [f"{block}.self_attn.{name}" for name in attention]
        norms[f"{block}.post_attention_layernorm"] = [f"{block}.mlp.{name}" for name in mlp]
    yield "model.embed_tokens.weight"
    for norm, maps in norms.items():
        gain = tensors[f"{norm}.weight"]
        tensors[f"{norm}.weight"] = torch.ones_like(gain)
        for name in maps:
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * gain
            yield f"{name}.weight"


def _written(tensors: dict[str, Tensor]) -> list[str]:
    """Return the weights and biases of the maps that write into the residual stream."""
    ends = tuple(f"{name}.{part}" for name in WRITTEN for part in ("weight", "bias"))
    return [name for name in tensors if name.endswith(ends)]


@torch.inference_mode()
def _logits_apart(
    dense: PreTrainedModel, turned: PreTrainedModel, ids: Int[Tensor, "windows length"]
) -> tuple[float, float]:
    largest = apart = 0.0
    for row in ids:
        one, other = (
            model(input_ids=row[None], use_cache=False).logits for model in (dense, turned)
        )
        largest = max(largest, float(one.abs().max()))
        apart = max(apart, float((one - other).abs().max()))
    return largest, apart


def _perplexities(
    dense: Source, turned: Source, ids: Int[Tensor, "windows length"]
) -> dict[str, float]:
    """Return, and print, the perplexity of both models in bf16, as they are stored."""
    found = {
        f"perplexity_{name}": perplexity(sources.model(source, dtype=torch.bfloat16), ids).value
        for name, source in (("dense", dense), ("rotated", turned))
    }
    told = ", ".join(f"{name.removeprefix('perplexity_')} {v:.3f}" for name, v in found.items())
    print(f"perplexity in bf16 on {ids.shape[0]} windows of {ids.shape[1]} tokens: {told}")
    return found


if __name__ == "__main__":
    told(main)
