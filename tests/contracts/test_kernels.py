"""What the compiled kernels promise: the products of dequantised matrices."""

from __future__ import annotations

import copy
import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from spectrim.formats.packed import native, trellis_matrix
from spectrim.formats.packed.scales import Grid
from spectrim.formats.packed.trellis_matrix import path_codes
from spectrim.kernels import library as loading
from spectrim.kernels.library import FILE, Library, library
from spectrim.kernels.maps import Parts, made
from spectrim.model.block_decoding import Decoding
from spectrim.model.decoding import use_kernels
from spectrim.rounding import column_choice
from spectrim.rounding.column_choice import LevelGrid, choose
from tiny_models import build
from tiny_packed import GRIDS, RATES, drawn, off, packed, paths

SHAPES = [(48, 64), (7, 33), (5, 1), (37, 576), (18, 1537)]


@pytest.fixture(scope="module")
def instruction_sets(tmp_path_factory: pytest.TempPathFactory) -> list[Library]:
    """Return the library in each set that this processor has: a loaded file knows one set."""
    found = []
    for isa in range(3):
        try:
            found.append(Library(Path(shutil.copy(FILE, tmp_path_factory.mktemp(str(isa)))), isa))
        except OSError:
            break
    return found


def test_the_library_was_built_with_the_package() -> None:
    built = library()
    assert built is not None, "no compiled kernels; `pip install -e .` builds them"
    assert built.isa in ("plain", "avx2", "avx512", "neon", "dotprod") and built.threaded


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_products_are_those_of_the_dequantised_matrix(
    grid: Grid, instruction_sets: list[Library]
) -> None:
    sets = instruction_sets
    assert len({one.isa for one in sets}) == len(sets) > 0
    for rows, columns in SHAPES:
        held, x = packed(grid, rows, columns), drawn(3, columns, seed=1)
        part, dense = held.part(), held.dense()
        whole = made(native.Parts(part), None, (rows, columns))
        assert whole is not None
        for one in sets:
            assert torch.equal(one.dense(part.structure(), 0, rows), dense)
            found = [torch.empty(3, rows, dtype=torch.bfloat16) for _ in range(3)]
            for threads, y in enumerate(found, start=1):
                pointer = ctypes.byref(whole.structure)
                assert one.product(pointer, x.data_ptr(), y.data_ptr(), 3, threads) == 0
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
            assert off(found[0], x.float() @ dense.float().T) < 0.02, (one.isa, rows, columns)


@pytest.mark.parametrize("rate", RATES)
def test_paths_are_read_as_torch_reads_them(rate: int, instruction_sets: list[Library]) -> None:
    for rows, columns in [*SHAPES, (130, 70)]:
        held, x = paths(rows, columns, rate), drawn(3, columns, seed=1)
        codes = path_codes(held.codes, rows, rate).to(torch.bfloat16)
        whole = made(Parts(held.part(), input_scale=held.column_scale), None, (rows, columns))
        assert whole is not None
        for one in instruction_sets:
            assert torch.equal(one.dense_columns(held.part().structure(), 0, columns), codes)
            found = [torch.empty(3, rows, dtype=torch.bfloat16) for _ in range(3)]
            for threads, y in enumerate(found, start=1):
                pointer = ctypes.byref(whole.structure)
                assert one.product(pointer, x.data_ptr(), y.data_ptr(), 3, threads) == 0
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
            assert off(found[0], x.float() @ held.dense().float().T) < 0.02, (one.isa, rows)


def test_rows_behind_those_of_another_matrix_begin_anywhere(
    instruction_sets: list[Library],
) -> None:
    """Not where the bits of a column begin alike again, which they do every sixteen rows."""
    direct, first, second = paths(130, 64, 43), paths(37, 64, 43), paths(130, 37, 43)
    x, scale = drawn(64), direct.column_scale
    parts = Parts(direct.part(), first.part(), second.part(), input_scale=scale)
    whole = made(parts, None, (130, 64))
    assert whole is not None
    between = x.float() @ first.dense().float().T
    expected = x.float() @ direct.dense().float().T
    expected = expected + between @ (second.dense().float() / second.column_scale.float()).T
    for one in instruction_sets:
        found = [torch.empty(130, dtype=torch.bfloat16) for _ in range(3)]
        for threads, y in enumerate(found, start=1):
            assert (
                one.product(ctypes.byref(whole.structure), x.data_ptr(), y.data_ptr(), 1, threads)
                == 0
            )
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        assert off(found[0], expected) < 0.02


@pytest.mark.parametrize("tokens", [1, 12, 40])
def test_few_and_many_tokens_get_what_the_matrix_gives(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, x = paths(100, 130, 37), drawn(2, tokens, 130, seed=3)
    monkeypatch.setattr(trellis_matrix, "AT_ONCE", 16 * 100)
    with torch.no_grad():
        found = held.product(x)
        held.native = False
        by_torch = held.product(x)
    expected = x.float() @ held.dense().float().T
    assert off(found, expected) < 0.02 and off(by_torch, expected) < 0.02


def test_gradients_behind_paths_are_those_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where codes are read some columns at a time, into memory that is used again."""
    monkeypatch.setattr(trellis_matrix, "AT_ONCE", 16 * 100)
    held, x = paths(100, 130, 37), drawn(40, 130, seed=3).requires_grad_()
    below = drawn(40, 100, seed=4)
    held.product(x).backward(below)
    assert x.grad is not None and off(x.grad, below.float() @ held.dense().float()) < 0.02


def test_large_outputs_in_fp16_stay_numbers() -> None:
    held, x = paths(100, 130, 37).to(torch.float16), drawn(40, 130, seed=3).half()
    held.row_scale.mul_(0.01)
    expected = x.float() @ held.dense().float().T
    x = x * (2_000 / expected.abs().max())
    with torch.no_grad():
        found = held.product(x)
    assert off(found, x.float() @ held.dense().float().T) < 0.02


def test_a_compiler_sees_no_kernels_in_products_with_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    held, x = paths(37, 64, 43), drawn(40, 64)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(Library, "dense_columns", None)
    with torch.no_grad():
        assert off(held.product(x), x.float() @ held.dense().float().T) < 0.02


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_none(broken: float, instruction_sets: list[Library]) -> None:
    held, x = packed(Grid(4, 64, True), 48, 96), drawn(96)
    x[70] = broken
    whole = made(native.Parts(held.part()), None, (48, 96))
    assert whole is not None
    for one in instruction_sets:
        y = torch.zeros(48, dtype=torch.bfloat16)
        assert one.product(ctypes.byref(whole.structure), x.data_ptr(), y.data_ptr(), 1, 1) == 0
        assert y.isnan().all(), one.isa


def test_many_tokens_are_multiplied_with_dense_rows_some_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, x = packed(Grid(3, 64, False), 100, 130), drawn(native.FEW + 1, 130)
    monkeypatch.setattr(native, "AT_ONCE", 16 * 130)
    expected = nn.functional.linear(x, held.dense())
    assert torch.equal(held.product(x.unsqueeze(0))[0], expected)


def test_rows_are_looked_up_as_they_are_dequantised() -> None:
    held = packed(Grid(4, 32, False), 50, 70)
    index = torch.tensor([[3, 49], [0, 3]])
    with torch.no_grad():
        assert torch.equal(held.rows_at(index), held.dense()[index])
        with pytest.raises(IndexError, match="outside 0 to 49"):
            held.rows_at(torch.tensor([50]))


def test_what_learns_or_is_not_bf16_is_torchs() -> None:
    held = packed(Grid(4, 32, False), 48, 64)
    plain = copy.deepcopy(held)
    plain.native.allowed = False
    x = drawn(2, 64, seed=1).requires_grad_()
    held.product(x).sum().backward()
    first, x.grad = x.grad, None
    plain.product(x).sum().backward()
    assert first is not None and x.grad is not None and torch.equal(first, x.grad)
    with torch.no_grad():
        x = drawn(2, 64).float()
        assert torch.equal(held.float().product(x), plain.float().product(x))


@pytest.mark.parametrize("counted", ["errors", "changes"])
def test_columns_are_chosen_as_by_torch(
    counted: str, instruction_sets: list[Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, rows = 40, 83  # rows: five portions, and three
    scale, offset = drawn(columns, rows, seed=1).float(), drawn(columns, rows, seed=2).float()
    scale[3] = 0  # of a block of zeros
    grid = LevelGrid(scale, offset, torch.tensor([0.0, 1, 2, 4, -1, -2, -4]))
    wanted, coupling = drawn(columns, rows).float(), drawn(columns, columns, seed=3).float() / 9
    before = None if counted == "errors" else drawn(columns, rows, seed=4).float()
    monkeypatch.setattr(column_choice, "library", lambda: None)
    by_torch = choose(wanted, before, coupling, grid)
    assert torch.equal(grid.values(by_torch.codes), by_torch.values)
    assert by_torch.codes.unique().numel() == 7
    for one in instruction_sets:
        monkeypatch.setattr(column_choice, "library", lambda one=one: one)
        found = choose(wanted, before, coupling, grid)
        assert torch.equal(found.codes, by_torch.codes), one.isa
        assert torch.equal(found.values, by_torch.values), one.isa
        assert torch.equal(found.changes, by_torch.changes), one.isa


def test_without_the_library_all_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loading, "FILE", tmp_path / FILE.name)
    library.cache_clear()
    try:
        assert library() is None
        held, x = packed(Grid(4, 32, False), 48, 64), drawn(2, 64)
        plain = copy.deepcopy(held)
        plain.native.allowed = False
        with torch.no_grad():
            assert torch.equal(held.product(x), plain.product(x))
        model = build("llama").to(torch.bfloat16)
        use_kernels(model)
        assert not any(isinstance(one.forward, Decoding) for one in model.model.layers)
    finally:
        library.cache_clear()


def test_a_library_of_another_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loading.ARGUMENTS, "of_tomorrow", ())
    with pytest.warns(UserWarning, match=r"is of another version.*install spectrim again"):
        assert loading.library.__wrapped__() is None
