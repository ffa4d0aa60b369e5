"""The whole model read up to its head, and its head asked for a few tokens at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.healing.student import InChunks, Reader
from spectrim.model.architectures import architecture_of
from spectrim.text.tokens import Tokens
from spectrim.walk.walk import BlockWalk
from tiny_models import FAMILIES, build, tokens
from tiny_walks import InMemory


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_of_every_family_are_the_models_own(family: str) -> None:
    model = build(family)
    walk = BlockWalk(
        model, architecture_of(model.config), InMemory(model), Tokens.full(tokens(length=24)), 2
    )
    with torch.no_grad():
        expected = model(**walk.keywords(0)).logits[walk.targets(0) != -100].float()
        reader = Reader(model)
        found = reader.logits(reader.hidden(model, walk, 0))
        reader.close()
        again = model(**walk.keywords(0)).logits[walk.targets(0) != -100].float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, expected)


def test_a_sum_in_chunks_has_the_value_and_gradient_of_the_sum_at_once() -> None:
    hidden = torch.randn(150, 8, requires_grad=True)
    weights = torch.randn(150)

    def loss(leaf: Tensor, part: slice) -> Tensor:
        return (leaf.exp().sum(-1) * weights[part]).sum()

    found = InChunks.apply(hidden, loss) / 3
    expected = loss(hidden, slice(None)) / 3
    gradients = [torch.autograd.grad(value, hidden)[0] for value in (found, expected)]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*gradients)
