"""Columns of maps made alike in size: the model computes the same, whatever its family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.job.job import Job
from spectrim.job.loss import search_loss
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.model.weights import quiet
from spectrim.stages.equalize import Options, equalize
from tiny_folders import change_tensors
from tiny_models import FAMILIES
from tiny_runs import family_folder, recipe, write_text

UNEVEN = 0.7  # spread of the logarithm of what columns are multiplied with


def job_of(folder: Path, family: str) -> Job:
    """Return a job of a tiny model whose columns are of very different sizes."""
    source = family_folder(folder / "source", family)

    def uneven(held: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: one * factors(one.shape[-1])
            if one.dim() == 2 and one.is_floating_point() and "embed" not in name
            else one
            for name, one in held.items()
        }

    change_tensors(source, uneven)
    with quiet():
        found = sources.resolve(str(source), folder / "cache")
        return open_job(recipe(source, write_text(folder / "text.txt")), found, folder / "cache",
                        lambda *_: None)  # fmt: skip


def factors(columns: int) -> Tensor:
    """Return what columns are multiplied with, the same for all maps that have so many."""
    drawn = torch.Generator().manual_seed(columns)
    return (UNEVEN * torch.randn(columns, generator=drawn)).exp()


def spread(job: Job) -> dict[str, float]:
    """Return of each map of the first block how far the sizes of its columns lie apart."""
    place = job.each_block()[0]
    found = {}
    for site in job.block_sites(place):
        name = f"{site.name.removeprefix(place.prefix)}.weight"
        tensors = job.weights.read_prefix(place.prefix)
        if name in tensors:
            matrix = tensors[name].float()
            matrix = matrix if matrix.shape[0] == site.out_features else matrix.T
            rows = matrix / matrix.norm(dim=1, keepdim=True)
            found[site.role] = float(rows.square().mean(0).log().std())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_computes_the_same(family: str, tmp_path: Path) -> None:
    job = job_of(tmp_path, family)
    with quiet():
        loss = search_loss(job)
        equalize(job, Options())
        assert search_loss(job) == pytest.approx(loss, abs=2e-4)


def test_all_columns_of_a_llama_become_alike(tmp_path: Path) -> None:
    job = job_of(tmp_path, "llama")
    before = spread(job)
    equalize(job, Options())
    after = spread(job)
    shared = [role for role in before if role not in ("o", "down")]
    assert len(shared) == 5 and all(after[role] < 0.5 * before[role] for role in shared)
    assert after["down"] < 0.1 * before["down"]  # whose columns no other map shares
    assert after["o"] < 0.8 * before["o"]  # two heads share a factor
    assert job.original is not None and job.original.folder != job.source.folder


def test_whole_maps_are_needed(tmp_path: Path) -> None:
    job = job_of(tmp_path, "llama")
    job.sparsified = True
    with pytest.raises(SpectrimError, match="put equalize first"):
        equalize(job, Options())
