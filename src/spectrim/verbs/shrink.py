"""The whole flow: a recipe and a model in, a smaller model's folder out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spectrim.cutting.prediction import prediction
from spectrim.cutting.replay import refuse_unfit
from spectrim.errors import SpectrimError, one_line, out_of_memory
from spectrim.files import key_of
from spectrim.job.agreement import joined, wait
from spectrim.job.job import Job, dense_plan
from spectrim.job.opening import open_job
from spectrim.job.output import found, write_model, write_record
from spectrim.metrics import Evaluation
from spectrim.model import sources
from spectrim.outputs.folder import output_folder
from spectrim.outputs.refusals import refuse_output
from spectrim.plan import Plan
from spectrim.processes import own, process
from spectrim.progress import Progress
from spectrim.recipe.options import validate
from spectrim.recipe.recipe import Recipe
from spectrim.report import card, page
from spectrim.stages import stages
from spectrim.text import default_mix
from spectrim.verbs.comparison import compare_folders, second_text, small_model
from spectrim.verbs.evaluate import write_scores
from spectrim.verbs.refusals import (
    refuse_predictions,
    refuse_smaller,
    refuse_text,
    refuse_uncarried,
)


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
    joined()
    refuse_output(output, "shrink", cache, sources.local(recipe.model))
    replayed = Plan.read(plan) if plan else None
    source = sources.resolve(recipe.model, cache, trust_remote_code=recipe.trust_remote_code)
    refuse_smaller(source, "shrink")
    recipe = recipe if replayed is None else replayed_recipe(recipe, replayed, plan)
    job = open_job(recipe, source, cache, progress or (lambda done, total, what: None))
    if predictions:
        refuse_predictions(job, recipe)
    refuse_text(job, recipe)
    if why is not None:
        job.notes["chosen"] = why
    take_up(job, recipe, output, replayed)
    with kept_where_interrupted(job.work):
        run_stages(job, recipe)
        if process():  # the first one of several writes
            wait()
            return output
        with output_folder(output, "shrink") as folder:
            write_model(job, folder)
            write_record(job, recipe, folder)
            if evaluate:
                measure(job, recipe, folder, output, predictions)
            card.write_card(folder, base=source.folder, name=output.name)
    wait()
    return output


def replayed_recipe(recipe: Recipe, replayed: Plan, file: Path | None) -> Recipe:
    """Return the recipe that a plan was made by, on this recipe's model; file: for the message.

    Raises:
        SpectrimError: that recipe is damaged, or has no stage for what the plan does.
    """
    if "recipe" in replayed.about:
        known = {**replayed.about["recipe"], "model": recipe.model}
        recipe = validate(Recipe, known, f"the recipe in {file}")
    refuse_uncarried(replayed, recipe)
    return recipe


def take_up(job: Job, recipe: Recipe, output: Path, replayed: Plan | None) -> None:
    """Give a job the plan that it replays, and the work folder that an interrupted run left."""
    if replayed is not None:
        job.plan, job.wanted = replayed.unquantised(), replayed
    job.work = work_folder(job, recipe, output, replayed)


def work_folder(job: Job, recipe: Recipe, output: Path, replayed: Plan | None = None) -> Path:
    """Return where the blocks of a run are while it lasts, and where it is taken up again."""
    key = key_of(recipe.to_yaml(), job.statistics_key, str(output.absolute()),
                 replayed.to_json() if replayed else None)  # fmt: skip
    return job.cache / "work" / own(key)


@contextmanager
def kept_where_interrupted(work: Path) -> Iterator[None]:
    """Remove a run's work folder at its end, also where the user is at fault.

    A run that was killed, or that failed by a fault of ours, is taken up from there.
    """
    try:
        yield
    except Exception as error:
        if one_line(error) is not None:
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def run_stages(job: Job, recipe: Recipe) -> None:
    """Run every stage of the recipe; ``job.plan`` says at the end how each site is stored."""
    for stage in recipe.stages:
        stages.get(stage.name)(job, stage.options)
    if job.plan is None:
        job.plan = dense_plan(job)
    elif recipe.factorize is None:  # which looks at the plan itself
        refuse_unfit(job, job.plan)


def measure(job: Job, recipe: Recipe, folder: Path, output: Path, predictions: bool) -> None:
    """Measure dense and smaller model on the report split; write scores.json and the page.

    Raises:
        SpectrimError: the whole models do not fit into memory.
    """
    try:
        scores = measured(job, recipe, folder, output)
        if predictions:
            assert recipe.factorize is not None
            scores["prediction"] = prediction(job, recipe.factorize)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise SpectrimError(
            "there is too little memory to measure the whole models; run again with --no-evaluate"
        ) from error
    write_scores(scores, folder / "scores.json")
    page.write_page(folder, folder / "report.html")


def measured(job: Job, recipe: Recipe, folder: Path, output: Path) -> dict[str, Any]:
    """Return the scores of dense and smaller model on the report split."""
    name = f"report split of {job.text}"
    texts = {name: job.splits.report.ids}
    if recipe.calibration.text not in default_mix.NAMES:  # which are mixes already
        texts |= second_text(sources.tokenizer(job.source), job.splits.report.ids)
    chosen = Evaluation(seed=recipe.seed, cache=job.cache)
    scores = compare_folders(
        job.original or job.source, folder, texts, chosen, job.progress, str(output)
    )
    scores["refinement"] = job.notes.get("refinement")
    scores["found"] = found(job)
    return scores


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
