"""Updates inside the backward pass: the loss falls, and less is held than AdamW holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spectrim.healing.fused_updates import AdaLomo, Lomo
from tiny_healing import CUT, asked, note
from tiny_runs import shrink
from tiny_trained import trained_folder, write_learnable


@pytest.mark.parametrize(("optimizer", "rate"), [("adalomo", 3e-2), ("lomo", 0.3)])
def test_the_loss_falls(optimizer: str, rate: float, tmp_path: Path) -> None:
    write_learnable(tmp_path / "text.txt", words=80 * 32)
    source = trained_folder(tmp_path / "source")
    how = {"optimizer": optimizer, "learning_rate": rate, "steps": 16, "every": 4}
    small = shrink(asked(source, CUT, {"low_memory": how}), tmp_path / "small")
    loss = note(small)["search_loss"]
    assert note(small)["used"] and loss["after"] < loss["before"] - 0.05
    assert note(small)["bytes"] < 0.5 * note(small)["bytes_of_adamw"]


def test_lomo_is_plain_descent_and_lets_gradients_go() -> None:
    start, rate = torch.randn(5, 3), 0.1
    weight = nn.Parameter(start.clone())
    update = Lomo({"weight": weight})
    update.begin(rate)
    (0.01 * weight.square().sum()).backward()
    torch.testing.assert_close(weight.detach(), start * (1 - 0.02 * rate))
    assert weight.grad is None
    update.close()
    (weight.square().sum()).backward()
    assert weight.grad is not None


def test_adalomo_goes_on_from_its_moments_to_the_same_bits() -> None:
    def train(update: AdaLomo, weight: nn.Parameter, steps: range) -> None:
        for step in steps:
            update.begin(0.01)
            inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            (inputs @ weight.T).square().sum().backward()

    weight = nn.Parameter(torch.randn(5, 3))
    other = nn.Parameter(weight.detach().clone())
    train(AdaLomo({"weight": weight}), weight, range(6))
    first = AdaLomo({"weight": other})
    train(first, other, range(3))
    first.close()
    second = AdaLomo({"weight": other})
    second.load({name: tensor.clone() for name, tensor in first.tensors().items()})
    train(second, other, range(3, 6))
    assert torch.equal(weight, other)
    assert second.numbers() == 5 + 3
