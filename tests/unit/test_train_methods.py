"""Methods that leave tensor trains: what they cost, and whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectrim.formats import make_format
from spectrim.formats._trains import decomposed, modes, multiplied, rounded
from spectrim.methods import Decomposition, methods
from spectrim.walk.moments import Damping, damped
from spectrim.walk.statistics import Statistics
from tiny_models import logits, tokens
from tiny_runs import (
    Made,
    envelope_kept,
    family_folder,
    from_pretrained,
    plan_of,
    recipe,
    shrink,
    write_text,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def statistics(out: int, inner: int, seed: int = 0) -> Statistics:
    """Moments with a few strong directions, as those of language models, and no other structure."""

    def moment(size: int, seed: int) -> Tensor:
        rotation = torch.linalg.qr(random(size, size, seed=seed)).Q
        return ((rotation * torch.logspace(0, -3, size)) @ rotation.T).float()

    return Statistics(100, None, moment(inner, seed + 1), moment(out, seed + 2))


def damage(error: Tensor, known: Statistics, damping: Damping) -> float:
    """½ tr(Δᵀ G Δ A), written out in the plainest way."""
    assert known.input_moment is not None and known.gradient_moment is not None
    middle = error.T @ damped(known.gradient_moment, damping.gradient) @ error
    return float(0.5 * torch.trace(middle @ damped(known.input_moment, damping.input)))


@pytest.mark.parametrize("name", ["tensor_train", "loss_aware_tensor_train"])
@pytest.mark.parametrize("shape", [(48, 80), (36, 17)])
def test_losses_are_the_damage_of_what_is_taken(name: str, shape: tuple[int, int]) -> None:
    weight, known = random(*shape).float(), statistics(*shape)
    found: Decomposition = methods.get(name)(weight, known)
    assert found.in_nats and (found.losses.diff() < 0).all()
    for rank, loss in zip(found.ranks.tolist(), found.losses.tolist(), strict=True):
        module = make_format("tensor_train", (*shape, rank), found.pieces, None, torch.float64)
        error = (weight - module.dense()).detach()
        assert loss == pytest.approx(damage(error, known, Damping()), rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(48, 80), (64, 48)])
def test_the_fitted_train_costs_less_than_plain_tt_svd(shape: tuple[int, int], seed: int) -> None:
    weight, known = random(*shape, seed=seed).float(), statistics(*shape, seed=seed)
    found: Decomposition = methods.get("loss_aware_tensor_train")(weight, known)
    for rank, loss in zip(found.ranks.tolist(), found.losses.tolist(), strict=True):
        plain = multiplied(decomposed(weight.double(), modes(*shape), rank), shape)
        assert loss < 0.8 * damage(weight - plain, known, Damping())


def kronecker(sizes: tuple[int, ...]) -> Tensor:
    """A moment that is a Kronecker product."""
    product = torch.ones(1, 1, dtype=torch.float64)
    for at, size in enumerate(sizes):
        rows = random(2 * size, size, seed=at)
        product = torch.kron(product, rows.T @ rows)
    return product.float()


def test_with_kronecker_moments_whitened_tt_svd_is_hardly_to_be_bettered() -> None:
    """It is quasi-optimal there, so the sweeps may gain a little and must lose nothing."""
    pairs = modes(48, 48)
    outs, ins = zip(*pairs, strict=True)
    known = Statistics(9, None, kronecker(ins), kronecker(outs))
    weight = random(48, 48).float()
    found: Decomposition = methods.get("loss_aware_tensor_train")(
        weight, known, damping=Damping(0.0, 0.0)
    )
    roots = [torch.linalg.cholesky(one.double()) for one in (kronecker(outs), kronecker(ins))]
    white = roots[0].T @ weight.double() @ roots[1]
    for rank, loss in zip(found.ranks.tolist(), found.losses.tolist(), strict=True):
        cut = multiplied(decomposed(white, pairs, rank), (48, 48))
        best = 0.5 * float((white - cut).square().sum())
        assert 0.5 * best < loss <= 1.01 * best


def test_a_rank_between_those_that_were_fitted_is_rounded_from_the_next() -> None:
    """So that a plan may be edited to any rank."""
    weight, known = random(48, 80).float(), statistics(48, 80)
    found: Decomposition = methods.get("loss_aware_tensor_train")(weight, known)
    above = int(found.ranks[2])
    assert above - 1 not in found.ranks
    cores = [found.pieces[f"{above}.{at}"].double() for at in range(4)]
    module = make_format("tensor_train", (48, 80, above - 1), found.pieces, None, torch.float64)
    torch.testing.assert_close(module.dense(), multiplied(rounded(cores, above - 1), (48, 80)))


@pytest.mark.parametrize("name", ["tensor_train", "loss_aware_tensor_train"])
def test_a_map_that_the_loss_ignores_costs_nothing(name: str) -> None:
    known = Statistics(9, None, torch.eye(48), torch.zeros(48, 48))
    found: Decomposition = methods.get(name)(random(48, 48).float(), known)
    assert found.losses.tolist() == [0.0]
    with pytest.raises(ValueError, match="needs the input moment and the gradient moment"):
        methods.get(name)(random(48, 48).float(), Statistics(9))


# whole runs


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_whole_runs(family: str, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", family)
    text = write_text(tmp_path / "text.txt")
    found = {}
    for method in ("tensor_train", "loss_aware_tensor_train", "loss_aware_svd,tensor_train"):
        with envelope_kept():
            small = shrink(recipe(source, text, method=method, refine="off"), tmp_path / method)
        plan = plan_of(small)
        named = {one.format for one in plan.decisions}
        assert "tensor_train" in named or "," in method, method
        assert sum(one.stored for one in plan.decisions) <= 0.7 * sum(
            one.dense for one in plan.decisions
        )
        model = from_pretrained(Made(family, source, text, small), small)
        assert logits(model, tokens()).isfinite().all()
        found[method] = plan.predicted_loss
    assert found["loss_aware_tensor_train"] < found["tensor_train"]
    assert found["loss_aware_svd,tensor_train"] < found["tensor_train"]
