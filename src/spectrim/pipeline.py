"""The whole flow: a recipe and a model in, a smaller model's folder out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from spectrim import architectures, checkpoint, sites, sources, stock
from spectrim.calibration import fingerprints
from spectrim.comparison import compare_folders, second_text, small_model
from spectrim.errors import SpectrimError, one_line, out_of_memory
from spectrim.evaluation import calibration_splits, write_scores
from spectrim.job import Job, Progress, key_of, load_rest
from spectrim.metrics import Evaluation
from spectrim.options import validate
from spectrim.plan import Plan
from spectrim.prediction import prediction
from spectrim.recipe import Recipe
from spectrim.refusals import refuse, refuse_text, refuse_uncarried
from spectrim.report import card, page
from spectrim.run import atomic_folder, own, process
from spectrim.sources import Source
from spectrim.stages import stages
from spectrim.stages._curves import dense_plan
from spectrim.stages._remake import copy_companions
from spectrim.stages._repeats import repeats, written_out
from spectrim.stages.factorize import refuse_unfit
from spectrim.together import joined, wait


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


def open_job(recipe: Recipe, source: Source, cache: Path, progress: Progress) -> Job:
    """Return a job for a source: skeleton, tensors outside the blocks, splits of the text."""
    model = sources.skeleton(source)
    weights = sources.Weights(source.folder, model)
    splits, used = calibration_splits(recipe.calibration, recipe.seed, source, cache, progress)
    job = Job(
        source=source,
        model=model,
        architecture=architectures.of(model.config),
        weights=weights,
        sites=sites.find(model),
        splits=splits,
        cache=cache,
        work=cache / "work",
        keep=(recipe.keep.fraction, recipe.keep.of),
        progress=progress,
        notes={"calibration": used},
        seed=recipe.seed,
    )
    load_rest(model, job.rest(), job.compute_dtype)
    return job


def write_model(job: Job, folder: Path) -> None:
    """Write config, weights and tokenizer, streaming the weights from the blocks' files."""
    assert job.plan is not None
    config = json.loads((job.source.folder / "config.json").read_text())
    widths = {} if job.ends else stock.widths(job)
    factored = job.ends | {
        decision.site: {"format": decision.module, **job.empty_format(decision).shape()}
        for decision in job.plan.decisions
        if decision.replaced
    }
    shared = repeats(job)
    if job.blocks is None and not shared:  # no stage cut anything
        for path in job.source.folder.glob("*.safetensors*"):
            shutil.copyfile(path, folder / path.name)
    else:
        blocks = written_out(job)
        rest = job.work / "rest.safetensors"
        save_file(job.rest(), rest)
        places = [at for at in job.each_block() if f"{at[0].path}.{at[1]}" not in shared]
        parts = [job.block_file(blocks, *place) for place in places]
        parts = [stock.plain(job, part) for part in parts] if widths else parts
        checkpoint.write_shards([rest, *parts], folder)
    if widths:
        config |= widths
        factored = {}
    if factored:
        config.pop("sparsified", None)  # factors hold no zeros
    if factored or shared:
        said = checkpoint.SpectrimConfig(factored, shared_blocks=shared)
        config["quantization_config"] = said.to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_companions(job.source.folder, folder)


def write_record(job: Job, recipe: Recipe, folder: Path) -> None:
    """Write the recipe, the plan and the curves that led to it."""
    assert job.plan is not None
    recorded = dataclasses.replace(
        job.plan,
        about={
            **job.plan.about,
            "recipe": recipe.model_dump(mode="json"),
            "refined": job.notes.get("refinement", {"used": False})["used"],
            "found": found(job),
        },
    )
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / "plan.json").write_text(recorded.to_json(), encoding="utf-8")
    (folder / "curves.json").write_text(json.dumps(job.curves), encoding="utf-8")
    used = torch.cat([fingerprints(job.splits.calibration), fingerprints(job.splits.search)])
    (folder / "calibration.json").write_text(
        json.dumps({"text": job.notes["calibration"], "fingerprints": used.tolist()}),
        encoding="utf-8",
    )


def found(job: Job) -> dict[str, Any]:
    """Return what the stages noted: what was dropped, what an allocation cost, and the like.

    Of a plan that is replayed, what it says itself and no stage found anew holds on.
    """
    before = job.plan.about.get("found") or {} if job.plan else {}
    return {**before, **{key: note for key, note in job.notes.items() if key != "calibration"}}


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
