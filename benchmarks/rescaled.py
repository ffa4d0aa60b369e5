"""The demo off its four-bit grid with all of its outliers left where they are: not turned.

    python benchmarks/rescaled.py -o rescaled/ [--seed 0]

Turning a model (benchmarks/rotated.py) takes it off its grid, and flattens its inputs, which types
of few bits live on. Here only what no model notices is changed, channel by channel: the channels of
the residual stream change places, every gain of a norm is multiplied by a random number and the
columns that read it are divided by that, and so are neurons (up against down) and the values of
attention (v against o). The head is parted from the embedding. The logits stay; the grid goes.
"""

from __future__ import annotations

from pathlib import Path

import rotated
import torch
from measuring import arguments
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.model import sources
from spectrim.model.weights import quiet
from spectrim.text import documents

SPREAD = 0.5  # of the logarithm of a random number: from 0.6 to 1.65
HELD = "model.layers"


def write_rescaled(folder: Path, cache: Path, data: Path, seed: int = 0) -> None:
    """Write the demo model, rescaled, unless it is there.

    Raises:
        SpectrimError: a check fails, there is no demo model or text, or the folder holds other
            things.
    """
    if rotated.is_there(folder, seed):
        return
    source = sources.resolve("demo", cache)
    text = str(data / rotated.TEXT)
    ids = documents.read(text, sources.tokenizer(source), rotated.LENGTH).ids[: rotated.WINDOWS]
    rotated.write(source, folder, ids, seed, change=rescale)


@torch.no_grad()
def rescale(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Return a Llama model in float32 that computes the same logits from rescaled weights.

    Raises:
        SpectrimError: the model is of another family.
    """
    if model.config.model_type != "llama":
        raise SpectrimError(f"the model's family is {model.config.model_type}; name a Llama model")
    held = {**model.config.to_dict(), "tie_word_embeddings": False}
    with quiet():
        changed: PreTrainedModel = AutoModelForCausalLM.from_config(
            type(model.config).from_dict(held), dtype=torch.float32
        )
    tensors = {name: tensor.double() for name, tensor in model.state_dict().items()}
    drawn = torch.Generator().manual_seed(seed)
    _permute(tensors, torch.randperm(model.config.hidden_size, generator=drawn))
    _scale(tensors, "model.norm", ["lm_head"], drawn)
    for index in range(len(model.model.layers)):
        block = f"{HELD}.{index}"
        attention = [f"{block}.self_attn.{one}_proj" for one in "qkv"]
        _scale(tensors, f"{block}.input_layernorm", attention, drawn)
        mlp = [f"{block}.mlp.{one}_proj" for one in ("gate", "up")]
        _scale(tensors, f"{block}.post_attention_layernorm", mlp, drawn)
        _scale(tensors, f"{block}.mlp.up_proj", [f"{block}.mlp.down_proj"], drawn)
        _scale(tensors, f"{block}.self_attn.v_proj", [f"{block}.self_attn.o_proj"], drawn)
    changed.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return changed.eval()


def _permute(tensors: dict[str, Tensor], order: Tensor) -> None:
    """Give the channels of the residual stream other places."""
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")) or "norm.weight" in name:
            tensors[name] = tensor[order]
        elif tensor.ndim == 2:
            tensors[name] = tensor[:, order]
    for name in list(tensors):
        if name.endswith("layernorm.weight"):
            assert tensors[name].shape == order.shape


def _scale(
    tensors: dict[str, Tensor], made: str, readers: list[str], drawn: torch.Generator
) -> None:
    """Multiply what one tensor makes of each channel, and divide the columns that read it."""
    whole = tensors[f"{made}.weight"]
    factor = ((torch.rand(len(whole), generator=drawn).double() * 2 - 1) * SPREAD).exp()
    tensors[f"{made}.weight"] = whole * factor.view(-1, *[1] * (whole.ndim - 1))
    for name in readers:
        matrix = tensors[f"{name}.weight"]
        tensors[f"{name}.weight"] = matrix / _read(factor, matrix.shape[1])


def _read(factor: Tensor, columns: int) -> Tensor:
    """Return the factor of every column: several query heads of 64 read each head of v."""
    if len(factor) == columns:
        return factor
    return factor.view(-1, 64).repeat_interleave(columns // len(factor), 0).flatten()


def main() -> None:
    """Write the folder unless it is there."""
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    write_rescaled(asked.output, asked.cache, asked.data, asked.seed)


if __name__ == "__main__":
    try:
        main()
    except SpectrimError as error:
        raise SystemExit(str(error)) from error
