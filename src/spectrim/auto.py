"""A size in, a recipe out: which ranks, bits and groups lose least, tried and measured.

The budget of bytes is first parted: embedding and head go to 8 bits, norms and biases stay, and the
linear maps get what is left. How that is best spent on ranks and bits, map by map, is the
allocator's affair. What it cannot know, how many numbers should share a step and whether cutting
ranks, or the widths of MLPs too, pays at all, is tried (optuna) and measured on the search split,
before any healing. Healing then ends after the steps that distil takes by itself, or before, where
that split gains nothing more.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from spectrim import sources
from spectrim.errors import SpectrimError
from spectrim.job import Job, Progress, key_of
from spectrim.pipeline import open_job
from spectrim.recipe import Keep, Recipe
from spectrim.refinement import search_loss
from spectrim.run import Record, locked
from spectrim.sites import Site, find
from spectrim.stages import stages
from spectrim.weights import Weights

ENDS = 8  # bits of embedding and head
LEAST = 0.04  # of the linear maps' bytes: what no plan reaches
BITS = (2, 3, 4, 8)
GROUPS = (64, 128, 32)  # numbers that share a step
CUTS: dict[str, dict[str, Any]] = {
    "ranks and bits": {"method": "loss_aware_svd"},
    "ranks, widths and bits": {"method": "loss_aware_svd,loss_aware_neuron_selection"},
    "bits": {"cut": False},
}
TRIALS = 5


class Choice(NamedTuple):
    """A recipe, and in three sentences why it is this one."""

    recipe: Recipe
    why: str


def choose(
    asked: Recipe, size: Keep, *, cache: Path, progress: Progress, heal: bool = True
) -> Choice:
    """Return the recipe for a model at a size; what was tried is kept, so that it is tried once.

    asked: says model, calibration, seed and whether remote code is trusted; its stages do not
    count. size: part of the bytes of the whole model, or of its linear maps. heal: train
    afterwards. The same seed gives the same recipe.

    Raises:
        SpectrimError: the size is one of numbers, or leaves too little for the linear maps.
    """
    import optuna

    source = sources.resolve(asked.model, cache, trust_remote_code=asked.trust_remote_code)
    skeleton = sources.skeleton(source)
    part = linear_part(Weights(source.folder, skeleton), find(skeleton), size)
    common: dict[str, Any] = {
        "model": asked.model,
        "calibration": asked.calibration.model_dump(),
        "seed": asked.seed,
        "trust_remote_code": asked.trust_remote_code,
        "keep": str(Keep(fraction=part, of="linear bytes")),
    }
    job = open_job(_recipe(common, GROUPS[0], next(iter(CUTS)), 0, False), source, cache, progress)
    key = key_of(
        "auto", 2, job.statistics_key, job.splits.search.digest(), common["keep"], asked.seed
    )
    folder = cache / "auto" / key
    record = Record(folder.with_suffix(".jsonl"))

    refused: list[SpectrimError] = []

    def tried(trial: optuna.Trial) -> float:
        group = int(trial.suggest_categorical("group", GROUPS))
        cuts = str(trial.suggest_categorical("cuts", tuple(CUTS)))
        name = f"{cuts} in groups of {group}"
        if name not in record.values:
            # the ends cost every choice the same
            made = _recipe(common, group, cuts, 0, False)
            try:
                record.add(name, {"loss": _measured(job, made, folder)})
            except SpectrimError as error:  # too small for it; another way may reach the size
                refused.append(error)
                record.add(name, {"loss": inf})
        return record.values[name]["loss"]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=asked.seed))
    for cuts in CUTS:
        study.enqueue_trial({"group": GROUPS[0], "cuts": cuts})
    with locked(folder):
        study.optimize(tried, n_trials=TRIALS)
    if study.best_value == inf:
        raise (
            refused[-1]
            if refused
            else SpectrimError(f"no way that was tried reaches {size}; ask for more")
        )
    best = study.best_params
    recipe = _recipe(common, best["group"], best["cuts"], ENDS, heal)
    return Choice(recipe, _why(part, record, f"{best['cuts']} in groups of {best['group']}", heal))


def linear_part(weights: Weights, sites: list[Site], size: Keep) -> float:
    """Return which part of their bytes the linear maps of the blocks may take.

    Raises:
        SpectrimError: the size is one of numbers, or what is outside the maps takes it all.
    """
    if size.of == "linear":
        raise SpectrimError(
            "--size is a size in bytes; write '25%' (of the whole model) or '25% of linear bytes'"
        )
    width = weights.dtype().itemsize
    linear = width * sum(s.out_features * s.in_features for s in sites if s.block >= 0)
    part = size.fraction
    if size.of == "bytes":
        ends = sum(s.out_features * s.in_features for s in sites if s.block < 0)
        steps = sum(width * s.out_features for s in sites if s.block < 0)
        others = weights.bytes() - linear - width * ends
        part = (size.fraction * weights.bytes() - others - ends * ENDS / 8 - steps) / linear
    if part < LEAST:
        raise SpectrimError(
            f"{size} leaves {max(part, 0):.1%} of their bytes for the linear maps, which is no "
            f"model any more; ask for a size that leaves {LEAST:.0%} or more"
        )
    return min(part, 1.0)


def _recipe(common: dict[str, Any], group: int, cuts: str, ends: int, heal: bool) -> Recipe:
    factorize = {"format": "low_rank", "refine": "off", "bits": BITS, "group": group, **CUTS[cuts]}
    made: list[dict[str, Any]] = [
        {"factorize": factorize},
        {"quantize": {"ends": ends}},
    ]
    return Recipe.model_validate({**common, "stages": made + [{"distil": {}}] * heal})


def _measured(job: Job, recipe: Recipe, folder: Path) -> float:
    """Return the loss on the search split of what a recipe makes, nats per token."""
    keep = (recipe.keep.fraction, recipe.keep.of)
    tried = replace(job, work=folder, keep=keep, notes=dict(job.notes), curves={})
    for stage in recipe.stages:
        stages.get(stage.name)(tried, stage.options)
    assert tried.blocks is not None
    loss = search_loss(tried, tried.blocks)
    shutil.rmtree(folder)
    return loss


def _why(part: float, record: Record, best: str, heal: bool) -> str:
    losses = {name: values["loss"] for name, values in record.values.items()}
    tried = {name: loss for name, loss in losses.items() if loss < inf}
    others = ", ".join(f"{loss:.3f} {name}" for name, loss in tried.items() if name != best)
    return (
        f"Embedding and head go to {ENDS} bits, which leaves {part:.1%} of their bytes for the "
        f"linear maps of the blocks. Of what was tried there, choosing {best} lost least on the "
        f"search split: {losses[best]:.3f} nats per token"
        + (f" against {others}. " if others else "; no other way gets so small. ")
        + (
            "It is then healed by distillation from the dense model, which keeps its best state."
            if heal
            else "It is not healed, as was asked."
        )  # fmt: skip
    )
