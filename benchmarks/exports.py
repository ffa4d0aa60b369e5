"""Whether a model says the same in llama.cpp as here: the demo, dense and made smaller, as GGUF.

    python benchmarks/exports.py -o run/ [--only narrower,packed]

Each model is made, exported, and asked ten prompts: transformers in float32 writes greedily, and
llama.cpp, with keys and values in float32 and without its fused attention, reads the same tokens.
Beside that stands how far transformers itself is from float32 in the dtype of the folder.
Beside the file that the export writes stands one with all numbers in float32: what the form itself
changes, without what llama.cpp rounds activations to beside weights of 16 bits and less. The loss
is that of ten windows of WikiText-2, with llama.cpp as it is by default.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGMLQuantizationType
from measuring import Row, arguments, publish, read_arguments
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from spectrim.engines import Running
from spectrim.engines.llama_cpp import LlamaCpp, library, llama_cpp
from spectrim.exporters.gguf import gguf
from spectrim.formats._tied import Tied
from spectrim.formats.packed.quantized import Quantized
from spectrim.formats.quantized_embedding import QuantizedEmbedding
from spectrim.model import sites, sources
from spectrim.model.sources import Source
from spectrim.model.weights import quiet
from spectrim.recipe.recipe import Recipe
from spectrim.text import documents
from spectrim.verbs.export import export
from spectrim.verbs.shrink import shrink

TEXT = "lm/wikitext2_tokens/valid.txt"
CALIBRATION = "8x256"
WINDOWS, LENGTH = 10, 128
NEW_TOKENS = 16
THREADS = 1  # so that a busy machine does not keep one waiting for another
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees, and",
    "<|im_start|>user\nWhat is 12 x 34?<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, there was a girl who",
    "SELECT name FROM people WHERE",
    "Größe, Übermut und 1234 Äpfel:",
    "The three laws of thermodynamics are",
    '{"name": "Ada", "born": ',
    "In 1969, the first people to",
)
_NEURONS = {"method": "loss_aware_neuron_selection", "refine": "off"}
MADE: dict[str, tuple[str, list[Any]] | None] = {
    "dense": None,
    "narrower": ("85% of linear", [{"factorize": {**_NEURONS, "allocator": "uniform"}}]),
    "narrower by block": ("85% of linear", [{"factorize": {**_NEURONS, "rank_multiple": 64}}]),
    "shorter": ("", [{"drop_blocks": {"layers": ["0-19", "23-29"]}}]),
    "factored": ("80% of linear", [{"factorize": {"refine": "off"}}]),
    "4 bits": ("", [{"quantize": {"bits": 4, "ends": 8}}]),
    "8 bits": ("", [{"quantize": {"bits": 8, "symmetric": True, "group": 32, "ends": 8}}]),
}  # fmt: skip


def main() -> None:
    """Make, export and measure every model, one after the other, and keep what is known."""
    parser = arguments(__doc__)
    parser.add_argument("--only", default=",".join(MADE))
    asked = read_arguments(parser)
    kept = asked.output / "rows.json"
    rows: dict[str, Row] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in asked.only.split(","):
        if name not in rows:
            rows[name] = {
                "table": "exports",
                "model": name,
                **measured(name, asked.output, asked.cache, asked.data),
            }
            kept.write_text(json.dumps(rows, indent=1))
            print(name, rows[name], flush=True)
    publish(
        asked.output, "exports", [rows[name] for name in MADE if name in rows],
        text=f"{len(PROMPTS)} prompts; {WINDOWS} windows of {LENGTH} tokens of WikiText-2",
    )  # fmt: skip


@torch.no_grad()
def unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model whose packed maps are whole matrices of the same numbers, faster to ask."""
    packed = [
        (name, one) for name, one in model.named_modules() if isinstance(one, Quantized | Tied)
    ]
    made: dict[str, nn.Module] = {}
    for name, module in packed:
        numbers = nn.Parameter(module.dense(), requires_grad=False)
        if isinstance(module, QuantizedEmbedding):
            made[name] = nn.Embedding(*numbers.shape, _weight=numbers)
        else:
            made[name] = nn.Linear(*numbers.T.shape, bias=False, device="meta")
            made[name].weight = numbers
    for name, one in made.items():
        sites.replace(model, name, one)
    return model


class Answer(NamedTuple):
    """What a model writes after a prompt, and its logits [token, vocabulary]."""

    prompt: list[int]
    tokens: list[int]
    logits: np.ndarray


def measured(name: str, output: Path, cache: Path, data: Path) -> Row:
    """Return what one model is in both forms, and how far they are apart."""
    folder = made(name, output, cache, data)
    file, wide, plain = (output / f"{name.replace(' ', '-')}{end}" for end in (
        ".gguf", "-float32.gguf", "-dense"))  # fmt: skip
    told = export(str(folder), "gguf", file, cache=cache)
    export(str(folder), "dense", plain, cache=cache)
    gguf(folder, wide, None, choose=lambda tensor: GGMLQuantizationType.F32)
    source = Source(str(folder), folder, "")
    model = unpacked(sources.model(source, dtype=torch.float32))
    tokenizer = sources.tokenizer(source)
    with quiet():
        stock = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    prompts = [tokenizer(one)["input_ids"] for one in PROMPTS]
    answers = written(model, prompts)
    as_stored = rounded(answers, sources.model(source))
    far, same = parity(answers, llama_cpp(file, THREADS, 256, exact=True))
    exact = apart(answers, llama_cpp(wide, THREADS, 256, exact=True))
    wide.unlink()
    ids = documents.read(str(data / TEXT), tokenizer, LENGTH).ids[-WINDOWS:]
    running = llama_cpp(file, THREADS, 256)
    alike = [running.encode(one) for one in PROMPTS] == prompts
    losses = {"loss": loss_here(model, ids), "loss_gguf": loss_there(running, ids)}
    running.close()
    return {
        "logits": far, "logits_float32": exact, "logits_as_stored": as_stored,
        "greedy": [same, NEW_TOKENS * len(PROMPTS)],
        **losses, "loss_dense": loss_here(stock, ids), "tokens_equal": alike,
        "megabytes": file.stat().st_size / 1e6, "megabytes_folder": weights(folder) / 1e6,
        "told": told,
    }  # fmt: skip


def weights(folder: Path) -> int:
    """Return the bytes of a folder's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def made(name: str, output: Path, cache: Path, data: Path) -> Path:
    """Return the folder of a model, made smaller unless it is there."""
    asked = MADE[name]
    folder = output / name.replace(" ", "-")
    if asked is None:
        return sources.resolve("demo", cache).folder
    if not folder.is_dir():
        keep, stages = asked
        changes = {
            "model": "demo", "stages": stages, "calibration.text": str(data / TEXT),
            "calibration.tokens": CALIBRATION, **({"keep": keep} if keep else {}),
        }  # fmt: skip
        shrink(Recipe.build(None, changes), folder, cache=cache, evaluate=False)
    return folder


@torch.no_grad()
def written(model: PreTrainedModel, prompts: list[list[int]]) -> list[Answer]:
    """Return what a model writes greedily after each prompt, and its logits at every token."""
    found = []
    for prompt in prompts:
        ids = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS,
        )  # fmt: skip
        logits = model(ids).logits[0, len(prompt) - 1 : -1].numpy()
        found.append(Answer(prompt, ids[0, len(prompt) :].tolist(), logits))
    return found


@torch.no_grad()
def rounded(answers: list[Answer], model: PreTrainedModel) -> float:
    """Return how far apart at most logits are of the same model in another dtype."""
    far = 0.0
    for one in answers:
        ids = torch.tensor([one.prompt + one.tokens])
        logits = model(ids).logits[0, len(one.prompt) - 1 : -1].float().numpy()
        far = max(far, float(np.abs(logits - one.logits).max()))
    return far


def parity(answers: list[Answer], running: Running) -> tuple[float, int]:
    """Return how far apart logits are at most, and how many greedy tokens are the same."""
    far, same = 0.0, 0
    for one in answers:
        running.clear()
        each = [running.feed(one.prompt), *(running.feed([token]) for token in one.tokens[:-1])]
        logits = np.stack(each)
        far = max(far, float(np.abs(logits - one.logits).max()))
        same += int((logits.argmax(-1) == one.logits.argmax(-1)).sum())
    running.close()
    return far, same


def apart(answers: list[Answer], running: LlamaCpp) -> float:
    """Return how far apart logits are at most where each prompt and answer is read at once."""
    each = [read(running, one.prompt + one.tokens)[len(one.prompt) - 1 : -1] for one in answers]
    running.close()
    pairs = zip(each, answers, strict=True)
    return max(float(np.abs(logits - one.logits).max()) for logits, one in pairs)


@torch.no_grad()
def loss_here(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Return the mean loss of windows in transformers, nats per token."""
    return float(torch.stack([model(one[None], labels=one[None]).loss for one in ids]).mean())


def loss_there(running: LlamaCpp, ids: torch.Tensor) -> float:
    """Return the mean loss of windows in llama.cpp, each read at once."""
    losses = []
    for window in ids.tolist():
        logits = torch.from_numpy(read(running, window))
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(window[1:])))
    return float(torch.stack(losses).mean())


def read(running: LlamaCpp, tokens: list[int]) -> np.ndarray:
    """Return the logits behind each token of a text that llama.cpp reads at once."""
    running.clear()
    loaded, count = library(), len(tokens)
    loaded.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    loaded.llama_get_logits.argtypes = (ctypes.c_void_p,)
    ids = (ctypes.c_int32 * count)(*tokens)  # kept, as the batch only points to them
    batch = loaded.llama_batch_get_one(ids, count)
    wanted = (ctypes.c_int8 * count)(*[1] * count)
    batch._arrays[5] = ctypes.addressof(wanted)
    if loaded.llama_decode(running._context, batch):
        raise SystemExit("llama.cpp could not read a text")
    found = np.ctypeslib.as_array(
        loaded.llama_get_logits(running._context), (count, running.tokens)
    )
    return found.copy()


if __name__ == "__main__":
    main()
