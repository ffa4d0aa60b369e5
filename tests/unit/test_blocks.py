"""Blocks written for the next stage: what no stage changed keeps its bits and its dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.job.blocks import current_block, go_on_with, next_step, write_block
from spectrim.job.job import Job, dense_plan
from spectrim.job.opening import open_job
from spectrim.job.repeats import repeats
from spectrim.model import sources
from spectrim.model.architectures import Place
from spectrim.model.weights import quiet
from spectrim.recipe.options import Factorize
from spectrim.stages.drop_blocks import Options, drop_blocks
from spectrim.stages.factorize import factorize
from tiny_folders import change_tensors
from tiny_runs import family_folder, recipe, write_text

FINE = 1 + 2**-12  # which bf16 does not hold


def finer_norms(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with norms in float32, at values that bf16 does not hold."""
    return {k: one.float() * FINE if "layernorm" in k else one for k, one in held.items()}


def job_of(folder: Path) -> Job:
    """Return a job of a model in bf16 whose norms are in float32."""
    source = family_folder(folder / "source", "llama", dtype=torch.bfloat16)
    change_tensors(source, finer_norms)
    asked = recipe(source, write_text(folder / "text.txt"))
    with quiet():
        found = sources.resolve(str(source), folder / "cache")
        job = open_job(asked, found, folder / "cache", lambda *_: None)
    job.work, job.plan = folder / "work", dense_plan(job)
    return job


def written(job: Job, folder: Path, place: Place) -> dict[str, Tensor]:
    held = load_file(job.block_file(folder, place))
    return {name.removeprefix(place.prefix): tensor for name, tensor in held.items()}


def test_a_block_that_was_held_in_fewer_bits_is_written_with_all_of_them(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    place = job.each_block()[0]
    write_block(job, tmp_path / "blocks", place, job.dense_block(place))  # in bf16 as a whole
    before, found = job.weights.read_prefix(place.prefix), written(job, tmp_path / "blocks", place)
    assert found["input_layernorm.weight"].dtype == torch.float32
    assert found.keys() == before.keys()
    assert all(torch.equal(one, before[name]) for name, one in found.items())


def test_what_a_stage_changed_is_written_in_the_dtype_it_was_stored_in(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    folder = next_step(job, "one")
    for place in job.each_block():
        block = current_block(job, place, torch.float32)
        for parameter in block.parameters():
            parameter.data.mul_(2)
        write_block(job, folder, place, block)
    go_on_with(job, folder)
    place = job.each_block()[1]
    before, found = job.weights.read_prefix(place.prefix), written(job, folder, place)
    assert {name: one.dtype for name, one in found.items()} == {
        name: one.dtype for name, one in before.items()
    }
    assert all(torch.equal(one, 2 * before[name]) for name, one in found.items())
    now = dict(current_block(job, place, torch.float32).named_parameters())
    assert all(torch.equal(one, 2 * before[name].float()) for name, one in now.items())


def test_notes_are_for_the_report_and_steer_no_stage(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    drop_blocks(job, Options(layers=(0, 1, 1)))
    job.plan = dense_plan(job)
    job.notes.clear()
    assert repeats(job) == {"model.layers.2": "model.layers.1"}
    job.blocks, job.healings = None, (False,)
    with pytest.raises(SpectrimError, match="factorize"):
        factorize(job, Factorize())
