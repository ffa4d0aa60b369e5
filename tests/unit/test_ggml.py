"""llama.cpp's types: ggml's code called rightly, codes where we look, and feedback of errors."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as unpacked
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.rounding import ggml
from spectrim.rounding.ggml import TYPES, bits, dequantize, fits, quantize, row_bytes
from spectrim.rounding.ggml_codes import LAYOUTS, read_codes, scales, with_codes
from spectrim.rounding.ggml_feedback import quantize_with_feedback
from spectrim.walk.moments import damped, inverse_root

Kind = GGMLQuantizationType


@pytest.fixture(scope="module")
def matrix() -> Tensor:
    return torch.randn(24, 512, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def moment() -> Tensor:
    """Return the second moment of inputs, some alike and some far larger than others."""
    drawn = torch.Generator().manual_seed(1)
    mixing = torch.randn(512, 512, generator=drawn) / 40 + torch.eye(512)
    inputs = torch.randn(2000, 512, generator=drawn) @ (mixing * torch.rand(512, generator=drawn))
    return inputs.T @ inputs / len(inputs)


def weighed(packed: np.ndarray, kind: Kind, matrix: Tensor, moment: Tensor) -> float:
    error = dequantize(packed, kind) - matrix
    return float(((error @ moment) * error).sum() / ((matrix @ moment) * matrix).sum())


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_type_has_its_size_and_more_bits_lose_less(kind: Kind, matrix: Tensor) -> None:
    packed = quantize(matrix, kind)
    assert packed.shape == (24, row_bytes(kind, 512))
    assert packed.nbytes * 8 == round(bits(kind) * matrix.numel())
    assert np.array_equal(dequantize(packed, kind), unpacked(packed, kind))
    lost = float((dequantize(packed, kind) - matrix).square().mean())
    # a Gaussian rounded to b bits loses at least 4^-b; llama.cpp's types a few times that
    assert 4 ** -bits(kind) < lost < 9 * 4 ** -bits(kind)


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: kind.name)
def test_codes_lie_where_ggml_puts_them(kind: Kind, matrix: Tensor) -> None:
    layout, (size, width) = LAYOUTS[kind], GGML_QUANT_SIZES[kind]
    assert layout.size == size
    packed = quantize(matrix, kind)
    blocks = packed.reshape(-1, width)
    codes = read_codes(blocks, layout)
    assert codes.unique().numel() == len(set(layout.levels)) or kind == Kind.MXFP4
    scale, offset = scales(blocks, kind)
    values = torch.tensor(layout.levels)[codes] * scale + offset
    found = dequantize(packed, kind).reshape(-1, size)
    torch.testing.assert_close(values, found, rtol=1e-5, atol=1e-5)
    assert np.array_equal(with_codes(blocks, layout, codes), blocks)
    drawn = torch.randint(0, len(layout.levels), codes.shape, generator=torch.Generator())
    assert torch.equal(read_codes(with_codes(blocks, layout, drawn), layout), drawn)


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.IQ4_XS, Kind.IQ4_NL, Kind.Q5_1])
def test_feedback_loses_less_and_descent_still_less(
    kind: Kind, matrix: Tensor, moment: Tensor
) -> None:
    inputs = damped(moment, 1e-2)
    root = inverse_root(inputs).float()
    plain = weighed(quantize(matrix, kind, moment.diagonal()), kind, matrix, moment)
    fed = weighed(quantize_with_feedback(matrix, root, kind), kind, matrix, moment)
    packed = quantize_with_feedback(matrix, root, kind, inputs.float())
    descended = weighed(packed, kind, matrix, moment)
    assert fed < 0.85 * plain
    assert descended < 0.95 * fed
    assert packed.shape == (24, row_bytes(kind, 512))


def test_feedback_reaches_over_blocks_of_codebooks(matrix: Tensor, moment: Tensor) -> None:
    inputs = damped(moment, 1e-2)
    plain = quantize(matrix, Kind.IQ3_S, moment.diagonal())
    fed = quantize_with_feedback(matrix, inverse_root(inputs).float(), Kind.IQ3_S)
    assert weighed(fed, Kind.IQ3_S, matrix, moment) < 0.9 * weighed(
        plain, Kind.IQ3_S, matrix, moment
    )


def test_importance_counts(matrix: Tensor) -> None:
    weights = torch.ones(512)
    weights[::2] = 100.0
    even = [
        float((dequantize(packed, Kind.Q4_K) - matrix)[:, ::2].square().mean())
        for packed in (quantize(matrix, Kind.Q4_K), quantize(matrix, Kind.Q4_K, weights))
    ]
    assert even[1] < 0.95 * even[0]


def test_inputs_that_are_never_used_do_no_harm(matrix: Tensor) -> None:
    weights = torch.zeros(512)
    weights[300:] = 1.0
    for kind in (Kind.IQ2_XXS, Kind.Q4_0, Kind.Q3_K):
        assert torch.isfinite(dequantize(quantize(matrix, kind, weights), kind)).all()


def test_threads_share_the_rows(matrix: Tensor) -> None:
    large = matrix.repeat(12, 1)  # more than a thread takes at a time
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = quantize(large, Kind.Q4_K)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found, np.tile(quantize(matrix, Kind.Q4_K), (12, 1)))


def test_rows_that_do_not_fit_are_refused(matrix: Tensor) -> None:
    assert not fits(Kind.Q4_K, 576) and fits(Kind.IQ4_NL, 576)
    with pytest.raises(ValueError, match="Q4_K cannot hold rows of 480"):
        quantize(matrix[:, :480], Kind.Q4_K)


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch, matrix: Tensor) -> None:
    ggml.loaded.cache_clear()
    known = importlib.util.find_spec
    monkeypatch.setattr(ggml, "find_spec", lambda name: None if name == "libggml" else known(name))
    with pytest.raises(SpectrimError, match=r"pip install 'spectrim\[export\]'"):
        quantize(matrix, Kind.Q4_0)
    ggml.loaded.cache_clear()
