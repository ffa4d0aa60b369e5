"""Embedding and head in few bits: loaded to the bit, tables stored once, counted once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectrim.errors import SpectrimError
from spectrim.formats import formats
from spectrim.formats.packed.scales import Grid
from spectrim.formats.quantized_embedding import QuantizedEmbedding
from spectrim.job.blocks import current_block
from spectrim.job.job import Job, dense_plan
from spectrim.job.opening import open_job
from spectrim.metrics.multiply_adds import multiply_adds
from spectrim.metrics.size import size
from spectrim.model import sources
from spectrim.model.sites import find, tied
from spectrim.recipe.recipe import Recipe
from spectrim.rounding.nearest import nearest
from spectrim.stages.quantize import quantize
from spectrim.verbs.inspect import inspect
from spectrim.walk.stream import Stream
from tiny_models import assert_generates_alike, logits, tokens
from tiny_runs import (
    TOKENS,
    Made,
    family_folder,
    files,
    from_pretrained,
    load,
    plan_of,
    saved_again,
    shrink,
    stored,
    write_text,
)

FAMILIES = ["llama", "gpt2", "falcon", "mixtral", "bart", "t5", "gemma2", "gemma3_text", "opt",
            "opt_projected", "phi", "gpt_neox"]  # fmt: skip
ENDS = {"quantize": {"ends": 8, "protect": ["."]}}


def asked(source: Path, *stages: object, keep: str = "80% of linear") -> Recipe:
    """Return a recipe of these stages on the text beside a model."""
    changes = {
        "model": str(source),
        "keep": keep,
        "stages": list(stages),
        "calibration.text": str(write_text(source.parent / "text.txt")),
        "calibration.tokens": TOKENS,
    }
    return Recipe.build(None, changes)


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a family's tiny model with nothing but embedding and head in eight bits."""
    folder = tmp_path_factory.mktemp(request.param)
    source = family_folder(folder / "source", request.param, dtype=torch.bfloat16)
    small = shrink(asked(source, ENDS), folder / "small")
    return Made(request.param, source, folder / "text.txt", small)


def rounded_in_place(folder: Path) -> Any:
    """Return the dense model with each table at the values that eight bits a number leave it."""
    model: Any = load(folder)
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        for table in {id(one.weight): one.weight for one in (embed, head)}.values():
            ones = torch.ones(table.shape[1])
            table.copy_(nearest(table, ones, Grid(8, 0, True), torch.bfloat16).dequantize(0))
    return model


def test_they_compute_with_the_rounded_tables(made: Made) -> None:
    model, expected = from_pretrained(made, made.small), rounded_in_place(made.source)
    assert tied(model) == tied(expected)
    assert [one.name for one in find(model)] == [one.name for one in find(expected)]
    assert isinstance(model.get_input_embeddings(), QuantizedEmbedding)
    assert not any(
        type(one) is nn.Embedding and one.num_embeddings > 100 for one in model.modules()
    )
    before, after = logits(expected, tokens()), logits(model, tokens())
    assert (after - before).norm() < 3e-2 * before.norm()  # kernels read inputs in eight bits
    saved_again(made, made.folder / "again")
    assert_generates_alike(nn.Module.float(model))


def test_tables_are_stored_and_counted_once(made: Made) -> None:
    model, dense = from_pretrained(made, made.small), load(made.source)
    counted, before = size(model, made.small), size(dense, made.source)
    assert (counted.numbers, counted.embedding_numbers, counted.linear_numbers) == (
        before.numbers, before.embedding_numbers, before.linear_numbers,
    )  # fmt: skip
    assert multiply_adds(model) == multiply_adds(dense)
    kept = stored(made.small)
    tables = [name for name, tensor in kept.items() if tensor.dtype == torch.uint8]
    assert len(tables) == (1 if tied(dense) else 2)
    table = dense.get_input_embeddings().weight
    saved = len(tables) * (table.numel() - 2 * len(table))  # a byte a number, but for the steps
    assert before.bytes_of_weights - counted.bytes_of_weights == saved
    shown = {one["role"]: one for one in inspect(str(made.small))["sites"]}
    assert (shown["embed"]["bits"], shown["embed"]["stored"]) == (8, table.numel())


def test_later_stages_see_the_rounded_tables(made: Made) -> None:
    cache = made.folder / "cache"
    recipe = asked(made.source, ENDS)
    job = open_job(recipe, sources.resolve(str(made.source), cache), cache, lambda *_: None)
    job.work = made.folder / "work"
    quantize(job, recipe.stages[0].options)
    expected = rounded_in_place(made.source)
    for site in find(expected):
        if site.block < 0:
            assert torch.equal(
                job.model.get_submodule(site.name).weight,
                expected.get_submodule(site.name).weight,
            )
    assert tied(job.model) == tied(expected)
    assert search_loss(job, job) != search_loss(open_again(recipe, cache), job)


def search_loss(job: Job, blocks: Job) -> float:
    """Return the loss between a job's embedding and head of the blocks of another, or the same."""
    walk = job.walk(job.splits.search)
    return Stream(walk).through(lambda place: current_block(blocks, place, walk.dtype)).mean()


def open_again(recipe: Recipe, cache: Path) -> Job:
    """Return a job whose tables are as they came."""
    job = open_job(recipe, sources.resolve(recipe.model, cache), cache, lambda *_: None)
    job.plan = dense_plan(job)
    return job


def test_plans_with_packed_ends_are_replayed_to_the_bit(made: Made) -> None:
    again = made.folder / "replayed" / "small"
    shrink(asked(made.source, ENDS), again, plan=made.small / "plan.json")
    assert files(again) == files(made.small)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_everything_in_four_bits(family: str, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", family, dtype=torch.bfloat16)
    stages = [{"factorize": {"refine": "off"}}, {"quantize": {"ends": 4}}]
    small = shrink(asked(source, *stages), tmp_path / "small")
    made = Made(family, source, tmp_path / "text.txt", small)
    model = from_pretrained(made, small)
    assert model.get_input_embeddings().grid == Grid(4, 32, False)
    assert logits(model, tokens()).isfinite().all()
    assert plan_of(small).about["found"]["quantized"]["ends"] == 4
    inputs = {"input_ids": tokens()}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens()
    model(**inputs).logits.float().square().mean().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_damaged_config_is_said_in_one_line(tmp_path: Path) -> None:
    owner = formats.get("quantized_dense")(8, 8, 8, False, Grid(8, 0, True))
    head = formats.get("tied_head")(8, 8, 8, False, owner="embed")
    with pytest.raises(SpectrimError, match="^a map reads the table of embed, which holds none of"):
        head.link(owner)
    with pytest.raises(SpectrimError, match="^a tied map has no table of its own; link its owner"):
        head(torch.ones(1, 8))


def test_two_stages_cannot_both_pack_them(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama", dtype=torch.bfloat16)
    with pytest.raises(SpectrimError, match="^quantize has packed the numbers already; leave out"):
        shrink(asked(source, ENDS, {"quantize": {}}), tmp_path / "small")
    config = json.loads((source / "config.json").read_text())
    assert "quantization_config" not in config
