"""A dense model opened for a benchmark on mixed text: that of --model, or the demo rescaled."""

from __future__ import annotations

import argparse
from pathlib import Path

from measuring import two_halves
from mixed_text import mixed
from rescaled import write_rescaled

from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.recipe.recipe import Recipe
from spectrim.report.progress import shown


def calibrated(asked: argparse.Namespace) -> tuple[Job, Path, str]:
    """Return a job whose text is the mixed one, the half that is measured on, the model's name.

    asked: model (None for the demo rescaled), output, cache, data, tokens.
    """
    folder = asked.model
    if folder is None:
        folder = asked.output / "rescaled"
        write_rescaled(folder, asked.cache, asked.data)
    first, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    text, _ = mixed(asked.data, first, asked.output)
    source = sources.resolve(str(folder), asked.cache)
    changes = {"model": str(folder), "calibration.text": str(text)}
    recipe = Recipe.build(None, {**changes, "calibration.tokens": asked.tokens})
    with shown() as progress:
        job = open_job(recipe, source, asked.cache, progress)
    return job, second, Path(folder).name
