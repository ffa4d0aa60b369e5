"""What is written for llama.cpp says there what it says here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor

from spectrim.engines.llama_cpp import llama_cpp
from spectrim.errors import SpectrimError
from spectrim.exporters._gguf_vocabulary import SPLITS, split_of
from spectrim.exporters.gguf import gguf
from spectrim.formats import make_format
from spectrim.formats.packed.scales import Grid
from spectrim.formats.quantized_dense import QuantizedDense
from spectrim.model import sources
from spectrim.rounding.nearest import nearest
from spectrim.serve.language import of_path
from tiny_exports import TEXT, apart, byte_pairs, exportable, in_formats, narrower, pieces, saved
from tiny_folders import tiny_folder
from tiny_models import build
from tiny_runs import load

CLOSE = 0.02  # of logits of about 3; weights are rounded to float16
FAMILIES = ("falcon", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "mixtral", "phi",
            "qwen2", "qwen3")  # fmt: skip


def exported(folder: Path) -> tuple[Path, list[str]]:
    """Return the file that is made of a folder, and what was told of it."""
    file = folder.parent / f"{folder.name}.gguf"
    return file, gguf(folder, file, None)


def distance(folder: Path) -> float:
    """Return how far the file that is made of a folder is from it."""
    file, _ = exported(folder)
    running = llama_cpp(file, 1, 64, exact=True)
    far = apart(load(folder), running)
    running.close()
    return far


def field(file: Path, name: str) -> object:
    return GGUFReader(file).get_field(name).contents()


def tensors(file: Path) -> dict[str, Tensor]:
    """Return all tensors of a file as numbers."""
    found = GGUFReader(file).tensors
    return {one.name: torch.tensor(dequantize(one.data, one.tensor_type)) for one in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_the_same_in_llama_cpp(family: str, tmp_path: Path) -> None:
    changes = {"max_position_embeddings": 64}
    if family == "falcon":
        changes = {"parallel_attn": True}
    if family == "mistral":
        changes = {"sliding_window": None}  # which llama.cpp does not apply
    assert distance(exportable(tmp_path / "model", family, **changes)) < CLOSE


SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = [
    ("llama", {"rope_parameters": SCALED}, "llama"),
    ("qwen2", {"rope_parameters": SCALED}, "llama"),  # its own has no speeds one by one
    ("phi", {"tie_word_embeddings": True}, "phi2"),
    ("llama", {"attention_bias": True, "mlp_bias": True}, "llama"),
]


@pytest.mark.parametrize(("family", "changes", "arch"), VARIANTS)
def test_variants_of_families_say_the_same(
    family: str, changes: dict[str, object], arch: str, tmp_path: Path
) -> None:
    folder = exportable(tmp_path / "model", family, **changes)
    assert distance(folder) < CLOSE
    file, told = exported(folder)
    assert field(file, "general.architecture") == arch
    assert any("embedding is written twice" in line for line in told) == (family == "phi")


def test_widths_by_block_and_a_block_without_attention(tmp_path: Path) -> None:
    model = narrower(build("llama"), [80, 64, 40])
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    folder = saved(tmp_path / "model", model)
    assert distance(folder) < CLOSE
    file = tmp_path / "model.gguf"
    assert field(file, "general.architecture") == "deci"
    assert field(file, "deci.feed_forward_length") == [96, 64, 64]
    assert field(file, "deci.attention.head_count") == [4, 0, 4]
    assert not [name for name in tensors(file) if name.startswith("blk.1.attn")]


def test_values_of_no_dimension_are_a_block_without_attention(tmp_path: Path) -> None:
    model, made = build("llama"), {}
    for part, name in (("v", "padded_outputs"), ("o", "picked_inputs")):
        path = f"model.layers.1.self_attn.{part}_proj"
        weight = model.get_submodule(path).weight.detach()
        pieces = {"rows": weight, "columns": weight, "root": torch.eye(weight.shape[1]).double(),
                  "order": torch.arange(max(weight.shape))}  # fmt: skip
        made[path] = make_format(name, (*weight.shape, 0), pieces, None, weight.dtype)
    assert distance(saved(tmp_path / "model", in_formats(model, made))) < CLOSE
    assert field(tmp_path / "model.gguf", "deci.attention.head_count") == [4, 0, 4]


def test_the_first_block_may_lack_attention(tmp_path: Path) -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    assert distance(saved(tmp_path / "model", model)) < CLOSE


@pytest.mark.parametrize(("family", "arch"), [("qwen2", "deci"), ("qwen3", "qwen3")])
def test_widths_of_another_family_are_read_by_block_or_filled_up(
    family: str, arch: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", narrower(build(family), [80, 64, 40]))
    assert distance(folder) < CLOSE
    assert field(tmp_path / "model.gguf", "general.architecture") == arch
    _, told = exported(folder)
    assert ("filled up" in told[0]) == (arch == "qwen3")


GRIDS = [
    (Grid(8, 0, True), "Q8_0"),
    (Grid(8, 32, True), "Q8_0"),
    (Grid(4, 64, True), "Q4_0"),
    (Grid(4, 64, False), "Q4_1"),
    (Grid(3, 32, False), "Q4_1"),
    (Grid(2, 64, True), "Q4_0"),
]


def test_packed_codes_are_kept(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6}
    model = load(exportable(tmp_path / "dense", **sizes)).to(torch.bfloat16)
    made = {}
    for at, (grid, _) in enumerate(GRIDS):
        for name in ("mlp.down_proj", "self_attn.k_proj"):
            path = f"model.layers.{at}.{name}"
            made[path] = packed(model.get_submodule(path).weight, grid)
    folder = saved(tmp_path / "model", in_formats(model, made))
    file, told = exported(folder)
    assert any("12 tensors keep their codes (Q4_0, Q4_1, Q8_0)" in line for line in told), told
    kinds = {one.name: one.tensor_type.name for one in GGUFReader(file).tensors}
    found = tensors(file)
    for at, (_, kind) in enumerate(GRIDS):
        module = made[f"model.layers.{at}.mlp.down_proj"]
        assert kinds[f"blk.{at}.ffn_down.weight"] == kinds[f"blk.{at}.attn_k.weight"] == kind
        expected = module.dense().float()
        error = (found[f"blk.{at}.ffn_down.weight"] - expected).abs().max()
        assert error < expected.abs().max() / 256  # what bfloat16, in which ours is told, rounds
    running = llama_cpp(file, 1, 64, exact=True)
    assert apart(load(folder), running) < 0.2  # activations in 8 bits; another model is 3 away
    running.close()


def packed(weight: Tensor, grid: Grid) -> QuantizedDense:
    """Return a matrix to the nearest of a grid."""
    module = QuantizedDense(*weight.shape[::-1], min(weight.shape), False, grid).to(weight.dtype)
    codes = nearest(weight.detach(), torch.ones(weight.shape[1]), grid, weight.dtype)
    with torch.no_grad():
        module.take(codes.pieces("quantized"))
    return module


@pytest.mark.parametrize("words", [byte_pairs, pieces])
def test_text_becomes_the_same_tokens(words: object, tmp_path: Path) -> None:
    made = words()
    folder = exportable(tmp_path / "model", words=made, vocab_size=320)
    file, told = exported(folder)
    running = llama_cpp(file, 1, 64)
    for text in (TEXT, "the", " in re", "an ounce"):
        expected = sources.tokenizer(sources.Source("", folder, ""))(text)["input_ids"]
        assert running.encode(text) == expected
        assert running.decode(running.encode(text)).strip() == text.strip()
    running.close()


def test_splitting_is_named_as_llama_cpp_names_it() -> None:
    level = {"type": "ByteLevel", "use_regex": True}
    rest = {"type": "ByteLevel", "use_regex": False}
    digits = {"type": "Digits", "individual_digits": True}
    llama3, qwen = (next(key for key, name in SPLITS.items() if name == wanted)
                    for wanted in ("llama-bpe", "qwen2"))  # fmt: skip
    for steps, name in (
        ([level], "gpt-2"),
        ([digits, level], "smollm"),
        ([{"type": "Split", "pattern": {"Regex": llama3[0]}}, rest], "llama-bpe"),
        ([{"type": "Split", "pattern": {"Regex": qwen[0]}}, rest], "qwen2"),
        ([{"type": "Split", "pattern": {"Regex": "x"}}, rest], None),
    ):
        assert split_of({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}) == name


UNKNOWN = [
    ("llama", {"hidden_act": "gelu"}, "activation is 'gelu'"),
    ("gemma2", {"final_logit_softcapping": None}, "not capped"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attention are capped"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "attend to those behind them"),
    ("gemma2", {"attention_bias": True}, "gemma2 has no place for 'model.layers.0.*bias'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaled by another number"),
    ("falcon", {"parallel_attn": True, "bias": True}, "maps have biases"),
    ("phi", {"qk_layernorm": True}, "queries and keys are normalised"),
    ("qwen3", {"attention_bias": True}, "qwen3 has no place for 'model.layers.0.*bias'"),
    ("qwen3", {"rope_parameters": SCALED}, "positions of type 'llama3' are not written of it"),
]


@pytest.mark.parametrize(("family", "changes", "said"), UNKNOWN)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    family: str, changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    folder = exportable(tmp_path / "model", family, **changes)
    with pytest.raises(SpectrimError, match=said):
        gguf(folder, tmp_path / "x.gguf", None)
    assert not (tmp_path / "x.gguf").exists()


def test_a_window_that_llama_cpp_does_not_apply_is_told(tmp_path: Path) -> None:
    _, told = exported(exportable(tmp_path / "model", "mixtral", sliding_window=5))
    assert any("the model the last 5" in line for line in told)


def test_added_tokens_without_a_row_are_left_out(tmp_path: Path) -> None:
    words = byte_pairs()
    words.add_special_tokens(["<image>"])
    rows = words.get_vocab_size() - 1
    file, told = exported(exportable(tmp_path / "model", words=words, vocab_size=rows))
    assert "'<image>', which the file leaves out" in " ".join(told)
    assert len(field(file, "tokenizer.ggml.tokens")) == rows
    with pytest.raises(SpectrimError, match=f"only {rows - 1} rows"):
        exported(exportable(tmp_path / "less", words=words, vocab_size=rows - 1))


def test_all_tokens_that_end_an_answer_are_told(tmp_path: Path) -> None:
    folder = exportable(tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7, 5, 9]}')
    file, told = exported(folder)
    assert of_path(file).ends == {2, 7, 5}
    assert "token 9 ends an answer here, but not in the file" in told


def test_what_llama_cpp_cannot_run_is_refused(tmp_path: Path) -> None:
    for family, said in (("t5", "model type 't5'"), ("falcon_alibi", "ALiBi")):
        folder = tiny_folder(tmp_path / family, family)
        with pytest.raises(SpectrimError, match=said):
            gguf(folder, tmp_path / "x.gguf", None)
    with pytest.raises(SpectrimError, match="of type WordLevel"):
        gguf(tiny_folder(tmp_path / "words"), tmp_path / "x.gguf", None)


def test_the_engine_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SpectrimError, match="no file"):
        llama_cpp(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(SpectrimError, match="cannot load"):
        llama_cpp(tmp_path / "bad.gguf")
    running = llama_cpp(exported(exportable(tmp_path / "model"))[0], 1, 32)
    with pytest.raises(SpectrimError, match="longer than the .* tokens of context"):
        running.feed([5] * 600)
    running.close()
