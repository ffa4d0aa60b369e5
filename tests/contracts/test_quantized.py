"""What every format of packed or corrected matrices promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, formats, low_rank_formats
from spectrim.formats.binary_low_rank import SIGNS
from spectrim.formats.packed import matrix as packed
from spectrim.formats.packed.matrix import PackedMatrix, pack, unpack
from spectrim.formats.packed.quantized import Quantized
from spectrim.formats.packed.scales import Grid
from spectrim.formats.trellis import Trellis
from spectrim.recipe.options import Factorize, validate
from spectrim.rounding.nearest import QuantizedMatrix, nearest
from tiny_packed import keywords, path_pieces

ENDS = {"quantized_embedding", "tied_embedding", "tied_head"}
NAMES = [name for name in formats.names() if formats.constant(name, "STAGE") and name not in ENDS]
PACKED = [name for name in NAMES if issubclass(formats.get(name), Quantized)]
BITS = (2, 3, 4, 8)
GRIDS = [Grid(bits, group, even) for bits in BITS for group in (0, 32) for even in (True, False)]
OUT, IN, RANK = 48, 80, 20


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in NAMES:
        if name not in PACKED:
            yield name, {"trellis": 37} if name == "trellis" else {"correction": 3}
            continue
        for grid in [SIGNS] if name == "binary_low_rank" else GRIDS:
            yield name, keywords(grid)
    yield "quantized_dense", {**keywords(GRIDS[0]), "correction": 3}


CASES = list(cases())
EACH = pytest.mark.parametrize(("name", "keywords"), CASES, ids=str)


def made(
    name: str, keywords: dict[str, Any], *, bias: bool = True, dtype: torch.dtype = torch.float32
) -> FactoredLinear:
    """Return a format holding random matrices, rounded where it packs them."""
    rank = min(OUT, IN) if "dense" in name or name == "trellis" else RANK
    shape = {"in_features": IN, "out_features": OUT, "rank": rank, "bias": bias, **keywords}
    module: FactoredLinear = formats.get(name).from_shape(shape)
    module = module.to(dtype)
    pieces: dict[str, Tensor] = {"order": drawn(OUT).argsort(), "matrix": drawn(OUT, IN, seed=9)}
    pieces |= {"first": drawn(3, IN, seed=1), "second": drawn(OUT, 3, seed=2)}
    pieces |= {"input_scale": drawn(IN, seed=3)}
    if isinstance(module, Trellis):
        pieces |= path_pieces(OUT, IN, module.matrix.rate)
    if isinstance(module, Quantized):
        for at, (part, shape) in enumerate(module.matrices(OUT, IN, rank).items()):
            found = nearest(drawn(*shape, seed=at), torch.ones(shape[1]), module.grid, dtype)
            pieces |= found.pieces(part)
            if module.grid == SIGNS:  # which nothing is rounded to
                pieces[f"{part}.unit"] = drawn(shape[0], 1, seed=at).abs()
    with torch.no_grad():
        module.take(pieces)
        if module.bias is not None:
            module.bias.copy_(drawn(*module.bias.shape, seed=5))
    return module


def inputs(module: FactoredLinear) -> Tensor:
    return drawn(2, 3, module.dense().shape[1], seed=4)


def test_which_formats_there_are() -> None:
    assert NAMES == [
        "binary_low_rank",
        "corrected_dense",
        "quantized_dense",
        "quantized_fewer_inputs",
        "quantized_fewer_outputs",
        "quantized_low_rank",
        "quantized_pivoted",
        "trellis",
    ]
    assert not set(NAMES) & set(low_rank_formats())


@pytest.mark.parametrize("name", NAMES)
def test_none_can_be_chosen_for_a_cut(name: str) -> None:
    with pytest.raises(SpectrimError, match=f"^format '{name}' is what the stage .* leaves; add"):
        validate(Factorize, {"format": name}, "stage factorize")


@given(
    bits=st.sampled_from((1, *BITS)), rows=st.integers(0, 5), columns=st.integers(1, 40),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_packed_codes_come_back_and_take_their_bits(
    bits: int, rows: int, columns: int, seed: int
) -> None:
    half = 1 << bits - 1
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-half, half, (rows, columns), generator=generator, dtype=torch.int8)
    codes = torch.where(codes < 0, -1, 1).to(torch.int8) if bits == 1 else codes
    held = pack(codes, bits)
    assert held.dtype == torch.uint8 and held.shape == (rows, -(-columns * bits // 8))
    assert torch.equal(unpack(held, columns, bits), codes)


@pytest.mark.parametrize("bits", BITS)
def test_layout_is_as_documented(bits: int) -> None:
    half = 1 << bits - 1
    codes = torch.tensor([[-half, half - 1, -1, 0, 1, -half, half - 1, 1, -1]], dtype=torch.int8)
    held = pack(codes, bits)[0].tolist()
    run = sum(byte << 8 * place for place, byte in enumerate(held))
    read = [run >> bits * place & (1 << bits) - 1 for place in range(9)]
    assert [one - 2 * half if one >= half else one for one in read] == codes[0].tolist()


@EACH
def test_save_load_is_bit_equal(name: str, keywords: dict[str, Any], tmp_path: Path) -> None:
    module = made(name, keywords)
    save_file(dict(module.state_dict()), tmp_path / "m.safetensors")
    with torch.device("meta"):
        empty: FactoredLinear = formats.get(name).from_shape(module.shape())
    empty.load_state_dict(load_file(tmp_path / "m.safetensors"), assign=True)
    assert empty.shape() == module.shape()
    assert keywords.items() <= module.shape().items()  # flat, as config.json has them
    with torch.no_grad():
        x = inputs(module)
        assert torch.equal(empty(x), module(x))
        assert torch.equal(module(x), module(x))


@EACH
def test_forward_equals_dense(name: str, keywords: dict[str, Any]) -> None:
    module = made(name, keywords)
    assert module.bias is not None
    x = inputs(module)
    expected = x @ module.dense().T + module.bias
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-3)
    assert module.weight.is_floating_point()


@EACH
def test_bytes_and_numbers_are_what_the_file_holds(
    name: str, keywords: dict[str, Any], tmp_path: Path
) -> None:
    module = made(name, keywords, bias=False, dtype=torch.bfloat16)
    save_file(dict(module.state_dict()), tmp_path / "m.safetensors")
    held = load_file(tmp_path / "m.safetensors").values()
    shape, correction = (OUT, IN, module.rank), keywords.get("correction", 0)
    form: Any = type(module)
    if isinstance(module, Quantized):
        said = form.stored_bytes(shape, module.grid, torch.bfloat16, correction)
    elif isinstance(module, Trellis):
        grid = Grid(0, 0, False, module.matrix.rate)
        said = form.stored_bytes(shape, grid, torch.bfloat16)
    else:
        said = form.stored_bytes(shape, torch.bfloat16, correction)
    assert said == sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert module.stored() == form.numbers(*shape) + correction * (OUT + IN)
    assert module.multiply_adds() == module.stored()


@EACH
def test_gradients_reach_every_parameter_and_the_input(name: str, keywords: dict[str, Any]) -> None:
    one, other = made(name, keywords), made(name, keywords)
    x, y = inputs(one).requires_grad_(), inputs(one).requires_grad_()
    one(x).square().sum().backward()
    assert other.bias is not None
    (y @ other.dense().T + other.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-2)
    for (key, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        assert first.grad is not None and second.grad is not None, key
        assert first.grad.abs().sum() > 0, key
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [0, 32])
def test_error_falls_with_bits(group: int, symmetric: bool) -> None:
    matrix = drawn(OUT, IN)
    errors = []
    for bits in BITS:
        grid = Grid(bits, group, symmetric)
        found = nearest(matrix, torch.ones(IN), grid, torch.float32)
        held = PackedMatrix(OUT, IN, grid)
        take(held, found)
        errors.append(float((held.dense().detach() - matrix).norm() / matrix.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 and errors[0] < 0.6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (40, 100), (7, 33)])
@pytest.mark.parametrize("grid", [g for g in GRIDS if g.group] + [Grid(8, 0, True)])
def test_kernels_give_what_plain_products_give(
    grid: Grid, rows: int, columns: int, tokens: int, dtype: torch.dtype
) -> None:
    held = random_matrix(grid, rows, columns).to(dtype)
    x = drawn(tokens, columns, seed=1).to(dtype)
    with torch.no_grad():
        fused = held.product(x)
        plain = x.float() @ held.dense().float().T
    error = float((fused.float() - plain).norm() / plain.norm())
    assert error < (1e-2 if dtype == torch.bfloat16 else 1e-5)
    fits = grid.group > 0 or rows % 16 == columns % 16 == 0
    assert (held._kernel(x) is not None) == fits


def random_matrix(grid: Grid, rows: int, columns: int) -> PackedMatrix:
    held = PackedMatrix(rows, columns, grid)
    found = nearest(drawn(rows, columns), torch.ones(columns), grid, torch.float32)
    take(held, found)
    return held


def take(held: PackedMatrix, found: QuantizedMatrix) -> None:
    held.take({key.removeprefix("m."): piece for key, piece in found.pieces("m").items()})


def test_rows_are_dequantised_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held = random_matrix(Grid(8, 0, False), 48, 64)
    x = drawn(3, 64)
    whole = held.product(x)
    largest = []
    linear = nn.functional.linear

    def watched(x: Tensor, matrix: Tensor) -> Tensor:
        largest.append(matrix.numel())
        return linear(x, matrix)

    monkeypatch.setattr(packed, "AT_ONCE", 5 * 64)
    monkeypatch.setattr(packed.functional, "linear", watched)
    torch.testing.assert_close(held.product(x), whole)
    assert max(largest) == 5 * 64 and len(largest) == 10


@pytest.mark.parametrize("change", ["train", "load", "cast"])
def test_a_kernel_sees_what_has_changed(change: str) -> None:
    held, x = random_matrix(Grid(4, 32, False), 48, 64), drawn(3, 64)
    with torch.no_grad():
        before = held.product(x)
    if change == "train":
        held.product(x).sum().backward()
        held.unit.data.mul_(2)
    elif change == "load":
        state = {key: tensor.clone() for key, tensor in held.state_dict().items()}
        held.load_state_dict({**state, "unit": 2 * state["unit"]})
    else:
        held.double()
    x = x.to(held.dtype)
    with torch.no_grad():
        after = held.product(x)
        torch.testing.assert_close(after, x @ held.dense().T, rtol=1e-4, atol=1e-4)
    assert torch.allclose(before.to(after.dtype), after, atol=1e-3) == (change == "cast")


def test_nothing_but_packed_codes_and_scales_is_saved_after_a_product() -> None:
    held = random_matrix(Grid(4, 32, False), 48, 64)
    with torch.no_grad():
        held.product(drawn(3, 64))
    assert set(held.state_dict()) == {"packed", "unit", "scale_code", "offset_code"}
    kept = set(held.state_dict())
    beside = sum(b.nbytes for name, b in held.named_buffers() if name not in kept)
    assert beside <= 48 * 64 // 2 + held.scales().nbytes * 2


@pytest.mark.parametrize("grid", [Grid(8, 0, True), Grid(4, 32, False)])
@pytest.mark.parametrize("at", [1, 3, 8])
def test_kernels_take_codes_from_wherever_they_lie(grid: Grid, at: int) -> None:
    """Tensors of a file begin anywhere, and torch's int8 kernel crashes on most of them."""
    held, x = random_matrix(grid, 64, 96), drawn(5, 96)
    with torch.no_grad():
        expected = held.product(x)
        held.packed = moved(held.packed, at)
        assert torch.equal(held.product(moved(x, at)), expected)


def moved(tensor: Tensor, at: int) -> Tensor:
    """Return the same values so many places behind an aligned address."""
    room = torch.empty(tensor.numel() + at, dtype=tensor.dtype)
    room[at:] = tensor.flatten()
    return room[at:].view(tensor.shape)
