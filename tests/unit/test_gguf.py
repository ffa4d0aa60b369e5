"""GGUF files: unpacked into a normal model folder, or refused with one line."""

from __future__ import annotations

import importlib.metadata
import json
import struct
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from spectrim.errors import SpectrimError
from spectrim.model import gguf
from spectrim.model.weights import Weights, quiet
from spectrim.verbs.runnable import runnable
from tiny_folders import tiny_folder

SPECIAL = ["<|end|>", "<|start|>", "<|turn|>"]
WIDTH, INNER = 32, 64
SHAPES = {
    "token_embd": (259, WIDTH),
    "output_norm": (WIDTH,),
    "blk.0.attn_norm": (WIDTH,),
    "blk.0.ffn_norm": (WIDTH,),
    "blk.0.attn_q": (WIDTH, WIDTH),
    "blk.0.attn_k": (WIDTH, WIDTH),
    "blk.0.attn_v": (WIDTH, WIDTH),
    "blk.0.attn_output": (WIDTH, WIDTH),
    "blk.0.ffn_gate": (INNER, WIDTH),
    "blk.0.ffn_up": (INNER, WIDTH),
    "blk.0.ffn_down": (WIDTH, INNER),
}


def tiny_gguf(file: Path, *, without: str = "", pre: str = "smollm") -> Path:
    """Write a Llama of one block with a byte-level tokenizer that merges spaces."""
    writer = GGUFWriter(file, "llama")
    writer.add_license("apache-2.0")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(259)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    letters = list(bytes_to_unicode().values())
    writer.add_token_list([*SPECIAL, *letters[:-1], "ĠĠ"])
    writer.add_token_types([3] * 3 + [1] * 256)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}<|turn|>")
    generator = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        if name != without:
            writer.add_tensor(f"{name}.weight", generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def unpacked(file: Path, folder: Path) -> Path:
    folder.mkdir()
    gguf.unpack(file, folder, "0" * 64)
    return folder


def test_an_unpacked_file_is_a_model_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = unpacked(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")
    said = capfd.readouterr()
    assert "it/s]" not in said.err
    assert not said.out
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == Weights(folder).dtype() == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == [0, 2]
    assert model.generation_config.pad_token_id == 0
    ids = tokenizer("Hello,  world<|turn|>").input_ids
    assert tokenizer.decode(ids) == "Hello,  world<|turn|>"
    assert ids[-1] == 2
    assert tokenizer.model_max_length == 64
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat == "Hi<|turn|>"
    with torch.inference_mode():
        assert model(torch.tensor([ids])).logits.isfinite().all()


def test_the_folder_says_where_it_comes_from(tmp_path: Path) -> None:
    folder = unpacked(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")
    record = json.loads((folder / gguf.RECORD).read_text())
    assert record["file"] == "tiny.gguf"
    assert record["sha256"] == "0" * 64
    assert record["licence"] == "apache-2.0"
    assert record["about"]["general.architecture"] == "llama"
    assert record["versions"]["transformers"] == importlib.metadata.version("transformers")


def test_digits_are_split_off_before_words(tmp_path: Path) -> None:
    text = "x =  12"  # the spaces before a digit are a word of their own, and so one token
    pieces = {}
    for pre in ("smollm", "gpt-2"):
        folder = unpacked(tiny_gguf(tmp_path / f"{pre}.gguf", pre=pre), tmp_path / pre)
        pieces[pre] = AutoTokenizer.from_pretrained(folder).tokenize(text)
    assert pieces["smollm"] == ["x", "Ġ", "=", "ĠĠ", "1", "2"]
    assert pieces["gpt-2"] == ["x", "Ġ", "=", "Ġ", "Ġ", "1", "2"]


def test_what_lies_beside_the_file_has_no_say(tmp_path: Path) -> None:
    tiny_folder(tmp_path, "gpt2")  # another model with another tokenizer
    folder = unpacked(tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("ab") == ["a", "b"]
    assert tokenizer.chat_template


def test_metadata_is_read_as_the_file_says(tmp_path: Path) -> None:
    said = gguf.metadata(tiny_gguf(tmp_path / "tiny.gguf"))
    assert said["general.license"] == "apache-2.0"
    assert said["llama.embedding_length"] == WIDTH
    assert said["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert said["tokenizer.ggml.eot_token_id"] == 2
    assert "tokenizer.ggml.tokens" not in said


LIST = b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 9)  # and the kind of its entries


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"PK\x03\x04 a zip file", "is no GGUF file; expected one that starts with 'GGUF'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1; expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1), "is cut off or damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "is cut off or damaged"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99), "is cut off or damaged"),
        (b"GGUF" + struct.pack("<IQQQ1s", 3, 0, 1, 1, b"\xff"), "is cut off or damaged"),
        (LIST + struct.pack("<IQ", 0, 1 << 60), "is cut off or damaged"),
        (LIST + struct.pack("<IQ", 9, 1) * 100_000, "is cut off or damaged"),
    ],
    ids=["zip", "version", "nothing", "length", "kind", "not UTF-8", "long list", "nested lists"],
)
def test_damaged_metadata(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(SpectrimError, match=line):
        gguf.metadata(file)


@pytest.mark.parametrize(
    ("key", "code", "value"),
    [
        ("block_count", "I", 12),
        ("block_count", "I", 0),
        ("embedding_length", "I", 10**9),
        ("vocab_size", "I", 2**31),
        ("context_length", "I", 2**31),
        ("attention.layer_norm_rms_epsilon", "f", float("nan")),
        ("attention.layer_norm_rms_epsilon", "f", -1.0),
    ],
)
def test_numbers_that_no_model_has(tmp_path: Path, key: str, code: str, value: float) -> None:
    """Of which llama.cpp ends the process, or transformers takes all memory."""
    file = tiny_gguf(tmp_path / "tiny.gguf")
    name, content = f"llama.{key}".encode(), file.read_bytes()
    place = content.index(name) + len(name) + 4
    file.write_bytes(content[:place] + struct.pack(f"<{code}", value) + content[place + 4 :])
    line = f"gives llama.{key} as {value}; fetch it again"
    with pytest.raises(SpectrimError, match=line):
        unpacked(file, tmp_path / "model")
    with pytest.raises(SpectrimError, match=line):
        runnable(str(file), tmp_path / "cache")


def test_a_file_cut_off_inside_its_tensors(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(SpectrimError, match="tiny.gguf cannot be unpacked"):
        unpacked(file, tmp_path / "model")


def test_a_file_without_one_of_the_tensors(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf", without="blk.0.ffn_up")
    line = "lacks 1 of the model's tensors, 'model.layers.0.mlp.up_proj.weight' first"
    with pytest.raises(SpectrimError, match=line):
        unpacked(file, tmp_path / "model")


class Installed(PurePosixPath):
    """A file of an installed package, as importlib.metadata gives it."""

    def locate(self) -> Path:
        return Path(str(self))


def test_the_demo_file_is_found_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.gguf"
    listed: list[Any] = [Installed(tmp_path / "__init__.py"), Installed(model)]
    monkeypatch.setattr(importlib.metadata, "files", lambda name: listed)
    assert gguf.demo_file() is None  # listed, but not there
    model.write_bytes(b"")
    assert gguf.demo_file() == model
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    assert gguf.demo_file() is None


def test_no_demo_file_where_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "DEMO_PACKAGE", "no-such-package-as-this")
    assert gguf.demo_file() is None
