"""Divergences of the top k and a remainder: exact where k is everything, else lower bounds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spectrim.healing.divergences import divergence, with_remainder

VOCABULARY = 50


def pair(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 7, VOCABULARY, generator=generator, dtype=torch.float64)
    one, other = torch.log_softmax(logits, -1)
    return one, other


def exact(one: Tensor, other: Tensor, kind: str) -> Tensor:
    p, q = one.exp(), other.exp()
    if kind == "forward":
        return (p * (p / q).log()).sum(-1)
    if kind == "reverse":
        return (q * (q / p).log()).sum(-1)
    mean = (p + q) / 2
    return 0.5 * ((p * (p / mean).log()).sum(-1) + (q * (q / mean).log()).sum(-1))


def known(k: int, seed: int, kind: str) -> Tensor:
    teacher, student = pair(seed)
    top, ids = teacher.topk(k, dim=-1)
    return divergence(with_remainder(top), with_remainder(student.gather(-1, ids)), kind)


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_with_all_tokens_it_is_exact(kind: str) -> None:
    torch.testing.assert_close(
        known(VOCABULARY, 0, kind), exact(*pair(0), kind), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_it_bounds_from_below_and_rises_with_k(kind: str) -> None:
    for seed in range(20):
        found = [known(k, seed, kind) for k in (1, 4, 16, 32, VOCABULARY - 1)]
        for fewer, more in zip(found, [*found[1:], exact(*pair(seed), kind)], strict=True):
            assert (fewer >= -1e-12).all() and (fewer <= more + 1e-9).all()


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_nothing_where_both_are_the_same_and_no_gradient(kind: str) -> None:
    teacher, _ = pair(3)
    student = teacher.clone().requires_grad_()
    top, ids = teacher.topk(5, dim=-1)
    found = divergence(with_remainder(top), with_remainder(student.gather(-1, ids)), kind).sum()
    found.backward()
    assert abs(float(found.detach())) < 1e-12
    # along directions that keep the sum of probabilities, which a softmax lets through
    through = student.grad - student.detach().exp() * student.grad.sum(-1, keepdim=True)
    assert float(through.abs().max()) < 1e-9


def test_closed_forms_of_two_outcomes() -> None:
    certain, even = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    forward = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5.0)
    assert float(divergence(certain, even, "forward")) == pytest.approx(forward, rel=1e-5)
    assert float(divergence(certain, even, "reverse")) == pytest.approx(reverse, rel=1e-5)
    apart = torch.tensor([[1.0, 1e-30], [1e-30, 1.0]]).log()
    assert float(divergence(apart[0], apart[1], "js")) == pytest.approx(math.log(2), rel=1e-5)


def test_a_remainder_of_nothing_is_finite_with_a_finite_gradient() -> None:
    logits = torch.randn(4, 6, requires_grad=True)
    rows = with_remainder(torch.log_softmax(logits, -1))
    divergence(rows.detach().roll(1, 0), rows, "reverse").sum().backward()
    assert rows.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()
