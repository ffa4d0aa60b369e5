"""What the compiled kernels promise: the products of dequantised matrices."""

from __future__ import annotations

import copy
import ctypes
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectrim.formats import FactoredLinear, formats
from spectrim.formats.packed import native
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.scales import Grid
from spectrim.kernels import library as loading
from spectrim.kernels.library import FILE, Library, library
from spectrim.kernels.maps import made
from spectrim.model import stacked_decoding
from spectrim.model.block_decoding import Decoding
from spectrim.model.decoding import use_kernels
from spectrim.model.sites import find, replace
from spectrim.model.stacked_decoding import Room, StackedDecoding
from tiny_models import build, tokens

GRIDS = [
    Grid(bits, group, even)
    for bits in (2, 3, 4, 8)
    for group in (0, 32, 64, 128)
    for even in (True, False)
]
SHAPES = [(48, 64), (7, 33), (5, 1), (37, 576), (18, 1537)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(torch.bfloat16)


def packed(grid: Grid, rows: int, columns: int) -> PackedMatrix:
    """Return a matrix of random codes, scales and offsets that the kernels may multiply."""
    held = PackedMatrix(rows, columns, grid).to(torch.bfloat16).requires_grad_(False)
    held.take(pieces(grid, rows, columns))
    held.native.allowed = True
    return held


def pieces(grid: Grid, rows: int, columns: int) -> dict[str, Tensor]:
    generator, groups = torch.Generator().manual_seed(columns), (rows, grid.groups(columns))

    def whole(low: int, high: int, shape: tuple[int, int]) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    return {
        "codes": whole(*grid.codes, (rows, columns)).to(torch.int8),
        "unit": 0.2 * drawn(rows, 1).abs() / 2**grid.bits,
        "scale_code": whole(60, 255, groups),
        "offset_code": whole(-30, 30, groups),
    }


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


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


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


def small(name: str, model: Any) -> Any:
    """Return the model in bf16 with its blocks' maps in a format."""
    for at, site in enumerate(find(model)):
        if site.block < 0 or name == "dense":
            continue
        out, inside = site.out_features, site.in_features
        rank = min(out, inside) // 2 if "dense" not in name else min(out, inside)
        shape = {"in_features": inside, "out_features": out, "rank": rank, "bias": False}
        grid = vars(GRIDS[at % len(GRIDS)]) if name.startswith("quantized") else {}
        correction = {"correction": 3} if "dense" in name else {}
        module: FactoredLinear = formats.get(name).from_shape({**shape, **grid, **correction})
        module = module.to(torch.bfloat16).requires_grad_(False)
        taken = {"order": torch.arange(out).flip(0)}
        if grid:
            for part, size in module.matrices(out, inside, rank).items():
                own = pieces(module.grid, *size)
                taken |= {f"{part}.{key}": one for key, one in own.items()}
            taken |= {"first": 0.1 * drawn(3, inside), "second": 0.1 * drawn(out, 3)}
            module.take(taken)
        else:
            for key, one in module.named_parameters():
                one.copy_(0.2 * drawn(*one.shape, seed=len(key)))
            if name == "pivoted":
                module.order.copy_(taken["order"])
        replace(model, site.name, module.eval())
    return model


CASES = [(family, "dense") for family in ("llama", "mistral", "qwen2", "qwen3")]
CASES += [("llama", name) for name in (
    "low_rank", "pivoted", "corrected_dense", "quantized_dense", "quantized_low_rank",
    "quantized_pivoted",
)]  # fmt: skip


@pytest.mark.parametrize(("family", "name"), CASES)
@torch.no_grad()
def test_blocks_decode_as_their_own_forward_does(family: str, name: str) -> None:
    model = small(name, build(family).to(torch.bfloat16))
    ids = tokens(sequences=1, length=12)
    expected = model(ids).logits[:, 6:]
    use_kernels(model)
    output, found = model(ids[:, :6], use_cache=True), []
    for at in range(6, 12):
        cache = output.past_key_values
        output = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        found.append(output.logits)
    block = model.model.layers[0].forward
    assert isinstance(block, Decoding) and block.pointer() is not None
    assert off(torch.cat(found, dim=1), expected) < 0.06
    if family == "mistral":
        return  # blocks that attend to a window are computed one by one
    assert stacked(model, output.past_key_values).length == 12
    del model.model.forward
    output = model(ids[:, :6], use_cache=True)
    for at in range(6, 12):
        cache = output.past_key_values
        output = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        assert torch.equal(output.logits, found[at - 6]), "block by block, the bits are others"


def stacked(model: Any, cache: Any) -> Room:
    """Return the buffer of a cache that all blocks were computed with in one call."""
    forward = model.model.forward
    assert isinstance(forward, StackedDecoding)
    return forward._rooms[cache]


def decoded(model: Any, cache: Any, written: list[int]) -> Tensor:
    """Return the logits behind each of some tokens, fed one by one."""
    found = [model(torch.tensor([[one]]), past_key_values=cache).logits for one in written]
    return torch.cat(found)


@torch.no_grad()
def test_caches_stay_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_decoding, "ROOM", 4)  # so that buffers are filled
    model = small("quantized_dense", build("llama").to(torch.bfloat16))
    use_kernels(model)
    prompt = tokens(sequences=1, length=6)
    plain = model(prompt, use_cache=True).past_key_values
    expected = decoded(model, plain, [1, 2, 3, 4, 5, 6, 7])
    cache = model(prompt, use_cache=True).past_key_values
    decoded(model, cache, [1, 2])
    other, held = copy.deepcopy(cache), cache.layers[0].keys
    before = held.clone()
    cache.crop(-1)
    assert not torch.equal(decoded(model, cache, [9, 9, 9])[-1], expected[4])
    assert torch.equal(held, before), "who goes back writes over what others hold"
    assert torch.equal(decoded(model, other, [3, 4, 5, 6, 7]), expected[2:])
    cache.crop(-3)
    assert cache.get_seq_length() == 7
    assert torch.equal(decoded(model, cache, [2, 3, 4, 5, 6, 7]), expected[1:])
    masked = torch.ones(1, 14, dtype=torch.long)
    masked[0, 0] = 0
    one = torch.tensor([[1]])
    with_mask = model(one, past_key_values=copy.deepcopy(cache), attention_mask=masked).logits
    assert not torch.equal(with_mask, model(one, past_key_values=cache).logits)


@torch.no_grad()
def test_a_block_sees_what_has_changed() -> None:
    model = small("pivoted", build("llama").to(torch.bfloat16))
    use_kernels(model)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    ids = torch.tensor([[1]])
    before = model(ids, use_cache=True).logits
    other = {key: -one if one.is_floating_point() else one
             for key, one in model.state_dict().items()}  # fmt: skip
    model.load_state_dict(other, assign=True)
    after = model(ids, use_cache=True).logits
    assert torch.equal(copied(ids, use_cache=True).logits, before)
    assert not torch.allclose(before, after)
    seen = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    model(ids, use_cache=True)
    handle.remove()
    assert seen == [1]


@torch.no_grad()
def test_all_blocks_in_one_call_see_what_has_changed() -> None:
    model = small("pivoted", build("llama").to(torch.bfloat16))
    use_kernels(model)
    cache = model(tokens(sequences=1, length=6), use_cache=True).past_key_values

    def logits() -> Tensor:
        found = decoded(model, cache, [5])[0]
        cache.crop(-1)
        return found

    first = logits()
    assert torch.equal(logits(), first) and stacked(model, cache).length == 7
    mlp, kept = model.model.layers[1].mlp, model.model.layers[1].mlp.up_proj
    mlp.up_proj = copy.deepcopy(kept)
    mlp.up_proj.rows.mul_(2)
    changed = logits()
    assert not torch.allclose(changed, first)
    mlp.up_proj = kept
    assert torch.equal(logits(), first)
    kept.rows.data = 2 * kept.rows.data
    assert torch.equal(logits(), changed)
    seen = []
    handle = mlp.register_forward_hook(lambda *_: seen.append(1))
    assert off(logits(), changed) < 0.02 and seen == [1]
    handle.remove()
    model.model.layers[0].forward = lambda x, **_: x
    assert not torch.allclose(logits(), changed)
    states = model(torch.tensor([[5]]), past_key_values=cache, output_hidden_states=True)
    assert len(states.hidden_states) == len(model.model.layers) + 1
