"""The whole flow: a recipe and a model in, a smaller model's folder out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from spectrim import architectures, checkpoint, sites, sources
from spectrim.calibration import fingerprints
from spectrim.errors import SpectrimError
from spectrim.evaluation import calibration_splits, small_model, write_scores
from spectrim.job import Job, Progress, key_of, load_rest
from spectrim.metrics import Evaluation, compare
from spectrim.options import validate
from spectrim.plan import Plan
from spectrim.recipe import Recipe
from spectrim.report import card, page
from spectrim.run import atomic_folder
from spectrim.sources import Source
from spectrim.stages import stages

COMPANIONS = {".json", ".jinja", ".model", ".txt"}  # tokenizer, chat template, generation settings


def shrink(
    recipe: Recipe,
    output: Path,
    *,
    cache: Path | None = None,
    plan: Path | None = None,
    evaluate: bool = True,
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
        progress: called as ``progress(done, total, what)``.

    Raises:
        SpectrimError: anything that the user can put right; nothing is left behind then.
    """
    cache = cache or sources.default_cache()
    progress = progress or (lambda done, total, what: None)
    source = sources.resolve(recipe.model, cache, trust_remote_code=recipe.trust_remote_code)
    replayed = Plan.read(plan) if plan else None
    if replayed is not None and "recipe" in replayed.about:
        recipe = validate(
            Recipe, {**replayed.about["recipe"], "model": recipe.model}, f"the recipe in {plan}"
        )
    work = cache / "work" / key_of(recipe.to_yaml(), source.fingerprint, str(output.absolute()),
                                   replayed.to_json() if replayed else None)  # fmt: skip
    try:
        job = open_job(recipe, source, cache, work, progress)
        job.plan = replayed
        for stage in recipe.stages:
            stages.get(stage.name)(job, stage.options)
        with atomic_folder(output) as folder:
            write_model(job, folder)
            write_record(job, recipe, folder)
            if evaluate:
                measure(job, recipe, folder)
            card.write_card(folder, base=source.folder, name=output.name)
    except (SpectrimError, OSError):
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
    return output


def open_job(recipe: Recipe, source: Source, cache: Path, work: Path, progress: Progress) -> Job:
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
        work=work,
        keep=(recipe.keep.fraction, recipe.keep.of),
        progress=progress,
        notes={"calibration": used},
    )
    load_rest(model, job.rest(), job.compute_dtype)
    return job


def write_model(job: Job, folder: Path) -> None:
    """Write config, weights and tokenizer, streaming the weights from the blocks' files."""
    assert job.blocks is not None and job.plan is not None
    rest = job.work / "rest.safetensors"
    save_file(job.rest(), rest)
    parts = [rest, *(job.block_file(job.blocks, *place) for place in job.each_block())]
    checkpoint.write_shards(parts, folder)
    config = json.loads((job.source.folder / "config.json").read_text())
    factored = {
        decision.site: {"format": decision.format, **job.empty_format(decision).shape()}
        for decision in job.plan.decisions
        if decision.format != "dense"
    }
    if factored:
        config["quantization_config"] = checkpoint.SpectrimConfig(factored).to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for path in sorted(job.source.folder.iterdir()):
        if path.is_file() and path.suffix in COMPANIONS and not is_weights(path):
            shutil.copyfile(path, folder / path.name)


def is_weights(path: Path) -> bool:
    """Return whether a file of a model folder is written anew rather than copied."""
    return path.name == "config.json" or ".safetensors" in path.name


def write_record(job: Job, recipe: Recipe, folder: Path) -> None:
    """Write the recipe, the plan and the curves that led to it."""
    assert job.plan is not None
    recorded = dataclasses.replace(
        job.plan,
        about={
            **job.plan.about,
            "recipe": recipe.model_dump(mode="json"),
            "refined": job.notes.get("refinement", {"used": False})["used"],
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


def measure(job: Job, recipe: Recipe, folder: Path) -> None:
    """Measure dense and smaller model on the report split; write scores.json and the page."""
    name = f"report split of {job.notes['calibration']}"
    scores = compare(
        sources.model(job.source),
        small_model(folder),
        sources.tokenizer(job.source),
        {name: job.splits.report.ids},
        Evaluation(
            name=job.source.name,
            folders={"dense": job.source.folder, "small": folder},
            seed=recipe.seed,
        ),
        job.progress,
    )
    scores["refinement"] = job.notes.get("refinement")
    write_scores(scores, folder / "scores.json")
    page.write_page(folder, folder / "report.html")


def shrink_from_options(
    model: str,
    *,
    output: str | Path,
    keep: str = "80% of linear",
    calibration: str = "default",
    tokens: str = "48x1024",
    recipe: str | Path | None = None,
    plan: str | Path | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
    refine: str = "auto",
    method: str = "loss_aware_svd",
    allocator: str = "global",
    format: str = "pivoted",
) -> PreTrainedModel:
    """Make a model smaller, write it to ``output``, and return it in eval mode.

    The options are those of `spectrim shrink`; a recipe file sets what is not given otherwise.

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
    if recipe is not None:
        changes = {"model": model}
    folder = shrink(
        Recipe.build(recipe, changes),
        Path(output),
        cache=Path(cache) if cache else None,
        plan=Path(plan) if plan else None,
    )
    return small_model(folder)
