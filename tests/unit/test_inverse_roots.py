"""Roots of inverted moments, of which the maps with one input share one."""

from __future__ import annotations

import pytest
import torch

from spectrim.formats.packed.scales import Grid
from spectrim.rounding import few_bits
from spectrim.rounding.few_bits import InverseRoots, Rounding
from spectrim.walk.moments import damped


def moment(size: int = 24) -> torch.Tensor:
    x = torch.randn(200, size, generator=torch.Generator().manual_seed(0))
    return x.T @ x / len(x)


def test_a_root_is_of_the_damped_inverse_and_computed_once_for_each_damping() -> None:
    roots, inputs = InverseRoots(), moment()
    root = roots.of(inputs, 0.1)
    assert root.dtype == torch.float32 and torch.equal(root, root.triu())
    expected = torch.linalg.inv(damped(inputs, 0.1).double())
    torch.testing.assert_close(root.double().T @ root.double(), expected, rtol=1e-3, atol=1e-5)
    assert roots.of(inputs, 0.1) is root
    assert roots.of(inputs, 0.2) is not root
    assert roots.of(inputs.clone(), 0.1) is not root  # known by identity


def test_maps_of_one_input_invert_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inverted = []
    invert = few_bits.inverse_root
    monkeypatch.setattr(
        few_bits, "inverse_root", lambda given: inverted.append(given) or invert(given)
    )
    rounding, inputs = Rounding(Grid(4, 8, False), torch.float32), moment()
    first, second = torch.randn(2, 10, 24, generator=torch.Generator().manual_seed(1))
    one = [rounding(each, inputs).dequantize(8) for each in (first, second)]
    assert len(inverted) == 1
    alone = [rounding(each, inputs, shared=False).dequantize(8) for each in (first, second)]
    assert len(inverted) == 1  # gptq's own
    for shared, own in zip(one, alone, strict=True):
        torch.testing.assert_close(shared, own, rtol=0, atol=1e-6)
