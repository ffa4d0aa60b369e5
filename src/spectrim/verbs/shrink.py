"""The whole flow: a recipe and a model in, a smaller model's folder out."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from spectrim.cutting.prediction import prediction
from spectrim.errors import SpectrimError, one_line, out_of_memory
from spectrim.files import atomic_folder, key_of
from spectrim.job.job import Job, dense_plan
from spectrim.job.opening import open_job
from spectrim.job.output import found, write_model, write_record
from spectrim.job.together import joined, wait
from spectrim.metrics import Evaluation
from spectrim.model import sources
from spectrim.plan import Plan
from spectrim.processes import own, process
from spectrim.progress import Progress
from spectrim.recipe.options import validate
from spectrim.recipe.recipe import Recipe
from spectrim.report import card, page
from spectrim.stages import stages
from spectrim.stages.factorize import refuse_unfit
from spectrim.verbs.comparison import compare_folders, second_text, small_model
from spectrim.verbs.evaluate import write_scores
from spectrim.verbs.refusals import refuse, refuse_text, refuse_uncarried


def shrink(
    recipe: Recipe,
    output: Path,
    *,
    cache: Path | None = None,
    plan: Path | None = None,
    evaluate: bool = True,
    predictions: bool = False,
    why: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make the model of a recipe smaller and return the folder that holds it.

    Interrupted at any point, the same call continues from what it finds and ends in the same bits.

    Args:
        recipe: what to do.
        output: folder to write; it appears whole, at the end.
        cache: kept between runs; by default as in sources.default_cache.
        plan: a plan.json to carry out instead of deciding anew.
        evaluate: also measure dense and smaller model on the report split and write the report.
        predictions: also measure the loss at several budgets beside what is predicted for them.
        why: how the recipe was come by, for the record and the report.
        progress: called as ``progress(done, total, what)``.

    Raises:
        SpectrimError: anything that the user can put right; nothing is left behind then.
    """
    cache = cache or sources.default_cache()
    progress = progress or (lambda done, total, what: None)
    replayed = Plan.read(plan) if plan else None
    joined()
    source = sources.resolve(recipe.model, cache, trust_remote_code=recipe.trust_remote_code)
    refuse(source, output, "shrink", "plan.json")
    if replayed is not None and "recipe" in replayed.about:
        recipe = validate(
            Recipe, {**replayed.about["recipe"], "model": recipe.model}, f"the recipe in {plan}"
        )
    if replayed is not None:
        refuse_uncarried(replayed, recipe)
    job = open_job(recipe, source, cache, progress)
    if why is not None:
        job.notes["chosen"] = why
    if predictions and recipe.factorize is None:
        raise SpectrimError("predictions are of the stage factorize; leave out --predictions")
    if predictions and recipe.factorize is not None and recipe.factorize.bits:
        raise SpectrimError("predictions are of cuts, not of bits; leave out --predictions")
    if predictions and len(job.architecture.stacks) > 1:
        raise SpectrimError("predictions do not cover encoder-decoders; leave out --predictions")
    job.plan, job.wanted = (replayed.unquantised(), replayed) if replayed else (None, None)
    key = key_of(recipe.to_yaml(), job.statistics_key, str(output.absolute()),
                 replayed.to_json() if replayed else None)  # fmt: skip
    job.work = cache / "work" / own(key)
    refuse_text(job, recipe)
    try:
        for stage in recipe.stages:
            stages.get(stage.name)(job, stage.options)
        if job.plan is None:
            job.plan = dense_plan(job)
        elif recipe.factorize is None:  # which looks at the plan itself
            refuse_unfit(job, job.plan)
        if process():  # the first one of several writes
            wait()
            shutil.rmtree(job.work, ignore_errors=True)
            return output
        with atomic_folder(output) as folder:
            write_model(job, folder)
            write_record(job, recipe, folder)
            if evaluate:
                try:
                    measure(job, recipe, folder, output, predictions)
                except (MemoryError, RuntimeError) as error:
                    if not out_of_memory(error):
                        raise
                    raise SpectrimError(
                        "there is too little memory to measure the whole models; "
                        "run again with --no-evaluate"
                    ) from error
            card.write_card(folder, base=source.folder, name=output.name)
    except Exception as error:
        if one_line(error) is not None:  # else a fault of ours, which a later version continues
            shutil.rmtree(job.work, ignore_errors=True)
        raise
    shutil.rmtree(job.work, ignore_errors=True)
    wait()
    return output


def measure(job: Job, recipe: Recipe, folder: Path, output: Path, predictions: bool) -> None:
    """Measure dense and smaller model on the report split; write scores.json and the page."""
    name = f"report split of {job.notes['calibration']}"
    texts = {name: job.splits.report.ids}
    if recipe.calibration.text != "default":  # of which the documentation is a part
        texts |= second_text(sources.tokenizer(job.source), job.splits.report.ids)
    chosen = Evaluation(seed=recipe.seed, cache=job.cache)
    scores = compare_folders(
        job.original or job.source, folder, texts, chosen, job.progress, str(output)
    )
    scores["refinement"] = job.notes.get("refinement")
    scores["found"] = found(job)
    if predictions:
        assert recipe.factorize is not None
        scores["prediction"] = prediction(job, recipe.factorize)
    write_scores(scores, folder / "scores.json")
    page.write_page(folder, folder / "report.html")


def shrink_from_options(
    model: str,
    *,
    output: str | Path,
    keep: str | None = None,
    calibration: str | None = None,
    tokens: str | None = None,
    recipe: str | Path | None = None,
    plan: str | Path | None = None,
    cache: str | Path | None = None,
    seed: int | None = None,
    refine: str | None = None,
    method: str | None = None,
    allocator: str | None = None,
    format: str | None = None,
) -> PreTrainedModel:
    """Make a model smaller, write it to ``output``, and return it in eval mode.

    The options are a part of those of `spectrim shrink`; a recipe file sets what is not given.

    Raises:
        SpectrimError: anything that the user can put right; nothing is left behind then.
    """
    changes = {
        "model": model,
        "keep": keep,
        "calibration.text": calibration,
        "calibration.tokens": tokens,
        "seed": seed,
        "factorize.refine": refine,
        "factorize.method": method,
        "factorize.allocator": allocator,
        "factorize.format": format,
    }
    folder = shrink(
        Recipe.build(recipe, changes),
        Path(output),
        cache=Path(cache) if cache else None,
        plan=Path(plan) if plan else None,
    )
    return small_model(folder)
