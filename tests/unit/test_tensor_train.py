"""Tensor trains: against TT-SVD by hand and tensorly; what they store, multiply and cost."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spectrim.cutting.replay import check
from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, formats, make_format
from spectrim.formats._contraction import Modes, cheapest
from spectrim.formats._trains import bonds, decomposed, interleaved, modes, padded
from spectrim.model.sites import Site
from spectrim.plan import Decision, Plan

SHAPES = [(48, 48), (24, 80), (13, 7), (1, 5), (36, 17)]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def train(matrix: Tensor, rank: int, dtype: torch.dtype = torch.float64) -> FactoredLinear:
    """Return the format with the train of TT-SVD at this very bond dimension."""
    shape = (*matrix.shape, rank)
    cores = decomposed(matrix, modes(*matrix.shape), rank)
    pieces = {f"{rank}.{at}": core for at, core in enumerate(cores)}
    return make_format("tensor_train", shape, pieces, None, dtype)


def full(shape: tuple[int, int]) -> int:
    return max(bonds(modes(*shape), math.prod(shape)))


@pytest.mark.parametrize("shape", [*SHAPES, (576, 1536), (11008, 4096), (4093, 1021)])
def test_dimensions_factor_evenly_and_are_padded_little(shape: tuple[int, int]) -> None:
    pairs = modes(*shape)
    for size, factors in zip(shape, zip(*pairs, strict=True), strict=True):
        assert max(factors) <= 3 * min(factors)
        assert size <= math.prod(factors) <= (1.02 * size if size > 100 else size + 3)
    assert len(pairs) == 4


@pytest.mark.parametrize("shape", SHAPES)
def test_full_bonds_are_exact(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    torch.testing.assert_close(train(matrix, full(shape)).dense(), matrix)


def test_a_kronecker_product_is_a_train_of_bonds_of_one() -> None:
    product = torch.ones(1, 1, dtype=torch.float64)
    for at, (out, inner) in enumerate(modes(36, 80)):
        product = torch.kron(product, random(out, inner, seed=at))
    torch.testing.assert_close(train(product, 1).dense(), product)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_it_is_tt_svd_by_successive_svds(shape: tuple[int, int], rank: int) -> None:
    matrix, pairs = random(*shape), modes(*shape)
    tensor = interleaved(padded(matrix, pairs), pairs).numpy()
    sizes = [out * inner for out, inner in pairs]
    rest, before, cores = tensor.reshape(1, -1), 1, []
    for size in sizes[:-1]:
        u, s, vh = np.linalg.svd(rest.reshape(before * size, -1), full_matrices=False)
        kept = min(rank, len(s))
        cores.append(u[:, :kept].reshape(before, size, kept))
        rest, before = s[:kept, None] * vh[:kept], kept
    product = rest
    for core in reversed(cores):
        product = np.tensordot(core, product.reshape(core.shape[-1], -1), 1)
        product = product.reshape(core.shape[0], -1)
    expected = interleaved(padded(train(matrix, rank).dense(), pairs), pairs)
    inside = interleaved(padded(torch.ones_like(matrix), pairs), pairs).bool()
    found = torch.from_numpy(product).reshape(inside.shape)
    torch.testing.assert_close(found[inside], expected[inside])


def test_it_is_what_tensorly_makes() -> None:
    decomposition = pytest.importorskip(
        "tensorly.decomposition", reason="tensorly is not installed"
    )
    tensorly = pytest.importorskip("tensorly")
    matrix, pairs = random(48, 48), modes(48, 48)
    tensor = interleaved(matrix, pairs).reshape([out * inner for out, inner in pairs]).numpy()
    found = tensorly.tt_to_tensor(decomposition.tensor_train(tensor, list(bonds(pairs, 7))))
    mine = interleaved(train(matrix, 7).dense(), pairs)
    torch.testing.assert_close(torch.from_numpy(found).reshape(mine.shape), mine)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 40)], ids=str)
def test_forward_equals_dense(shape: tuple[int, int], rank: int, batch: tuple[int, ...]) -> None:
    module, x = train(random(*shape), rank), random(*batch, shape[1])
    torch.testing.assert_close(module(x), x @ module.dense().T)


def test_many_tokens_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = train(random(48, 48), 9), random(50, 48)
    whole = module(x)
    monkeypatch.setattr("spectrim.formats._contraction.WIDEST", 2000)
    assert cheapest(module.modes, module.bonds, 50).widest > 2000  # type: ignore[arg-type]
    torch.testing.assert_close(module(x), whole)


@pytest.mark.parametrize("shape", [(48, 48), (24, 80), (36, 17), (144, 96)])
@pytest.mark.parametrize("rank", [2, 5, 30])
def test_multiply_adds_are_those_that_run(shape: tuple[int, int], rank: int) -> None:
    """At bonds of 1 some products have nothing to sum over, which torch does not count."""
    with torch.device("meta"):
        module = formats.get("tensor_train")(shape[1], shape[0], rank, False)
        x = torch.empty(1, shape[1])
    with FlopCounterMode(display=False) as counted:
        module(x)
    assert counted.get_total_flops() == 2 * module.multiply_adds()


def _sizes(pairs: Modes, links: tuple[int, ...]) -> list[tuple[int, tuple[int, int], int]]:
    return list(zip(links, pairs, links[1:], strict=False))


@pytest.mark.parametrize("many", [1, 64])
def test_the_order_is_the_cheapest_and_never_rebuilds_the_matrix(many: int) -> None:
    pairs, links = modes(48, 48), bonds(modes(48, 48), 9)
    order = cheapest(pairs, links, many)
    for cores in (_sizes(pairs, links), [one[::-1] for one in _sizes(pairs, links)[::-1]]):
        left, cost = many * 48, 0  # one core after the other, forwards and backwards
        for before, (out, inner), behind in cores:
            cost += left * out * behind
            left = left // inner // before * out * behind
        assert order.multiply_adds <= cost
    made = [{at} for at in range(len(pairs) + 1)]
    for left, right, _ in order.steps:
        made.append(made[left] | made[right])
    assert made[-1] == {0, 1, 2, 3, 4}
    assert {1, 2, 3, 4} not in made


@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_what_the_file_holds(shape: tuple[int, int], tmp_path: Path) -> None:
    module = train(random(*shape), 3, torch.bfloat16)
    save_file(dict(module.state_dict()), tmp_path / "m.safetensors")
    held = load_file(tmp_path / "m.safetensors")
    assert module.stored() == sum(tensor.numel() for tensor in held.values())


def test_the_largest_rank_is_the_last_that_stores_less_than_the_matrix() -> None:
    form = formats.get("tensor_train")
    assert form.numbers(48, 80, form.largest(48, 80)) < 48 * 80
    assert form.numbers(48, 80, form.largest(48, 80) + 1) >= 48 * 80


def test_a_plan_may_not_ask_for_more_than_the_matrix() -> None:
    form = formats.get("tensor_train")
    last = form.largest(48, 80)
    rank = next(r for r in range(last, 80) if form.numbers(48, 80, r) > 48 * 80)
    facts = {"stored": 0, "dense": 3840, "predicted_loss": 0.0, "method": "tensor_train"}
    site = Site("a.q", 0, "q", 48, 80)
    fitting = Plan((Decision("a.q", 0, "q", 48, 80, "tensor_train", last, **facts),), 0.0, {})
    check(fitting, [site])
    plan = Plan((Decision("a.q", 0, "q", 48, 80, "tensor_train", rank, **facts),), 0.0, {})
    said = (
        f"the plan gives a.q rank {rank}; expected 1 to {last}: as tensor_train it would store "
        f"{form.numbers(48, 80, rank)} numbers, the matrix 3840"
    )
    with pytest.raises(SpectrimError, match=said):
        check(plan, [site])


def test_a_train_that_was_not_made_is_refused() -> None:
    pieces = {f"3.{at}": core for at, core in enumerate(decomposed(random(9, 9), modes(9, 9), 3))}
    with pytest.raises(SpectrimError, match="dimension 4 is asked for, but the largest .* has 3;"):
        make_format("tensor_train", (9, 9, 4), pieces, None, torch.float32)


def test_cores_are_alike_in_size() -> None:
    sizes = [float(core.detach().square().mean()) for core in train(random(48, 48), 9).cores]  # type: ignore[union-attr]
    assert max(sizes) == pytest.approx(min(sizes))
