"""What a run is refused for before the long work: its model, its output, its texts, its plan."""

from __future__ import annotations

from spectrim.errors import SpectrimError
from spectrim.healing.between import refuse_two_stacks
from spectrim.healing.end_to_end import SAMPLED, Healing, healing_text
from spectrim.job.job import Job
from spectrim.model.sources import Source
from spectrim.model.weights import quantised
from spectrim.plan import Plan
from spectrim.recipe.recipe import Recipe
from spectrim.rounding.trellis import kernels
from spectrim.stages.quantize import Options as Quantize


def refuse_smaller(source: Source, verb: str) -> None:
    """Raise SpectrimError for a model that is small already; verb: what is to be done with it."""
    if quantised(source.folder):
        raise SpectrimError(
            f"{source.name} is a smaller model already; {verb} the model that it was made from"
        )


def refuse_predictions(job: Job, recipe: Recipe) -> None:
    """Raise SpectrimError where no loss can be predicted: only cuts of decoders have that."""
    if recipe.factorize is None:
        raise SpectrimError("predictions are of the stage factorize; leave out --predictions")
    if recipe.factorize.bits:
        raise SpectrimError("predictions are of cuts, not of bits; leave out --predictions")
    if len(job.architecture.stacks) > 1:
        raise SpectrimError("predictions do not cover encoder-decoders; leave out --predictions")


def refuse_text(job: Job, recipe: Recipe) -> None:
    """Raise SpectrimError before the long work where a text to learn from will be of no use.

    Also where a model cannot be trained between roundings, as far as its config says so.
    """
    read = set()
    for options in [stage.options for stage in recipe.stages]:
        reading = options
        if isinstance(options, Quantize) and options.steps:
            refuse_two_stacks(job)
            reading = options.reading()
        if isinstance(reading, Healing) and reading.text != SAMPLED:
            if (asked := (reading.text, reading.tokens)) not in read:
                healing_text(job, reading)
            read.add(asked)


def refuse_uncarried(plan: Plan, recipe: Recipe) -> None:
    """Raise SpectrimError for a plan with cuts or bits where no stage of the recipe makes any.

    Also for one with paths through a trellis where there are no kernels that search them.
    """
    cut = [one.site for one in plan.decisions if one.format != "dense"]
    corrected = any(one.correction for one in plan.decisions)
    if corrected and "compensate" not in [stage.name for stage in recipe.stages]:
        raise SpectrimError(
            "the plan corrects maps, but the recipe has no stage compensate; add it to the recipe"
        )
    if cut and recipe.factorize is None:
        raise SpectrimError(
            f"the plan cuts {cut[0]}, but the recipe has no stage factorize, which carries plans "
            "out; add it to the recipe, or make every site dense in the plan"
        )
    if any(one.trellis for one in plan.decisions):
        kernels()
    packed = [one for one in plan.decisions if one.packed]
    if packed and not any(stage.name == "quantize" for stage in recipe.stages):
        raise SpectrimError(
            f"the plan stores {packed[0].site} in {packed[0].rate:g} bits, but the recipe has no "
            "stage quantize; add it to the recipe, or set bits and trellis to 0 in the plan"
        )
