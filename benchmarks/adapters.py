"""Whether factored maps pay as a LoRA adapter beside a GGUF whose maps are zeros.

    python benchmarks/adapters.py -o run/            # makes the files and compares what they say
    python benchmarks/adapters.py -o run/ --speeds   # times them, on a quiet machine

llama.cpp has no factored maps, but it adds adapters of two factors to a map. The demo at 80 and at
60 % of its linear numbers, in bf16, is written for it in three ways: its maps multiplied
out in float16, as `export` writes them; the factors as an adapter in float16 beside maps of zeros
in the smallest type that their width allows; and multiplied out in Q8_0. Files in bytes, and
decoding 32 tokens after 64, in rounds that take turns in one process.
"""

from __future__ import annotations

import ctypes
import json
import time
from ctypes import POINTER, c_char_p, c_float, c_int32, c_size_t, c_void_p
from pathlib import Path

import numpy as np
import torch
from exports import NEW_TOKENS, PROMPTS, TEXT, parity, written
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from measuring import Row, arguments, publish, read_arguments

from spectrim.engines.llama_cpp import LlamaCpp, library, llama_cpp
from spectrim.exporters._dense_tensors import DenseTensors
from spectrim.exporters._gguf_families import family_of
from spectrim.exporters._gguf_layout import layout_of
from spectrim.exporters._gguf_tensors import stored_tensors
from spectrim.exporters._gguf_types import Stored, as_held
from spectrim.exporters._spliced import Splice
from spectrim.exporters.gguf import gguf
from spectrim.formats import TwoFactors
from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.recipe.recipe import Recipe
from spectrim.verbs.shrink import shrink

CALIBRATION = "8x256"
KEEPS = ("80%", "60%")
# By what the factors were found changes no size and no speed, so the quickest is taken; all maps,
# as two plain factors, which is the least that an adapter may have.
FACTORED = {"method": "truncated_svd", "format": "low_rank", "allocator": "uniform",
            "refine": "off"}  # fmt: skip
ZEROS = (GGMLQuantizationType.TQ1_0, GGMLQuantizationType.Q4_0)  # of rows of 256 n, of 32 n numbers
READ, DECODED, ROUNDS = 64, 32, 5
THREADS = 2


def main() -> None:
    """Make, write and time every model."""
    parser = arguments(__doc__)
    parser.add_argument("--speeds", action="store_true")
    asked = read_arguments(parser)
    kept = asked.output / "rows.json"
    if asked.speeds:
        rows: list[Row] = json.loads(kept.read_text())
        for keep in KEEPS:
            found = timed(_files(keep, asked.output))
            for row in rows:
                row |= {"decoded": found[row["way"]]} if row["keep"] == keep else {}
        publish(asked.output, "adapters", rows, text=f"{len(PROMPTS)} prompts")
        return
    rows = [row for keep in KEEPS for row in measured(keep, asked.output, asked.cache, asked.data)]
    kept.write_text(json.dumps(rows, indent=1))


def measured(keep: str, output: Path, cache: Path, data: Path) -> list[Row]:
    """Return what a model is in each of the three ways."""
    folder = output / f"factored-{keep.rstrip('%')}"
    if not folder.is_dir():
        changes = {
            "model": "demo", "stages": [{"factorize": FACTORED}],
            "calibration.text": str(data / TEXT), "calibration.tokens": CALIBRATION,
            "keep": f"{keep} of linear",
        }  # fmt: skip
        shrink(Recipe.build(None, changes), folder, cache=cache, evaluate=False)
    ways = _files(keep, output)
    (plain, _), (eight, _), (base, adapter) = ways.values()
    assert adapter is not None
    gguf(folder, plain, None)
    gguf(folder, eight, None, choose=_eight)
    maps = apart(folder, plain, base, adapter)
    source = Source(str(folder), folder, "")
    model, tokenizer = sources.model(source, dtype=torch.float32), sources.tokenizer(source)
    answers = written(model, [tokenizer(one)["input_ids"] for one in PROMPTS])
    rows = []
    for way, (file, beside) in ways.items():
        far, same = parity(answers, _opened(file, beside, 256, exact=True))
        size = file.stat().st_size + (beside.stat().st_size if beside else 0)
        rows.append({
            "table": "adapters", "keep": keep, "way": way, "maps": maps, "logits": far,
            "greedy": [same, NEW_TOKENS * len(PROMPTS)], "megabytes": size / 1e6,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def _files(keep: str, output: Path) -> dict[str, tuple[Path, Path | None]]:
    """Return by each way its file, and the adapter beside it."""
    plain, eight, base, adapter = (output / f"factored-{keep.rstrip('%')}{end}.gguf"
                                   for end in ("", "-q8", "-base", "-lora"))  # fmt: skip
    return {"multiplied out, float16": (plain, None), "multiplied out, Q8_0": (eight, None),
            "zeros and an adapter": (base, adapter)}  # fmt: skip


def _eight(tensor: Stored) -> GGMLQuantizationType:
    held = as_held(tensor)
    return GGMLQuantizationType.Q8_0 if held is GGMLQuantizationType.F16 else held


def apart(folder: Path, plain: Path, base: Path, adapter: Path) -> int:
    """Write a model as zeros and an adapter and return how many maps are in it."""
    held = DenseTensors(folder)
    family = family_of(held.stock.config)
    layout = layout_of(held, family)
    order = {one.name: one.order for one in stored_tensors(held, family, layout)}
    factored = {
        f"{path}.weight": module
        for path, module in held.model.named_modules()
        if isinstance(module, TwoFactors)
    }
    splice = Splice(plain, list(factored))
    splice.write(
        base,
        lambda parameter: _zeros(held.shape(parameter)),
        lambda parameter: held.tensor(parameter, torch.float32).numpy(),
    )
    writer = GGUFWriter(adapter, splice.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 0.0)  # no factor: it would be divided by the rank
    for parameter, name in splice.names.items():
        left, right = factored[parameter].left(), factored[parameter].right()
        rows = order[name]
        left = left if rows is None else left[rows]
        for end, one in (("lora_a", right), ("lora_b", left)):
            writer.add_tensor(f"{name}.{end}", one.detach().half().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(factored)


def _zeros(shape: tuple[int, ...]) -> tuple[np.ndarray, GGMLQuantizationType]:
    kind = next(one for one in ZEROS if shape[1] % GGML_QUANT_SIZES[one][0] == 0)
    block, size = GGML_QUANT_SIZES[kind]
    return np.zeros((shape[0], shape[1] // block * size), np.uint8), kind


def _opened(file: Path, adapter: Path | None, context: int, exact: bool = False) -> LlamaCpp:
    """Return a model running, an adapter added to it if there is one."""
    running = llama_cpp(file, THREADS, context, exact=exact)
    if adapter is not None:
        loaded = library()
        loaded.llama_adapter_lora_init.restype = c_void_p
        loaded.llama_adapter_lora_init.argtypes = (c_void_p, c_char_p)
        loaded.llama_set_adapters_lora.argtypes = (
            c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float),
        )  # fmt: skip
        loaded.llama_set_adapters_lora.restype = c_int32
        made = loaded.llama_adapter_lora_init(running._model, str(adapter).encode())
        if not made:
            raise SystemExit(f"llama.cpp cannot load {adapter}")
        failed = loaded.llama_set_adapters_lora(
            running._context, ctypes.byref(c_void_p(made)), 1, ctypes.byref(c_float(1.0))
        )
        if failed:
            raise SystemExit(f"llama.cpp cannot use {adapter}")
    return running


def timed(files: dict[str, tuple[Path, Path | None]]) -> dict[str, list[float]]:
    """Return tokens per second of every way, round by round, the ways in turn."""
    each = {way: _opened(file, beside, 512) for way, (file, beside) in files.items()}
    found: dict[str, list[float]] = {way: [] for way in each}
    for running in each.values():
        decoded(running)
    for _ in range(ROUNDS):
        for way, running in each.items():
            found[way].append(decoded(running))
    for running in each.values():
        running.close()
    return found


def decoded(running: LlamaCpp) -> float:
    """Return how many tokens a second a model decodes after a prompt."""
    running.clear()
    running.feed(list(range(100, 100 + READ)))
    begin = time.perf_counter()
    for token in range(DECODED):
        running.feed([200 + token])
    return DECODED / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
