"""What llama.cpp's rounding of activations to eight bits costs a packed export, and in which maps.

    python benchmarks/rounded_activations.py 8-bits/ 4-bits/ -o run/

Beside packed matrices llama.cpp rounds activations to eight bits in blocks of 32. The folders of
benchmarks/exports.py are exported, as they are and with some matrices in float16, which takes their
codes as they are but rounds their activations far less. Each file reads ten windows of WikiText-2
beside the folder's own numbers in float32: by how much its loss is higher, and the divergence of
what it says (KL, nats per token), which tells the same with less noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from exports import TEXT, read, unpacked
from gguf import GGMLQuantizationType as Kind
from jaxtyping import Int
from measuring import Row, arguments, keep_row, known_rows, publish, read_arguments
from scipy import stats
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from spectrim.engines.llama_cpp import llama_cpp
from spectrim.exporters._gguf_types import Stored, as_held
from spectrim.exporters.gguf import gguf
from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.text import documents

WINDOWS = 10
SHOWN = ("megabytes", "more", "divergence")
WIDE: dict[str, Callable[[Stored], bool]] = {  # which matrices are in float16
    "none": lambda one: False,
    "v": lambda one: ".attn_v." in one.name,
    "v and k": lambda one: ".attn_v." in one.name or ".attn_k." in one.name,
    "down": lambda one: ".ffn_down." in one.name,
    "embedding and head": lambda one: one.name.startswith(("token_embd", "output.")),
    "all": lambda one: bool(one.packed),
}


class Window(NamedTuple):
    """Tokens, and what the folder says behind each of them: log-probabilities."""

    ids: Int[Tensor, " length"]
    said: Tensor


def main() -> None:
    """Measure each folder with each choice of matrices, resuming."""
    parser = arguments(__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--wide", default=",".join(WIDE), help="choices of matrices in float16")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    asked = read_arguments(parser)
    for folder in asked.models:
        measured = known_rows(asked.output)
        wanted = [one for one in asked.wide.split(",") if _key(folder, one) not in measured]
        windows = list(windows_of(folder, asked.data, asked.length)) if wanted else []
        for choice in wanted:
            measure = partial(compared, folder, choice, asked.output / "rounded.gguf", windows)
            keep_row(asked.output, folder.name, choice, 1.0, measure)
    rows = [
        {"table": "rounded_activations", "model": row["calibration"].replace("-", " "),
         "wide": row["label"], **{name: row[name] for name in SHOWN}, "commit": row["commit"]}
        for row in known_rows(asked.output).values()
    ]  # fmt: skip
    text = f"{WINDOWS} windows of {asked.length} tokens of WikiText-2"
    print(publish(asked.output, "rounded_activations", rows, text=text))


def _key(folder: Path, choice: str) -> str:
    return f"{folder.name} | {choice} | 1"


@torch.no_grad()
def windows_of(folder: Path, data: Path, length: int) -> Iterator[Window]:
    """Yield the windows with what the folder's numbers say in float32."""
    source = Source(str(folder), folder, "")
    ids = documents.read(str(data / TEXT), sources.tokenizer(source), length).ids[-WINDOWS:]
    model = unpacked(sources.model(source, dtype=torch.float32))
    for one in ids:
        yield Window(one, log_softmax(model(one[None], use_cache=False).logits[0], -1))


def compared(folder: Path, choice: str, file: Path, windows: list[Window]) -> Row:
    """Return how far an export with some matrices in float16 is from its folder."""
    chosen = WIDE[choice]
    gguf(folder, file, None, choose=lambda one: Kind.F16 if chosen(one) else as_held(one))
    size = file.stat().st_size
    running = llama_cpp(file, 1, len(windows[0].ids))
    more, apart = [], []
    for ids, said in windows:
        there = log_softmax(torch.from_numpy(read(running, ids.tolist())), -1)
        more.append(float(cross_entropy(there[:-1], ids[1:]) - cross_entropy(said[:-1], ids[1:])))
        apart.append(float(kl_div(there, said, log_target=True, reduction="batchmean")))
    running.close()
    file.unlink()
    half = stats.t.ppf(0.975, len(more) - 1) * np.std(more, ddof=1) / len(more) ** 0.5
    return {"more": [float(np.mean(more)), float(half)], "divergence": float(np.mean(apart)),
            "megabytes": size / 1e6}  # fmt: skip


if __name__ == "__main__":
    main()
