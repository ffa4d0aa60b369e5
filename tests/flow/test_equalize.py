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
from spectrim.walk.equalization import Link, evened, missed
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


def test_a_block_of_zeros_stays_as_it_is(tmp_path: Path) -> None:
    job = job_of(tmp_path, "llama")
    inserted = ("layers.1.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight")

    def emptied(held: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: one * 0 if k.endswith(inserted) else one for k, one in held.items()}

    change_tensors(job.source.folder, emptied)
    source = sources.resolve(str(job.source.folder), tmp_path / "cache")
    with quiet():
        job = open_job(recipe(job.source.folder, tmp_path / "text.txt"), source,
                       tmp_path / "cache", lambda *_: None)  # fmt: skip
        loss = search_loss(job)
        equalize(job, Options())
        assert search_loss(job) == pytest.approx(loss, abs=2e-4)


def test_one_huge_token_hides_no_other() -> None:
    hidden = torch.zeros(1, 9, 4)
    before = torch.ones(1, 9, 4)
    before[0, 0] = 1e6
    after = before.clone()
    after[0, 1:] *= 1.15  # as an activation that is linear for the huge token alone
    assert missed(hidden, before, after) == pytest.approx(0.15, rel=1e-3)
    assert missed(hidden, before, before) == 0
    assert missed(hidden, before, after * torch.nan) == float("inf")


def test_large_gains_on_top_of_one_are_not_taken_for_gains() -> None:
    """Of (1 + w) x with w near 60, factors on w alone miss by less than a hundredth."""
    gains = 60 + torch.rand(8, generator=torch.Generator().manual_seed(0))
    matrix = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)) * factors(8)
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(2))
    held = {"norm.weight": gains, "map.weight": matrix}

    def computed(tensors: dict[str, Tensor]) -> Tensor:
        return x * (1 + tensors["norm.weight"]) @ tensors["map.weight"].T

    link = Link("norm", ("map",), norm=True, columns_first=False)
    zeros = torch.zeros(1, 5, 6)
    made = evened(held, link, lambda one: missed(zeros, computed(held), computed(one)))
    assert made is not held
    assert missed(zeros, computed(held), computed(made)) < 1e-5
