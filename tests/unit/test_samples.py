"""The inputs that methods train on: those that the statistics count, from all over the text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spectrim.cutting.samples import _text, sampled, spread
from spectrim.job.job import Budget, Job
from spectrim.model.architectures import architecture_of
from spectrim.model.sites import find
from spectrim.model.sources import Source
from spectrim.text.tokens import Splits, Tokens
from spectrim.walk.statistics import block_statistics
from tiny_walks import InMemory, model_of, text, walk_of


def job_of(family: str, folder: Path) -> Job:
    """Return a job whose calibration text is padded."""
    model, read = model_of(family), text(padded=True)
    return Job(
        source=Source(family, folder, family),
        model=walk_of(model, read).model,
        architecture=architecture_of(model.config),
        weights=InMemory(model),
        sites=find(model),
        splits=Splits(read, read, read),
        cache=folder,
        work=folder,
        text="the text",
        budget=Budget(1.0, "linear"),
        progress=lambda *_: None,
    )


@pytest.mark.parametrize("family", ["llama", "mixtral", "bart"])
def test_samples_of_a_padded_text_have_the_moments_that_statistics_count(
    family: str, tmp_path: Path
) -> None:
    job = job_of(family, tmp_path)
    folder = job.statistics()
    found = sampled(job, len(job.splits.calibration))
    for place, inputs in zip(job.each_block(), found, strict=True):
        known = {name: one for name, one in block_statistics(folder, place).items() if one.tokens}
        assert inputs.keys() == known.keys()
        for name, x in inputs.items():
            assert len(x) == known[name].tokens
            torch.testing.assert_close(x.T @ x / len(x), known[name].input_moment)


def test_sequences_are_spread_over_the_text() -> None:
    tokens = Tokens.full(torch.arange(20)[:, None])
    assert spread(tokens, 3).ids.flatten().tolist() == [0, 6, 13]
    assert spread(tokens, 30).ids.flatten().tolist() == list(range(20))


def test_what_came_to_an_expert_is_in_the_order_of_the_text() -> None:
    expert = nn.Linear(1, 1)
    expert.token_index = torch.tensor([4, 7, 1, 2])
    x = torch.tensor([[4.0], [7.0], [1.0], [2.0]])
    mask = torch.arange(8) != 2
    assert _text(x, mask, expert).flatten().tolist() == [1.0, 4.0, 7.0]
