"""Others' ways to few bits, as benchmarks/front_peers.py makes and shows them."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from spectrim.rounding.ggml import row_bytes

DEMO = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576),
        "gate": (1536, 576), "up": (1536, 576), "down": (576, 1536)}  # fmt: skip


@pytest.fixture(scope="module")
def bench(root: Path) -> Iterator[Any]:
    """Return what imports a module of benchmarks/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        patch.setattr(sys, "argv", ["benchmarks/some.py", "-o", "run/"])
        yield import_module


@pytest.mark.parametrize(
    ("mix", "percent"),  # as llama.cpp's own quantiser made them of the demo
    [("Q4_K_M", 34.6), ("Q3_K_M", 29.0), ("IQ4_XS", 27.7), ("Q2_K", 26.5), ("IQ3_XXS", 25.9),
     ("IQ2_XS", 24.8)],
)  # fmt: skip
def test_mixes_are_as_large_as_llama_cpp_makes_them(bench, mix, percent):
    type_of = bench("llama_cpp_mixes").type_of
    held = whole = 0
    for block in range(30):
        for role, (rows, columns) in DEMO.items():
            held += rows * row_bytes(type_of(mix, role, block, 30, columns, 3), columns)
            whole += 2 * rows * columns
    assert round(100 * held / whole, 1) == percent


def test_a_tied_table_of_odd_width_has_eight_bits(bench):
    type_of = bench("llama_cpp_mixes").type_of
    found = [type_of(mix, "head", -1, 30, 576, 3) for mix in ("Q4_K_M", "Q2_K", "IQ2_XS")]
    assert found == [Kind.Q8_0] * 3
    assert type_of("IQ2_XS", "head", -1, 30, 1024, 3) is Kind.Q5_K


def test_rows_filled_up_are_quantised_and_counted_as_what_they_were(bench):
    peers = bench("peers")
    matrix, weigh = torch.randn(4, 320, generator=torch.Generator().manual_seed(0)), torch.ones(320)
    stored = peers._in_blocks(matrix, Kind.Q4_K, weigh, 512)
    assert stored.bytes == 4 * 320 * 4.5 / 8
    assert stored.values.shape == matrix.shape
    assert float((stored.values - matrix).norm() / matrix.norm()) < 0.1


def test_rows_are_shown_by_size_and_the_unbeaten_marked(bench, tmp_path):
    def row(label: str, over: float, linear: int, ends: str) -> dict[str, Any]:
        windows = [3.0 + over, 3.1 + over]
        return {"calibration": "model", "label": f"{label}, ends {ends}", "keep": 1.0,
                "commit": "abc", "linear_bytes": linear, "bytes": linear + 10, "ends": ends,
                "C4": {"loss": sum(windows) / 2, "windows": windows}}  # fmt: skip

    rows = [row("dense", 0.0, 100, "16"), row("HQQ int3", 0.5, 21, "8"),
            row("GPTQ int4", 0.1, 27, "8"), row("GPTQ int3", 0.4, 20, "8")]  # fmt: skip
    known = {str(at): one for at, one in enumerate(rows)}
    (tmp_path / "rows.json").write_text(json.dumps(known))
    bench("front_peers").results(tmp_path, "model", ["C4"], "512 tokens: 2 of C4")
    lines = json.loads((tmp_path / "front_peers.json").read_text())["rows"]
    assert [(one["label"], one["front"]) for one in lines] == [
        ("GPTQ int4", True), ("HQQ int3", False), ("GPTQ int3", True)
    ]  # fmt: skip
    assert [round(one["mean"], 3) for one in lines] == [0.1, 0.5, 0.4]
    said = bench("type_tables").peers(lines)[2]
    assert said == ["HQQ int3", "8", "21.0%", "28.2%", "0.500 ± 0.000", "0.500", ""]
