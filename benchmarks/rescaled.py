"""The demo off its four-bit grid with all of its outliers left where they are: not turned.

    python benchmarks/rescaled.py -o rescaled/ [--seed 0] [--model gemma-3-270m-q4_k_m.gguf]

Turning a model (benchmarks/rotated.py) takes it off its grid, and flattens its inputs, which types
of few bits live on. Here only what no model notices is changed, channel by channel: the channels of
the residual stream change places, every gain of a norm is multiplied by a random number and the
columns that read it are divided by that, and so are neurons (up against down) and the values of
attention (v against o). A Llama's head is parted from its embedding. The logits stay; the
grid goes.
"""

from __future__ import annotations

from pathlib import Path

import rotated
import torch
from measuring import arguments
from one_line_errors import told
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.model import sources
from spectrim.model.weights import quiet
from spectrim.text import documents

SPREAD = 0.5  # of the logarithm of a random number: from 0.6 to 1.65
NORMS = {  # before attention, before the MLP
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "gemma3_text": ("input_layernorm", "pre_feedforward_layernorm"),
}


def write_rescaled(
    folder: Path, cache: Path, data: Path, seed: int = 0, name: str = "demo"
) -> None:
    """Write a model, rescaled, unless it is there; name: as sources.resolve takes it.

    Raises:
        SpectrimError: a check fails, there is no such model or text, or the folder holds other
            things.
    """
    if rotated.is_there(folder, seed):
        return
    source = sources.resolve(name, cache)
    text = str(data / rotated.TEXT)
    ids = documents.read(text, sources.tokenizer(source), rotated.LENGTH).ids[: rotated.WINDOWS]
    rotated.write(source, folder, ids, seed, change=rescale)


@torch.no_grad()
def rescale(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Return a Llama or Gemma 3 in float32 that computes the same logits from rescaled weights.

    Raises:
        SpectrimError: the model is of another family.
    """
    config = model.config
    if config.model_type not in NORMS:
        raise SpectrimError(f"the family is {config.model_type}; name one of {', '.join(NORMS)}")
    parted = config.model_type == "llama"  # a gain before a tied head cannot be divided out
    held = {**config.to_dict(), "tie_word_embeddings": config.tie_word_embeddings and not parted}
    with quiet():
        changed: PreTrainedModel = AutoModelForCausalLM.from_config(
            type(config).from_dict(held), dtype=torch.float32
        )
    more = 0.0 if parted else 1.0  # Gemma's gains are 1 + what is stored
    tensors = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for name in (gains := [name for name in tensors if "norm" in name]):
        tensors[name] += more
    drawn = torch.Generator().manual_seed(seed)
    _permute(tensors, torch.randperm(config.hidden_size, generator=drawn))
    if parted:
        _scale(tensors, "model.norm", ["lm_head"], drawn)
    attention, mlp = NORMS[config.model_type]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for index in range(config.num_hidden_layers):
        block = f"model.layers.{index}"
        readers = [f"{block}.self_attn.{one}_proj" for one in "qkv"]
        _scale(tensors, f"{block}.{attention}", readers, drawn)
        _scale(tensors, f"{block}.{mlp}", [f"{block}.mlp.{one}_proj" for one in ("gate", "up")],
               drawn)  # fmt: skip
        _scale(tensors, f"{block}.mlp.up_proj", [f"{block}.mlp.down_proj"], drawn)
        values, output = f"{block}.self_attn.v_proj", f"{block}.self_attn.o_proj"
        _scale(tensors, values, [output], drawn, width)
    for name in gains:
        tensors[name] -= more
    changed.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return changed.eval()


def _permute(tensors: dict[str, Tensor], order: Tensor) -> None:
    """Give the channels of the residual stream other places."""
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            if len(tensor) == len(order):  # a norm of queries or keys is narrower
                tensors[name] = tensor[order]
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = tensor[order]
        else:
            tensors[name] = tensor[:, order]


def _scale(
    tensors: dict[str, Tensor],
    made: str,
    readers: list[str],
    drawn: torch.Generator,
    head: int = 0,
) -> None:
    """Multiply what one tensor makes of each channel, and divide the columns that read it.

    head: channels of a head of values, each of which several heads of queries read.
    """
    whole = tensors[f"{made}.weight"]
    factor = ((torch.rand(len(whole), generator=drawn).double() * 2 - 1) * SPREAD).exp()
    tensors[f"{made}.weight"] = whole * factor.view(-1, *[1] * (whole.ndim - 1))
    for name in readers:
        matrix = tensors[f"{name}.weight"]
        read = factor
        if head:
            times = matrix.shape[1] // len(factor)
            read = factor.view(-1, head).repeat_interleave(times, 0).flatten()
        tensors[f"{name}.weight"] = matrix / read


def main() -> None:
    """Write the folder unless it is there."""
    parser = arguments(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="demo", help="a Llama or a Gemma 3")
    asked = parser.parse_args()
    write_rescaled(asked.output, asked.cache, asked.data, asked.seed, asked.model)


if __name__ == "__main__":
    told(main)
