"""ONNX, for ONNX Runtime on any processor: an explicit graph, in onnxruntime-genai's layout.

Packed maps become MatMulNBits in 2, 4 or 8 bits (3 are stored as 4, and paths through a trellis as
8), factored maps two products in series, narrower maps products of their own widths. What is not
packed is stored in the checkpoint's dtype and computed in float32. Source of the operators: ONNX
Runtime's docs/ContribOperators.md.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spectrim.errors import SpectrimError
from spectrim.exporters._words import bytes_beside
from spectrim.model import sources
from spectrim.model.conversion import BESIDE
from spectrim.model.sources import Source
from spectrim.progress import Progress

WRITES = "folder"
NEEDS = ("onnx_ir", "onnxruntime")
TOKENIZER = "PreTrainedTokenizerFast"  # by which genai knows what any tokenizer.json says


def onnx(source: Path, output: Path, progress: Progress | None = None) -> list[str]:
    """Fill a folder with model.onnx, model.onnx.data, genai_config.json and the tokenizer.

    source: a model folder, ours or an ordinary one of the families that `families.FAMILIES` names.

    Raises:
        SpectrimError: a package is missing, or the model has no form in ONNX.
    """
    needed()
    from spectrim.exporters.onnx_graph.decoder import decoder
    from spectrim.exporters.onnx_graph.families import refuse
    from spectrim.exporters.onnx_graph.graph import Graph

    known = Source(str(source), source, "")
    config = sources.config(known)
    refuse(config)
    model = sources.model(known)
    graph = Graph()
    inputs, outputs, shapes = decoder(graph, model, progress or (lambda *_: None))
    graph.save(inputs, outputs, output)
    _companions(source, output)
    heads, width = shapes.caches[0]
    settings = genai(config, model.generation_config, len(shapes.caches), heads, width)
    text = json.dumps(settings, indent=2) + "\n"
    (output / "genai_config.json").write_text(text, encoding="utf-8")
    return notes(model, source, output, len(set(shapes.caches)) == 1)


def needed() -> None:
    """Raise SpectrimError where a package that this needs is not installed."""
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise SpectrimError(
            f"ONNX needs {' and '.join(missing)}; run `pip install 'spectrim[export]'`"
        )


def genai(config: Any, generation: Any, blocks: int, heads: int, width: int) -> dict[str, Any]:
    """Return what onnxruntime-genai is told: inputs and outputs, shapes, special tokens."""
    parts = ("key", "value")
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": width,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": blocks,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"}
        | {f"past_{part}_names": f"past_key_values.%d.{part}" for part in parts},
        "outputs": {"logits": "logits"}
        | {f"present_{part}_names": f"present.%d.{part}" for part in parts},
    }
    ends = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    first_end = ends[0] if isinstance(ends, list) else ends
    model = {
        "type": config.model_type,
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": first_end if config.pad_token_id is None else config.pad_token_id,
        "decoder": decoder,
    }
    search = {"max_length": config.max_position_embeddings, "past_present_share_buffer": True}
    model = {key: value for key, value in model.items() if value is not None}
    return {"model": model, "search": search}


def notes(model: Any, source: Path, output: Path, even: bool) -> list[str]:
    """Return what a user should know: what has which bits, what was written out, the bytes.

    even: whether all blocks keep keys and values of one shape.
    """
    kinds = [type(module).__name__ for module in model.modules()]
    grids = [one.grid.bits for one in model.modules() if type(one).__name__ == "PackedMatrix"]
    bits = Counter(grids)
    lines = []
    if bits:
        said = ", ".join(f"{bits[each]} in {each} bits" for each in sorted(bits))
        lines.append(f"packed matrices: {said}; ONNX Runtime rounds their inputs to 8 bits")
    if bits[1]:
        lines.append("signs are stored in 2 bits, as ONNX Runtime has no product of one")
    if bits[3]:
        lines.append("3 bits are stored in 4, as ONNX Runtime has no product of them")
    if paths := kinds.count("Trellis"):
        lines.append(
            f"{paths} maps are paths through a trellis, which ONNX Runtime does not read; 8 bits "
            "lose next to nothing of them, but take 9 bits a number with their scales"
        )
    if "TensorTrain" in kinds:
        lines.append("tensor trains are written out as dense matrices")
    if not even:
        lines.append("attention differs by block: onnxruntime runs it, onnxruntime-genai does not")
    written = sum(path.stat().st_size for path in output.glob("model.onnx*"))
    held = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    return [*lines, bytes_beside(written, held)]


def _companions(source: Path, output: Path) -> None:
    """Copy the tokenizer and what belongs to it."""
    for file in (path for pattern in BESIDE for path in source.glob(pattern)):
        shutil.copyfile(file, output / file.name)
    settings = output / "tokenizer_config.json"
    if settings.is_file():
        said = json.loads(settings.read_text(encoding="utf-8"))
        said["tokenizer_class"] = TOKENIZER
        settings.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
