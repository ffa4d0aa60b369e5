"""A size in, a recipe out: which ranks, bits and healing lose least, tried and measured.

Of a part of the whole model's bytes, norms and biases take theirs, and embedding, head and linear
maps share the rest; of a part of the linear maps' bytes these have all, and embedding and head go
to 8 bits. How that is best spent on ranks and bits, map by map, is the allocator's affair. What it
cannot know is tried and measured on the search split: first whether cutting ranks, or the widths of
MLPs too, pays at all; then, of the two ways that lost least, which is better after a little
healing, and how fast it should learn (optuna). Healing at last ends after the steps that distil
takes by itself, or before, where that split gains nothing more.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, field, replace
from math import ceil, inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

from spectrim.errors import SpectrimError
from spectrim.files import Record, key_of, locked
from spectrim.job.job import Budget, Job
from spectrim.job.loss import search_loss
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.model.runtime import Size
from spectrim.model.sites import Site, find
from spectrim.model.weights import Weights
from spectrim.outputs.refusals import refuse_output
from spectrim.processes import own, processes
from spectrim.progress import Progress
from spectrim.recipe.recipe import Keep, Recipe
from spectrim.stages import stages
from spectrim.stages.distil import Options as Distil
from spectrim.verbs.refusals import refuse_smaller

ENDS = 8  # bits of embedding and head, where they are outside the budget
LEAST = 0.04  # of the linear maps' bytes: what no plan reaches
BITS = (2, 3, 4, 8)
CUTS: dict[str, dict[str, Any]] = {
    "ranks and bits": {"method": "loss_aware_svd"},
    "ranks, widths and bits": {"method": "loss_aware_svd,loss_aware_neuron_selection"},
    "bits": {"cut": False},
}
RATES = (5e-4, 2.5e-4, 1e-3)  # of healing, its own first
STEPS = 24  # of healing on trial
TRIALS = 4  # with healing, all different
DRAWN = 40  # by optuna at most for these, as it may draw one again


class Choice(NamedTuple):
    """A recipe, and in a few sentences why it is this one."""

    recipe: Recipe
    why: str


def choose(
    asked: Recipe,
    size: Keep | Size,
    output: Path,
    *,
    cache: Path,
    progress: Progress,
    heal: bool = True,
) -> Choice:
    """Return the recipe for a model at a size; what was tried is kept, so that it is tried once.

    asked: says model, calibration, seed and whether remote code is trusted; its stages do not
    count. size: part of the bytes of the whole model, or of its linear maps, or bytes. output:
    where that model will be written, which is looked at before the trials. heal: train afterwards.
    The same seed gives the same recipe.

    Raises:
        SpectrimError: the size is one of numbers, leaves too little for the linear maps, is to be
            healed by several processes, or what shrinking refuses of model and output.
    """
    if heal and processes() > 1:
        raise SpectrimError(
            "--size tries healing in one process; run it alone, then give its recipe to several"
        )
    refuse_output(output, "shrink", cache, sources.local(asked.model))
    source = sources.resolve(asked.model, cache, trust_remote_code=asked.trust_remote_code)
    refuse_smaller(source, "shrink")
    skeleton = sources.skeleton(source)
    weights = Weights(source.folder, skeleton)
    keep = part_of(size, weights.bytes(), skeleton.config)
    refuse_too_small(weights, find(skeleton), keep)
    common: dict[str, Any] = {
        "model": asked.model,
        "calibration": asked.calibration.model_dump(),
        "seed": asked.seed,
        "trust_remote_code": asked.trust_remote_code,
        "keep": str(keep),
    }
    job = open_job(_recipe(common, next(iter(CUTS))), source, cache, progress)
    key = key_of(
        "auto", 4, job.statistics_key, job.splits.search.digest(), common["keep"], asked.seed
    )
    trials = _Trials(job, common, cache / "auto" / own(key))
    with locked(trials.folder):
        trials.unhealed()
        if heal:
            trials.healed(asked.seed)
    best = trials.best(heal)
    recipe = _recipe(common, best.cuts, best.healing(), ends=ENDS)
    counted = size.counted(skeleton.config) if isinstance(size, Size) else None
    return Choice(recipe, " ".join(filter(None, (counted, _why(keep, trials, best)))))


class Way(NamedTuple):
    """What is tried: a way to cut, and the learning rate of the healing, None without."""

    cuts: str
    rate: float | None = None

    def __str__(self) -> str:
        return self.cuts if self.rate is None else f"{self.cuts}, healed at {self.rate:g}"

    def healing(self) -> dict[str, Any] | None:
        """Return what its recipe says of healing, beside what every recipe says."""
        return None if self.rate is None else {"learning_rate": self.rate}


@dataclass
class _Trials:
    """What was tried of one model at one size, and its losses on the search split, kept on disk."""

    job: Job
    common: dict[str, Any]
    folder: Path
    losses: dict[Way, float] = field(default_factory=dict)
    refused: SpectrimError | None = None

    def unhealed(self) -> None:
        """Try every way to cut.

        Raises:
            SpectrimError: none gets so small.
        """
        for cuts in CUTS:
            self._try(Way(cuts))
        if not self.losses and self.refused is not None:
            raise self.refused

    def healed(self, seed: int) -> None:
        """Heal the two ways that lost least a little, and let optuna choose what else to try.

        Raises:
            SpectrimError: none can be healed.
        """
        import optuna

        first = sorted(self.losses, key=lambda way: self.losses[way])[:2]

        drawn: set[Way] = set()

        def tried(trial: optuna.Trial) -> float:
            cuts = str(trial.suggest_categorical("cuts", tuple(way.cuts for way in first)))
            way = Way(cuts, float(trial.suggest_categorical("rate", RATES)))
            if way not in drawn:
                self._try(way)
            drawn.add(way)
            return self.losses.get(way, inf)

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=len(first))
        )
        for way in first:
            study.enqueue_trial({"cuts": way.cuts, "rate": RATES[0]})
        for _ in range(DRAWN):
            if len(drawn) < min(TRIALS, len(first) * len(RATES)):
                study.optimize(tried, n_trials=1)
        if not any(way.rate is not None for way in self.losses) and self.refused is not None:
            raise self.refused

    def best(self, heal: bool) -> Way:
        """Return what lost least of what was tried with healing, or without."""
        found = [way for way in self.losses if (way.rate is not None) == heal]
        return min(found, key=lambda way: self.losses[way])

    def _try(self, way: Way) -> None:
        record = Record(self.folder.with_suffix(".jsonl"))
        if str(way) not in record.values:
            short: dict[str, Any] = {"steps": STEPS, "every": STEPS // 2, "warmup": STEPS // 6}
            short["learning_rate"] = way.rate
            made = _recipe(self.common, way.cuts, None if way.rate is None else short)
            try:
                loss = _measured(self.job, made, self.folder)
            except SpectrimError as error:  # too small for it; another way may reach the size
                self.refused = error
                return
            record.add(str(way), {"loss": loss})
        self.losses[way] = record.values[str(way)]["loss"]


def part_of(size: Keep | Size, whole: int, config: Any) -> Keep:
    """Return the part of a model's bytes that a size is, all of them where it is larger."""
    if isinstance(size, Keep):
        return size
    return Keep(fraction=min(size.of(whole, config) / whole, 1.0), of="bytes")


def refuse_too_small(weights: Weights, sites: list[Site], size: Keep) -> None:
    """Raise SpectrimError for a size that leaves too little for the linear maps of the blocks.

    That is also one of numbers, which few bits do not save.
    """
    if size.of == "linear":
        raise SpectrimError(
            "--size is a size in bytes; write '25%' (of the whole model) or '25% of linear bytes'"
        )
    width = weights.dtype().itemsize
    linear = width * sum(s.out_features * s.in_features for s in sites if s.block >= 0)
    whole, others = linear, 0.0
    if size.of == "bytes":
        ends = sum(s.out_features * s.in_features for s in sites if s.block < 0)
        whole = weights.bytes()
        others = whole - linear - width * ends + ends * min(BITS) / 8
    part = (size.fraction * whole - others) / linear
    if part < LEAST:
        least = ceil(100 * (LEAST * linear + others) / whole)
        raise SpectrimError(
            f"{size} leaves {max(part, 0):.1%} of their bytes for the linear maps, which is no "
            f"model any more; ask for {least}% of {size.of} or more"
        )


def _recipe(
    common: dict[str, Any], cuts: str, heal: dict[str, Any] | None = None, *, ends: int = 0
) -> Recipe:
    """Return the recipe of a way to cut; heal: options of the healing, None for none.

    ends: bits of embedding and head, where they are outside the budget; 0 on trial, as they cost
        every way the same.
    """
    factorize = {"format": "low_rank", "refine": "off", "bits": BITS, **CUTS[cuts]}
    quantize: dict[str, Any] = {"ends": ends}
    if Keep.parse(common["keep"]).of == "bytes":
        factorize["ends"], quantize = BITS, {}
    made: list[dict[str, Any]] = [{"factorize": factorize}, {"quantize": quantize}]
    if heal is not None:
        made.append({"distil": heal})
    return Recipe.model_validate({**common, "stages": made})


def _measured(job: Job, recipe: Recipe, folder: Path) -> float:
    """Return the loss on the search split of what a recipe makes, nats per token."""
    budget = Budget(recipe.keep.fraction, recipe.keep.of)
    tried = replace(job, work=folder, budget=budget, notes=dict(job.notes), curves={}, ends={})
    tried.model = copy.deepcopy(job.model)  # whose embedding and head are about to change
    try:
        for stage in recipe.stages:
            stages.get(stage.name)(tried, stage.options)
        loss = search_loss(tried)
        if not isfinite(loss):
            raise SpectrimError(f"at {recipe.keep} the model's loss is no number; keep more")
    except SpectrimError:
        shutil.rmtree(folder, ignore_errors=True)  # or the next way would take up its blocks
        raise
    shutil.rmtree(folder)
    return loss


def _why(keep: Keep, trials: _Trials, best: Way) -> str:
    """Return three sentences: what the budget leaves, how it is cut, how it is healed."""
    cuts = Way(best.cuts)
    said = (
        "Embedding, head and the linear maps of the blocks share one budget of bytes. "
        if keep.of == "bytes"
        else f"The linear maps keep {keep.fraction:.1%} of their bytes; embedding and head go to "
        f"{ENDS} bits. "
    )
    said += (
        f"Choosing {cuts} for them loses {trials.losses[cuts]:.3f} nats "
        f"per token on the search split{_others(trials, cuts)}. "
    )
    if best.rate is None:
        return said + "It is not healed, as was asked."
    return said + (
        f"{STEPS} steps of healing at a rate of {best.rate:g} brought that to "
        f"{trials.losses[best]:.3f}{_others(trials, best)}, so it is healed at that rate, by "
        "distillation from the dense model, as long as something is gained, for "
        f"{Distil().steps} steps at most."
    )


def _others(trials: _Trials, best: Way) -> str:
    others = [
        f"{way}: {loss:.3f}"
        for way, loss in trials.losses.items()
        if way != best and (way.rate is None) == (best.rate is None)
    ]
    return f" (against {', '.join(others)})" if others else ""
