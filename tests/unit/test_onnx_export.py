"""Models exported to ONNX compute what they computed, in ONNX Runtime and in its GenAI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import ndarray
from transformers import PreTrainedModel

pytest.importorskip("onnx_ir", reason="pip install 'spectrim[export]'")

from onnx_ir import load as load_onnx

from spectrim.engines.onnxruntime import OnnxRuntime, onnxruntime
from spectrim.exporters.onnx import onnx
from spectrim.exporters.onnx_graph import maps
from spectrim.formats import FactoredLinear, formats, link
from spectrim.formats.fewer_inputs import FewerInputs
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.model import checkpoint, sites
from spectrim.model.sources import Source
from spectrim.model.sources import model as load
from spectrim.rounding.nearest import nearest
from tiny_folders import tiny_folder
from tiny_models import VOCABULARY, logits, tokens

FAMILIES = ("llama_biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
STEPS = (9, 1, 1, 6, 1)  # tokens that are fed at once; windows of attention are 5 long


def folder_of(path: Path, family: str, *, dtype: torch.dtype = torch.float32) -> Path:
    return tiny_folder(path, family, head_dim=16, dtype=dtype, tie=family != "qwen2")


def exported(source: Path, output: Path) -> OnnxRuntime:
    output.mkdir()
    onnx(source, output)
    return onnxruntime(output, 1, 32)


def dense(source: Path) -> PreTrainedModel:
    return load(Source("", source, ""), dtype=torch.float32)


def in_steps(running: OnnxRuntime, ids: list[int]) -> Iterator[tuple[int, ndarray]]:
    """Feed tokens in steps; yield how many were fed, and the logits behind the last."""
    running.clear()
    fed = 0
    for count in STEPS:
        found = running.feed(ids[fed : fed + count])
        fed += count
        yield fed, found


@pytest.mark.parametrize("family", FAMILIES)
def test_families_compute_the_same_whole_and_in_steps(family: str, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "dense", family)
    running = exported(source, tmp_path / "onnx")
    ids = tokens(sequences=1, length=sum(STEPS))
    expected = logits(dense(source), ids)[0].numpy()
    np.testing.assert_allclose(running.logits(ids[0].tolist(), sum(STEPS)), expected, atol=1e-4)
    for fed, found in in_steps(running, ids[0].tolist()):
        np.testing.assert_allclose(found, expected[fed - 1], atol=1e-4)
    running.close()


GRID = {"group": 32, "symmetric": False}
EVEN = {"group": 0, "symmetric": True}
Said = dict[str, tuple[str, dict[str, object]]]
DENSE: Said = {  # map → format, and what its shape says besides
    "0.self_attn.q_proj": ("low_rank", {}),
    "0.self_attn.k_proj": ("pivoted", {}),
    "0.self_attn.v_proj": ("padded_outputs", {}),
    "0.self_attn.o_proj": ("picked_inputs", {}),
    "0.mlp.gate_proj": ("autoencoder", {}),
    "0.mlp.up_proj": ("tensor_train", {}),
    "0.mlp.down_proj": ("corrected_dense", {"correction": 3}),
    "1.self_attn.q_proj": ("shared_owner", {}),
    "1.self_attn.k_proj": ("shared_follower", {"owner": "model.layers.1.self_attn.q_proj"}),
    "1.mlp.gate_proj": ("fewer_outputs", {}),
    "1.mlp.up_proj": ("fewer_outputs", {}),
    "1.mlp.down_proj": ("fewer_inputs", {}),
}
PACKED: Said = {
    "0.self_attn.q_proj": ("quantized_low_rank", {"bits": 8, **GRID}),
    "0.self_attn.k_proj": ("quantized_dense", {"bits": 8, **EVEN, "correction": 3}),
    "0.self_attn.o_proj": ("quantized_pivoted", {"bits": 8, **GRID}),
    "0.mlp.gate_proj": ("quantized_fewer_outputs", {"bits": 8, **EVEN}),
    "0.mlp.up_proj": ("quantized_fewer_outputs", {"bits": 8, **EVEN}),
    "0.mlp.down_proj": ("quantized_fewer_inputs", {"bits": 8, **GRID}),
    "1.self_attn.q_proj": ("quantized_dense", {"bits": 4, **GRID}),
    "1.self_attn.k_proj": ("quantized_dense", {"bits": 3, **GRID}),
    "1.self_attn.v_proj": ("quantized_dense", {"bits": 4, **GRID}),
    "2.mlp.up_proj": ("quantized_dense", {"bits": 2, **GRID}),
}
ENDS: Said = {
    "model.embed_tokens": ("quantized_embedding", {"bits": 4, **GRID}),
    "lm_head": ("tied_head", {"owner": "model.embed_tokens"}),
}
RANK = 24


def with_formats(
    source: Path, target: Path, said: dict[str, tuple[str, dict[str, object]]]
) -> Path:
    """Write a model some of whose maps are random ones in these formats."""
    model = dense(source)
    held: dict[str, dict[str, object]] = {}
    for name, (form, keywords) in said.items():
        out_features, in_features = sites.shape(model.get_submodule(name))
        shape = {"in_features": in_features, "out_features": out_features, "rank": RANK}
        module = formats.get(form).from_shape({**shape, "bias": False, **keywords})
        fill(module)
        sites.replace(model, name, module)
        held[name] = {"format": form, **module.shape()}
    link(model, {name: str(one["owner"]) for name, one in held.items() if "owner" in one})
    checkpoint.attach(model, held)
    model.save_pretrained(target)
    for file in source.glob("tokenizer*"):
        (target / file.name).write_bytes(file.read_bytes())
    return target


@torch.no_grad()
def fill(module: FactoredLinear) -> None:
    """Fill a format with numbers of the size of a trained map's."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise / max(parameter.shape[-1], 1) ** 0.5)
    for buffer in module.buffers():
        if buffer.dtype == torch.int32:
            reads = isinstance(module, FewerInputs)
            among = module.in_features if reads else module.out_features
            buffer.copy_(torch.randperm(among, generator=generator)[: len(buffer)])
    for part in module.modules():
        if isinstance(part, PackedMatrix):
            values = torch.randn(part.rows, part.columns, generator=generator)
            found = nearest(
                values / part.columns**0.5, torch.ones(part.columns), part.grid, torch.float32
            )
            own = found.pieces("it").items()
            part.take({key.removeprefix("it."): piece for key, piece in own})


def blocks(
    said: dict[str, tuple[str, dict[str, object]]],
) -> dict[str, tuple[str, dict[str, object]]]:
    return {f"model.layers.{name}": one for name, one in said.items()}


def test_every_dense_format_computes_the_same(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "dense", "llama")
    small = with_formats(source, tmp_path / "small", blocks(DENSE))
    running = exported(small, tmp_path / "onnx")
    ids = tokens(sequences=1, length=16)
    expected = logits(dense(small), ids)[0].numpy()
    np.testing.assert_allclose(running.logits(ids[0].tolist(), 16), expected, atol=1e-3)


def test_pivot_rows_are_placed_in_whichever_way_is_quicker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(tmp_path / "dense", "llama")
    names = [f"self_attn.{one}_proj" for one in "qkvo"] + ["mlp.gate_proj", "mlp.down_proj"]
    said: Said = {f"model.layers.0.{name}": ("pivoted", {}) for name in names}
    small = with_formats(source, tmp_path / "small", said)
    ids = tokens(sequences=1, length=16)
    expected = logits(dense(small), ids)[0].numpy()
    forms = set()
    for placing in (0, 10**6):
        monkeypatch.setattr(maps, "PLACING", placing)
        output = tmp_path / str(placing)
        running = exported(small, output)
        np.testing.assert_allclose(running.logits(ids[0].tolist(), 16), expected, atol=1e-3)
        kinds = [node.op_type for node in load_onnx(output / "model.onnx").graph]
        forms.add((placing, "EyeLike" in kinds))
        # what is put together when the model is loaded is not stored
        assert (output / "model.onnx.data").stat().st_size < 1.05 * folder_bytes(small)
    assert forms == {(0, False), (10**6, True)}


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize("ends", [{}, ENDS], ids=["whole ends", "packed ends"])
def test_packed_formats_compute_the_same_but_for_int8_inputs(ends: Said, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "dense", "llama")
    small = with_formats(source, tmp_path / "small", {**ends, **blocks(PACKED)})
    running = exported(small, tmp_path / "onnx")
    ids = tokens(sequences=1, length=16)
    expected = logits(dense(small), ids)[0].numpy()
    found = running.logits(ids[0].tolist(), 16)
    # int8 rounds each input to 1/254 of its block's largest: half a percent, some maps in a row
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
    assert not np.allclose(found, logits(dense(source), ids)[0].numpy(), atol=0.5)


def test_every_format_has_a_form() -> None:
    from spectrim.exporters.onnx_graph.maps import MAPS

    lacking = {"quantized_embedding", "tied_embedding"}  # the ends' own, and encoders'
    assert {formats.attribute(name) for name in formats.names() if name not in lacking} == set(
        MAPS
    ) - {"Linear"}


def test_genai_says_the_same(tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    source = folder_of(tmp_path / "dense", "llama")
    running = exported(source, tmp_path / "onnx")
    model = genai.Model(str(tmp_path / "onnx"))
    asked = genai.GeneratorParams(model)
    asked.set_search_options(max_length=20, do_sample=False)
    generator = genai.Generator(model, asked)
    ids = tokens(sequences=1, length=8)[0].tolist()
    generator.append_tokens(np.asarray(ids, np.int32))
    for _ in range(6):
        expected = running.feed(ids if len(ids) == 8 else ids[-1:])
        np.testing.assert_allclose(np.asarray(generator.get_logits()).ravel(), expected, atol=1e-4)
        generator.generate_next_token()
        ids.append(int(expected.argmax()))
    assert list(generator.get_sequence(0))[8:] == ids[8:]


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    running = exported(folder_of(tmp_path / "dense", "llama"), tmp_path / "onnx")
    assert running.encode("w5 w6") == [5, 6]
    assert running.decode([7, 8]).split() == ["w7", "w8"]


def test_notes_tell_bits_and_bytes(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "dense", "llama")
    small = with_formats(source, tmp_path / "small", blocks(PACKED))
    (tmp_path / "onnx").mkdir()
    told = onnx(small, tmp_path / "onnx")
    assert told[:2] == [
        "packed matrices: 1 in 2 bits, 1 in 3 bits, 2 in 4 bits, 8 in 8 bits; "
        "ONNX Runtime rounds their inputs to 8 bits",
        "3 bits are stored in 4, as ONNX Runtime has no product of them",
    ]
    assert "of weights" in told[-1]
    said = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())["model"]
    assert (said["decoder"]["num_hidden_layers"], said["vocab_size"]) == (3, VOCABULARY)
