"""Draws of the loss's gradient have the covariance that labels drawn from the model give it."""

from __future__ import annotations

import torch

from spectrim.walk.draws import drawn


def test_draws_have_the_covariance_of_drawn_labels_and_lighter_tails() -> None:
    logits = torch.tensor([3.0, 1.0, 0.0, -2.0, -4.0])
    likely = logits.double().softmax(0)
    expected = likely.diag() - torch.outer(likely, likely)
    many = drawn(logits.expand(200_000, -1), torch.Generator().manual_seed(0)).double()
    assert many.sum(1).abs().max() < 1e-5, "no label's logit moves the loss alone"
    torch.testing.assert_close(many.mean(0), torch.zeros(5).double(), rtol=0, atol=5e-3)
    torch.testing.assert_close(many.T @ many / len(many), expected, rtol=0, atol=3e-3)
    labels = torch.eye(5).double() - likely  # by label
    tails = (likely[:, None] * labels**4).sum(0) / (likely[:, None] * labels**2).sum(0) ** 2
    rare = (many[:, -1] ** 4).mean() / (many[:, -1] ** 2).mean() ** 2
    assert rare < tails[-1] / 20
