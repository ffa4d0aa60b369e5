"""Models with paths through a trellis: exported, counted, told of in reports, and trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from spectrim.engines.llama_cpp import llama_cpp
from spectrim.errors import SpectrimError
from spectrim.exporters.gguf import gguf
from spectrim.formats.packed.trellis_matrix import SPREAD, column_bytes
from spectrim.formats.trellis import Trellis
from spectrim.healing.windows import MAX_RATE, highest_rates
from spectrim.metrics.size import size
from spectrim.metrics.zeros import zeros
from spectrim.model.fused import split_fused
from spectrim.model.sites import find
from spectrim.plan import Decision, Plan
from spectrim.recipe.recipe import Recipe
from spectrim.report.notes import filled
from spectrim.report.words import stored_as
from spectrim.stages import compensate, quantize
from spectrim.verbs.inspect import inspect
from tiny_exports import apart, exportable, in_formats, saved
from tiny_models import logits, tokens
from tiny_runs import TOKENS, load, plan_of, shrink, write_text

RATES = (24, 34, 50, 80)  # bits of 16 numbers
WIDE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 16,
}  # ends of rows are ends of blocks


def path_map(out_features: int, in_features: int, rate: int, dtype: torch.dtype) -> Trellis:
    """Return a map of random paths, its scales those of a trained map's size."""
    generator = torch.Generator().manual_seed(rate)
    shape = (in_features, column_bytes(out_features, rate))
    module = Trellis(in_features, out_features, min(out_features, in_features), False, rate)
    module = module.to(dtype).requires_grad_(False)
    module.take(
        {
            "codes": torch.randint(256, shape, generator=generator, dtype=torch.uint8),
            "row_scale": 0.5 + torch.rand(out_features, generator=generator),
            "column_scale": (0.5 + torch.rand(in_features, generator=generator))
            / (SPREAD * in_features**0.5),
        }
    )
    return module


def along_paths(model: Any) -> dict[str, Trellis]:
    """Return a map of paths for every site in the blocks of a model."""
    inside = [site for site in find(model) if site.block >= 0]
    return {
        site.name: path_map(
            site.out_features, site.in_features, RATES[at % len(RATES)], model.dtype
        )
        for at, site in enumerate(inside)
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Llama of which all maps are paths."""
    folder = tmp_path_factory.mktemp("paths")
    model = load(exportable(folder / "dense", **WIDE))
    return saved(folder / "small", in_formats(model, along_paths(model)))


def test_llama_cpp_computes_what_paths_say(made: Path, tmp_path: Path) -> None:
    told = " ".join(gguf(made, tmp_path / "x.gguf", None))
    assert "21 maps are paths through a trellis" in told and "Q8_0 loses next to nothing" in told
    model: Any = load(made)
    found = {one.name: one for one in GGUFReader(tmp_path / "x.gguf").tensors}
    inside = {one.tensor_type.name for name, one in found.items()
              if name.startswith("blk.") and "norm" not in name}  # fmt: skip
    assert inside == {"Q8_0"}
    expected = model.model.layers[1].mlp.down_proj.dense()
    held = found["blk.1.ffn_down.weight"]
    got = torch.tensor(dequantize(held.data, held.tensor_type))
    assert (got - expected).norm() < 0.01 * expected.norm()
    running = llama_cpp(tmp_path / "x.gguf", 1, 64, exact=True)
    assert apart(model, running) < 0.2  # activations in 8 bits; another model is 3 away
    running.close()


def test_fused_paths_of_different_rates_are_one_tensor_in_eight_bits(tmp_path: Path) -> None:
    model = load(exportable(tmp_path / "dense", "gpt2", n_embd=64))
    rates = {f"transformer.h.0.attn.c_attn.{part}": RATES[at] for at, part in enumerate("qkv")}
    split_fused(model, dict.fromkeys(rates, {}))
    held = {name: path_map(64, 64, rate, model.dtype) for name, rate in rates.items()}
    folder = saved(tmp_path / "small", in_formats(model, held))
    gguf(folder, tmp_path / "x.gguf", None)
    kinds = {one.name: one.tensor_type.name for one in GGUFReader(tmp_path / "x.gguf").tensors}
    assert kinds["blk.0.attn_qkv.weight"] == "Q8_0" and kinds["blk.1.attn_qkv.weight"] == "F16"


def test_onnx_runtime_computes_what_paths_say(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir", reason="pip install 'spectrim[export]'")
    from spectrim.engines.onnxruntime import onnxruntime
    from spectrim.exporters.onnx import onnx
    from spectrim.exporters.onnx_graph.paths import recoded

    told = onnx(made, tmp_path)
    assert "21 maps are paths through a trellis" in told[0] and "packed matrices" not in told[0]
    running = onnxruntime(tmp_path, 1, 32)
    ids = tokens(sequences=1, length=16)
    expected = logits(load(made), ids)[0].numpy()
    found = running.logits(ids[0].tolist(), 16)
    # int8 rounds each input to 1/254 of its block's largest: half a percent, many maps in a row
    assert np.linalg.norm(found - expected) < 0.06 * np.linalg.norm(expected)
    module = load(made).model.layers[1].mlp.down_proj
    assert (recoded(module).dense() - module.dense()).norm() < 0.01 * module.dense().norm()
    data = (tmp_path / "model.onnx.data").stat().st_size
    assert data < 0.6 * (made.parent / "dense" / "model.safetensors").stat().st_size
    running.close()


def test_numbers_bytes_and_zeros_are_those_of_the_codes(made: Path) -> None:
    model, dense = load(made), load(made.parent / "dense")
    counted = size(model, made)
    assert counted.numbers == size(dense).numbers
    assert counted.linear_numbers == size(dense).linear_numbers
    held = sum(one.nbytes for one in model.state_dict().values())
    assert counted.bytes_of_weights == counted.bytes_on_disk == held
    assert held <= counted.bytes_in_memory < held + 1024  # and the frequencies of positions
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.matrix.row_scale.zero_()
    assert zeros(model) == 0.0  # what few bits make of numbers counts as no zero


def test_inspect_and_reports_name_paths(made: Path) -> None:
    q = inspect(str(made))["sites"][1]
    assert stored_as(q) == "trellis, 1.5 bits" and q["stored"] == q["dense"]
    assert stored_as({"format": "dense", "bits": 0, "trellis": 50}) == "trellis, 3.125 bits"
    assert stored_as({"format": "low_rank", "bits": 4}) == "low_rank, 4 bits"
    many = [decision(at, trellis=34 if at < 7 else 64) for at in range(9)] + [decision(9, bits=8)]
    said = filled(quantize.REPORT, quantize.note(quantize.Options(), plan(*many), {}))
    assert "GPTQ: 10 at 2.1 to 8.0 bits a number, 3.1 on average, 9 of them as paths" in said
    plain = plan(decision(0, bits=4), decision(1, bits=2), decision(2, bits=4))
    said = filled(quantize.REPORT, quantize.note(quantize.Options(), plain, {}))
    assert "by GPTQ: 1 in 2 bits, 2 in 4 bits. Predicted" in said


def decision(block: int, bits: int = 0, trellis: int = 0) -> Decision:
    return Decision(f"s{block}", block, "q", 8, 8, "dense", 8, 64, 64, 0.1, bits=bits,
                    trellis=trellis)  # fmt: skip


def plan(*decisions: Decision) -> Plan:
    return Plan(decisions, 0.0, {})


PATHS = {"factorize": {"cut": False, "refine": "off", "bits": [4, 8], "trellis": True}}


def test_stages_that_cannot_do_with_paths_are_refused_with_the_recipe() -> None:
    stages = [PATHS, {"quantize": {}}]
    for asked, line in (
        ([*stages, {"compensate": {}}], "compensate cannot add to paths through a trellis"),
        ([*stages, {"lora": {}}], "behind quantize all maps are stored as whole numbers"),
        ([{"sparsify": {}}, *stages], "fill the zeros that sparsify made; leave out trellis"),
    ):
        with pytest.raises(SpectrimError, match=line):
            Recipe.build(None, {"model": "m", "stages": asked, "keep": "12% of linear bytes"})


TRAIN = ("learn_rounding", "distil_blocks")


def test_scales_of_paths_move_by_small_parts() -> None:
    module = path_map(64, 64, 32, torch.float32)
    named = {f"q.{name}": one for name, one in module.named_parameters()}
    assert len(named) == 2 and all(rate < 2e-2 for rate in highest_rates(named, 1.0))
    assert not compensate._adds_to(decision(0, trellis=32))
    assert compensate._adds_to(decision(0, bits=4)) and MAX_RATE == 1e-2


def test_blocks_of_paths_are_trained(made: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    asked = Recipe.model_validate(
        {
            "model": str(made.parent / "dense"),
            "keep": "9% of linear bytes",
            "calibration": {"text": str(text), "tokens": TOKENS},
            "stages": [PATHS, {"quantize": {}}, *({one: {"steps": 8}} for one in TRAIN)],
        }
    )
    small = shrink(asked, tmp_path / "small")
    assert any(one.trellis for one in plan_of(small).decisions)
    healed = plan_of(small).about["found"]["healed"]
    assert [one["stage"] for one in healed] == list(TRAIN)
    for one in healed:
        before, after = one["search_loss"]["before"], one["search_loss"]["after"]
        assert before != after and after < before + 0.1
    assert logits(load(small), tokens()).isfinite().all()
