"""What ONNX exports lose and gain: beside transformers in float32, and by tokens a second.

    python benchmarks/exports_onnx.py rotated/ narrow/ packed/ -o run/          # exports and losses
    python benchmarks/exports_onnx.py rotated/ narrow/ packed/ -o run/ --speed  # on a quiet machine

The first folder is the dense model that all are compared with. Each is exported, read by ONNX
Runtime, and compared with its own folder in transformers in float32: greedy tokens behind ten
prompts, the largest difference of logits, and the loss on ten windows. Speeds are measured in turn,
in one process: the dense model in bf16 by transformers, and every export by ONNX Runtime.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int
from measuring import ROTATED, Row, arguments, publish
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from spectrim.engines.onnxruntime import OnnxRuntime, onnxruntime
from spectrim.exporters.onnx import onnx
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.metrics.speed import one_round
from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.text import documents

TEXT = "lm/wikitext2_tokens/valid.txt"
WINDOWS, LENGTH = 10, 256
PROMPT, GREEDY = 48, 16  # tokens
ROUNDS, READ, BEFORE, DECODED = 3, 256, 64, 32
CONTEXT = 512


def main() -> None:
    """Export and compare, or measure speeds and write the run."""
    parser = arguments(__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--speed", action="store_true")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    record = asked.output / "compared.json"
    known: dict[str, Row] = json.loads(record.read_text()) if record.exists() else {}
    if asked.speed:
        rows = speeds(asked.folders, asked.output, known)
        said = f"{READ} tokens read, or {DECODED} decoded behind {BEFORE}, one sequence"
        timed = {row["model"] for row in rows}
        rows += [{"table": "exports_onnx", "model": name, **row}
                 for name, row in known.items() if name not in timed]  # fmt: skip
        print(publish(asked.output, "exports_onnx", rows, model=ROTATED, text=said, seed=None))
        return
    for folder in asked.folders:
        if folder.name not in known:
            known[folder.name] = compared(folder, asked.output, asked.data)
            print(folder.name, known[folder.name], flush=True)
            record.write_text(json.dumps(known, indent=1))


def compared(folder: Path, output: Path, data: Path) -> Row:
    """Export a folder and return what it computes otherwise than transformers in float32."""
    target = exported(folder, output)
    source = Source(str(folder), folder, "")
    ids = documents.read(str(data / TEXT), sources.tokenizer(source), LENGTH).ids[:WINDOWS]
    model, running = sources.model(source, dtype=torch.float32), onnxruntime(target, 1, CONTEXT)
    packed = unpacked(model)
    found = [_window(model, running, row) for row in ids]
    # Codes are multiplied by inputs in int8 there, so that close tokens may change places.
    same = None if packed else sum(_greedy(model, running, row[:PROMPT]) for row in ids)
    running.close()
    return {
        "megabytes": _megabytes(folder, "*.safetensors"),
        "onnx_megabytes": _megabytes(target, "model.onnx*"),
        "greedy_alike": same,
        "largest_difference": max(one["largest"] for one in found),
        "argmax_alike": sum(one["alike"] for one in found) / len(found),
        "loss": sum(one["loss"] for one in found) / len(found),
        "onnx_loss": sum(one["onnx_loss"] for one in found) / len(found),
    }


def unpacked(model: PreTrainedModel) -> int:
    """Have packed matrices multiply in float32 by what they stand for; return how many are."""
    packed = [one for one in model.modules() if isinstance(one, PackedMatrix)]
    for one in packed:
        whole: Any = one
        whole.product = partial(functional.linear, weight=one.dense().detach())
    return len(packed)


def exported(folder: Path, output: Path) -> Path:
    """Export a folder anew and return where."""
    target = output / f"{folder.name}-onnx"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for line in onnx(folder, target):
        print(f"{folder.name}: {line}")
    return target


def speeds(folders: list[Path], output: Path, known: dict[str, Row]) -> list[Row]:
    """Return a row for the dense model in transformers and one for each export."""
    dense = sources.model(Source("", folders[0], ""))
    torch.set_num_threads(2)
    prompt = torch.arange(READ)[None] + 10

    def torch_round() -> tuple[float, float]:
        with torch.inference_mode():
            read = one_round(dense, prompt, 0)[0]
            return READ / read, DECODED / one_round(dense, prompt[:, :BEFORE], DECODED)[1]

    rounds: dict[str, Callable[[], tuple[float, float]]] = {"transformers": torch_round}
    for folder in folders:
        running = onnxruntime(output / f"{folder.name}-onnx", 2, CONTEXT)
        rounds[folder.name] = lambda running=running: _round(running)  # type: ignore[misc]
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in rounds}
    for done in range(-1, ROUNDS):
        for name, one in rounds.items():
            found = one()
            if done >= 0:
                taken[name].append(found)
    first = taken["transformers"]
    return [{"table": "exports_onnx", "model": name, **known.get(name, {}),
             **_rates(taken[name], first)} for name in rounds]  # fmt: skip


def _rates(own: list[tuple[float, float]], first: list[tuple[float, float]]) -> Row:
    found: Row = {}
    for at, what in enumerate(("read", "decoded")):
        ratios = sorted(one[at] / other[at] for one, other in zip(own, first, strict=True))
        found[f"{what}_per_second"] = median(one[at] for one in own)
        found[f"{what}_ratio"] = [median(ratios), ratios[0], ratios[-1]]
    return found


def _round(running: OnnxRuntime) -> tuple[float, float]:
    ids = list(range(10, 10 + READ))
    running.clear()
    start = time.perf_counter()
    running.feed(ids)
    read = time.perf_counter() - start
    running.clear()
    token = int(running.feed(ids[:BEFORE]).argmax())
    start = time.perf_counter()
    for _ in range(DECODED):
        token = int(running.feed([token]).argmax())
    return READ / read, DECODED / (time.perf_counter() - start)


@torch.inference_mode()
def _window(
    model: PreTrainedModel, running: OnnxRuntime, ids: Int[Tensor, " length"]
) -> dict[str, float]:
    running.clear()
    own: Float[Tensor, "length vocabulary"] = model(input_ids=ids[None]).logits[0]
    theirs = torch.from_numpy(running.logits(ids.tolist(), len(ids)).copy())
    loss, other = (functional.cross_entropy(one[:-1], ids[1:]) for one in (own, theirs))
    return {
        "largest": float((own - theirs).abs().max()),
        "alike": float((own.argmax(-1) == theirs.argmax(-1)).float().mean()),
        "loss": float(loss),
        "onnx_loss": float(other),
    }


@torch.inference_mode()
def _greedy(model: Any, running: OnnxRuntime, prompt: Int[Tensor, " length"]) -> bool:
    """Return whether both write the same tokens behind a prompt."""
    whole = model.generate(
        prompt[None], attention_mask=torch.ones_like(prompt)[None], do_sample=False,
        min_new_tokens=GREEDY, max_new_tokens=GREEDY,
    )[0].tolist()  # fmt: skip
    running.clear()
    written, fed = prompt.tolist(), prompt.tolist()
    ends = model.generation_config.eos_token_id
    for _ in range(GREEDY):
        logits = running.feed(fed).copy()
        logits[ends] = -torch.inf  # as transformers does for so many new tokens at least
        fed = [int(logits.argmax())]
        written += fed
    return bool(written == whole)


def _megabytes(folder: Path, pattern: str) -> float:
    return round(sum(path.stat().st_size for path in folder.glob(pattern)) / 1e6, 1)


if __name__ == "__main__":
    main()
