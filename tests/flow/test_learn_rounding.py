"""Rounding learnt block by block: codes change, and less is lost than with trained scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.healing.block_by_block import dense_and_small
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.stages import stages
from tiny_healing import asked, note
from tiny_runs import load, plan_of, shrink, stored
from tiny_trained import trained_folder, write_learnable

# GPTQ alone, which leaves most to learn
TWO_BITS: dict[str, Any] = {"quantize": {"bits": 2, "group": 32, "inputs": "dense", "cycles": 0}}
WHOLE = "100% of linear"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny trained model with its text beside it."""
    folder = tmp_path_factory.mktemp("trained")
    write_learnable(folder / "text.txt", words=80 * 32)
    return trained_folder(folder / "source")


@pytest.fixture(scope="module")
def rounded(source: Path) -> Path:
    """Return that model in two bits."""
    return shrink(asked(source, TWO_BITS, keep=WHOLE), source.parent / "rounded")


def codes(folder: Path) -> dict[str, torch.Tensor]:
    """Return the codes of every packed matrix of a model."""
    found = load(folder).named_modules()
    return {name: one.codes() for name, one in found if isinstance(one, PackedMatrix)}


def test_codes_change_and_less_is_lost_than_with_scales_alone(
    source: Path, rounded: Path, tmp_path: Path
) -> None:
    learnt = shrink(
        asked(source, TWO_BITS, {"learn_rounding": {"steps": 60, "code_rate": 0.03}}, keep=WHOLE),
        tmp_path / "codes",
    )
    scales = shrink(
        asked(
            source, TWO_BITS, {"distil_blocks": {"inputs": "propagated", "steps": 60}}, keep=WHOLE
        ),
        tmp_path / "scales",
    )
    lost, other = note(learnt)["search_loss"], note(scales)["search_loss"]
    assert note(learnt)["used"] and lost["before"] == pytest.approx(other["before"])
    assert lost["after"] < lost["before"] - 1.6 * (lost["before"] - other["after"]) < lost["before"]
    before, after = codes(rounded), codes(learnt)
    moved = [float((before[name] != after[name]).float().mean()) for name in before]
    assert before.keys() == after.keys() and 0.01 < sum(moved) / len(moved) < 0.5
    shapes = [{k: (t.shape, t.dtype) for k, t in stored(one).items()} for one in (rounded, learnt)]
    assert shapes[0] == shapes[1]


def test_two_factors_and_narrower_maps_are_learnt_jointly(source: Path, tmp_path: Path) -> None:
    methods = "loss_aware_svd,loss_aware_neuron_selection"
    cut = {"factorize": {"method": methods, "format": "low_rank", "refine": "off"}}
    stages = (
        cut,
        {"quantize": {"bits": 3, "group": 32}},
        {"learn_rounding": {"steps": 30, "code_rate": 0.03}},
    )
    small = shrink(asked(source, *stages), tmp_path / "small")
    assert {"low_rank", "fewer_inputs"} <= {one.format for one in plan_of(small).decisions}
    assert note(small)["used"]


@pytest.mark.parametrize("sparse", [False, True])
def test_the_target_is_the_dense_model_where_the_embedding_was_rounded(
    source: Path, tmp_path: Path, sparse: bool
) -> None:
    first = [{"sparsify": {"pattern": "50%"}}] if sparse else []
    recipe = asked(source, *first, {"quantize": {"bits": 4, "group": 32, "ends": 4}}, keep=WHOLE)
    found = sources.resolve(str(source), tmp_path)
    job = open_job(recipe, found, tmp_path, lambda done, total, what: None)
    job.work = tmp_path / "work"
    dense = job.model.get_input_embeddings().weight.clone()
    for stage in recipe.stages:
        stages.get(stage.name)(job, stage.options)
    teacher, student = dense_and_small(job, job.splits.search, 0)
    entering = [one.reach(job.each_block()[0]).hidden[0] for one in (teacher, student)]
    exact = dense[teacher.walk.ids(0)]
    assert torch.equal(entering[0], exact) and not torch.equal(entering[1], exact)


def test_without_steps_the_bits_stay(source: Path, rounded: Path, tmp_path: Path) -> None:
    stages = (TWO_BITS, {"learn_rounding": {"steps": 0}})
    small = shrink(asked(source, *stages, keep=WHOLE), tmp_path / "small")
    assert not note(small)["used"]
    one, other = stored(small), stored(rounded)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
