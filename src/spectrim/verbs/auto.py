"""A size in, a recipe out: bits, factors of signs where they pay, and how long it may learn.

Of a part of the whole model's bytes, norms and biases take theirs, and embedding, head and linear
maps share the rest; of a part of the linear maps' bytes these have all, and embedding and head go
to 8 bits. How that is best spent, map by map, is the allocator's affair, by losses that are
estimated in seconds. Where much is left, bits alone are taken; where little is, low-rank factors of
signs too are tried beside them, and the way that loses less on the search split is gone on with.
Learning comes after that, where it is asked for: as many steps as fit
into its minutes (healing/minutes.py), or fewer, where that split gains nothing more.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from spectrim.errors import SpectrimError
from spectrim.files import Record, atomic_file, key_of, locked
from spectrim.healing.minutes import Learning, learning_within
from spectrim.job.job import Budget, Job
from spectrim.job.loss import search_loss
from spectrim.job.opening import open_job
from spectrim.kernels.library import library
from spectrim.model import sources
from spectrim.model.runtime import Size
from spectrim.model.sites import find
from spectrim.model.weights import Weights
from spectrim.outputs.refusals import refuse_output
from spectrim.processes import own, processes
from spectrim.progress import Progress
from spectrim.recipe.recipe import Keep, Recipe
from spectrim.stages import stages
from spectrim.verbs.refusals import refuse_smaller
from spectrim.verbs.room import left_for_maps, part_of, refuse_too_small
from spectrim.verbs.shrink import work_folder

ENDS = 8  # bits of embedding and head, where they are outside the budget
SHARED = 4  # bits of theirs, about, where they are inside
ENOUGH = (
    0.22  # of the linear maps' bytes: from here on bits alone are as good, and nothing is tried
)
BITS = (2, 3, 4, 8)
ALONE = "bits"
NOTHING = Learning({}, [])
CUTS: dict[str, dict[str, Any]] = {
    ALONE: {"cut": False},
    "bits and factors of signs": {"cut": False, "bits": (1, *BITS)},
}


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
    minutes: float | None = None,
) -> Choice:
    """Return the recipe for a model at a size; what was tried is kept, so that it is tried once.

    asked: says model, calibration, seed and whether remote code is trusted; of its stages only one
    that trims the vocabulary counts. size: part of the bytes of the whole model, or of its linear
    maps, or bytes. output: of that model; looked at before the trials. minutes: that it may learn
    afterwards, None for not at all. The same seed gives the same recipe.

    Raises:
        SpectrimError: the size is one of numbers, leaves too little for the linear maps, is asked
            of several processes, or what shrinking refuses of model and output.
    """
    if processes() > 1:
        raise SpectrimError(
            "--size chooses in one process; run it alone, then give its recipe to several"
        )
    refuse_output(output, "shrink", cache, sources.local(asked.model))
    source = sources.resolve(asked.model, cache, trust_remote_code=asked.trust_remote_code)
    refuse_smaller(source, "shrink")
    skeleton = sources.skeleton(source)
    weights = Weights(source.folder, skeleton)
    keep = part_of(size, weights.bytes(), skeleton.config)
    refuse_too_small(weights, find(skeleton), keep)
    common = _common(asked, keep)
    said = [size.counted(skeleton.config) if isinstance(size, Size) else None, _shared(keep)]
    tried = left_for_maps(weights, find(skeleton), keep, SHARED) < ENOUGH
    cuts, learned = ALONE, NOTHING
    if tried or minutes is not None:
        trials = _Trials.of(common, open_job(_recipe(common, ALONE), source, cache, progress))
        with locked(trials.folder):
            learned = trials.learning(minutes) if minutes is not None else NOTHING
            if tried:
                trials.run()
                cuts = trials.best()
                trials.hand_on(cuts, learned, output)
                said.append(_compared(trials.losses, cuts))
    if not tried:
        said.append("At this size bits alone are chosen for them, map by map.")
    said.append(_learning(minutes, learned))
    return Choice(_recipe(common, cuts, learned), " ".join(filter(None, said)))


def _common(asked: Recipe, keep: Keep) -> dict[str, Any]:
    """Return what the recipes of all ways say."""
    return {
        "model": asked.model,
        "calibration": asked.calibration.model_dump(),
        "seed": asked.seed,
        "trust_remote_code": asked.trust_remote_code,
        "keep": str(keep),
        "stages": [stage for stage in asked.stages if stage.name == "trim_vocabulary"],
    }


def _key(job: Job, common: dict[str, Any]) -> str:
    return key_of(
        "auto", 8, job.statistics_key, job.splits.search.digest(), common["keep"], common["seed"]
    )


@dataclass
class _Trials:
    """What was tried of one model at one size, and its losses on the search split, kept on disk."""

    job: Job
    common: dict[str, Any]
    folder: Path
    losses: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, common: dict[str, Any], job: Job) -> _Trials:
        """Return those of a job, behind the stages that all ways have in front."""
        for stage in common["stages"]:
            stages.get(stage.name)(job, stage.options)
        folder = job.cache / "auto" / own(_key(job, common))
        return cls(job, {**common, "stages": []}, folder)

    def run(self) -> None:
        """Try every way to cut.

        Raises:
            SpectrimError: none gets so small.
        """
        record = Record(self.folder.with_suffix(".jsonl"))
        refused: SpectrimError | None = None
        for cuts in CUTS:
            if cuts not in record.values:
                try:
                    loss = _measured(self.job, _recipe(self.common, cuts), self._blocks(cuts))
                except SpectrimError as error:  # too small for it; another way may reach the size
                    refused = error
                    continue
                record.add(cuts, {"loss": loss})
            self.losses[cuts] = record.values[cuts]["loss"]
        if not self.losses and refused is not None:
            raise refused

    def learning(self, minutes: float) -> Learning:
        """Return what learns for so many minutes, the same when it is asked for again.

        How many steps fit is found out on this machine, so it is kept, and an interrupted run goes
        on.
        """
        file = self.folder.with_name(f"{self.folder.name}-{minutes:g}-minutes.json")
        if not file.exists():
            found = learning_within(self.job, minutes)
            with atomic_file(file) as partial:
                partial.write_text(json.dumps(found._asdict()))
        return Learning(**json.loads(file.read_text()))

    def best(self) -> str:
        """Return the way that lost least."""
        return min(self.losses, key=lambda cuts: self.losses[cuts])

    def hand_on(self, best: str, learned: Learning, output: Path) -> None:
        """Leave the blocks of the best way where the run of its recipe goes on with them.

        That is nowhere where the run trims the vocabulary first, or learns between roundings.
        """
        recipe = _recipe(self.common, best, learned)
        other = self.job.whole or learned.options
        work = None if other else work_folder(self.job, recipe, output)
        if work and self._blocks(best).exists() and not work.exists():
            work.parent.mkdir(parents=True, exist_ok=True)
            self._blocks(best).rename(work)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _blocks(self, cuts: str) -> Path:
        return self.folder / cuts.replace(", ", "_").replace(" ", "_")


def _recipe(common: dict[str, Any], cuts: str, learned: Learning = NOTHING) -> Recipe:
    """Return the recipe of a way to cut; learned: what learns in it."""
    factorize: dict[str, Any] = {"format": "low_rank", "refine": "off", "bits": BITS,
                 "rounding_losses": "estimated", **CUTS[cuts]}  # fmt: skip
    factorize["trellis"] = library() is not None  # which searches the paths
    quantize: dict[str, Any] = {"ends": ENDS}
    if Keep.parse(common["keep"]).of == "bytes":
        factorize["ends"], quantize = BITS, {}
    quantize |= learned.options
    made: list[dict[str, Any]] = [
        {"equalize": {}}, {"factorize": factorize}, {"quantize": quantize}
    ]  # fmt: skip
    return Recipe.model_validate({**common, "stages": common["stages"] + made + learned.stages})


def _measured(job: Job, recipe: Recipe, folder: Path) -> float:
    """Return the loss on the search split of what a recipe makes, nats per token.

    Its blocks stay in the folder.
    """
    budget = Budget(recipe.keep.fraction, recipe.keep.of)
    tried = replace(job, work=folder, budget=budget, notes=dict(job.notes), curves={}, ends={},
                    model=copy.deepcopy(job.model))  # fmt: skip
    try:
        for stage in recipe.stages:
            stages.get(stage.name)(tried, stage.options)
        loss = search_loss(tried)
        if not isfinite(loss):
            raise SpectrimError(f"at {recipe.keep} the model's loss is no number; keep more")
    except SpectrimError:
        shutil.rmtree(folder, ignore_errors=True)  # of no use to anyone
        raise
    return loss


def _shared(keep: Keep) -> str:
    if keep.of == "bytes":
        return "Embedding, head and the linear maps of the blocks share one budget of bytes."
    return (
        f"The linear maps keep {keep.fraction:.1%} of their bytes; embedding and head go to {ENDS} "
        "bits."
    )


def _compared(losses: dict[str, float], best: str) -> str:
    others = [f"{way}: {loss:.3f}" for way, loss in losses.items() if way != best]
    against = f" (against {', '.join(others)})" if others else ""
    return (
        f"Choosing {best} for them loses {losses[best]:.3f} nats per token on the search split"
        f"{against}."
    )


def _learning(minutes: float | None, learned: Learning) -> str:
    if minutes is None:
        return "It has not learned; --minutes says how long it may."
    if not learned.stages:
        return f"It has not learned, as {minutes:g} minutes are too few for a gain."
    return (
        f"It learns from the dense model for about {minutes:g} minutes, while something is gained."
    )
