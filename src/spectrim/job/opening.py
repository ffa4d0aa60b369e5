"""A job opened: skeleton, tensors outside the blocks, splits of the text."""

from __future__ import annotations

from pathlib import Path

from spectrim.job.job import Budget, Job, load_rest
from spectrim.model import architectures, sites, sources
from spectrim.model.sources import Source
from spectrim.progress import Progress
from spectrim.recipe.recipe import Recipe
from spectrim.text.splits import calibration_splits


def open_job(recipe: Recipe, source: Source, cache: Path, progress: Progress) -> Job:
    """Return a job for a source: skeleton, tensors outside the blocks, splits of the text."""
    model = sources.skeleton(source)
    weights = sources.Weights(source.folder, model)
    splits, used = calibration_splits(recipe.calibration, recipe.seed, source, cache, progress)
    job = Job(
        source=source,
        model=model,
        architecture=architectures.architecture_of(model.config),
        weights=weights,
        sites=sites.find(model),
        splits=splits,
        text=used,
        cache=cache,
        work=cache / "work",
        budget=Budget(recipe.keep.fraction, recipe.keep.of),
        progress=progress,
        seed=recipe.seed,
    )
    load_rest(model, job.rest(), job.compute_dtype)
    return job
