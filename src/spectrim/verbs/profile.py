"""Profile a model: how sensitive its loss is to every part, as a table, a page and a record."""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass
from math import exp, isfinite, log
from pathlib import Path
from typing import Any

import torch
from scipy.stats import pearsonr, spearmanr

from spectrim.cutting.allocation import Unit, bought_units
from spectrim.cutting.decompose import decompose
from spectrim.cutting.sensitivity import ALONE, PartialCut, Sensitivity, cumulative, parts
from spectrim.errors import SpectrimError
from spectrim.job.job import Job, inner_sites
from spectrim.job.opening import open_job
from spectrim.metrics._packages import versions
from spectrim.model import sources
from spectrim.outputs.folder import output_folder
from spectrim.outputs.refusals import refuse_output
from spectrim.progress import Progress
from spectrim.recipe.options import Factorize
from spectrim.recipe.recipe import Recipe
from spectrim.report.profile import write_profile
from spectrim.text.tokens import Tokens
from spectrim.verbs.refusals import refuse_smaller

SEQUENCES = 2
COLUMNS = ("cut", "block", "role", "site", "size", "rank", "predicted", "measured", "error",
           "metric")  # fmt: skip
UNITS = {"loss": "nats/token", "perplexity": "perplexity", "divergence": "nats/token"}
_LARGEST = 700.0  # nats: e to a power above this is no float


@dataclass(frozen=True)
class Asked:
    """What to measure.

    by: what is cut at a time: "site", "role" or "block". sizes: parts of the numbers that stay,
    each above 0 and below 1. cumulative: also cut one block more at a time, from either end.
    metric: "loss", "perplexity" or "divergence". sequences: of the search split, None for
    ``SEQUENCES`` or as many as there are.
    """

    by: str = "site"
    sizes: tuple[float, ...] = (0.5,)
    cumulative: bool = False
    metric: str = "loss"
    sequences: int | None = None


def profile(
    recipe: Recipe,
    output: Path,
    asked: Asked | None = None,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure what each part of a model costs when it alone is cut, and write a folder about it.

    Interrupted at any point, the same call continues from what it finds and ends in the same bits.

    Args:
        recipe: model, calibration text, seed, and a stage factorize whose method and format cut.
        output: folder to write: profile.csv, profile.html and profile.json; it appears whole.
        asked: what to measure; None for every site at half its numbers.
        cache: kept between runs; by default as in sources.default_cache.
        progress: called as ``progress(done, total, what)``.

    Raises:
        SpectrimError: anything that the user can put right; no folder is left behind then.
    """
    asked = asked or Asked()
    cache = cache or sources.default_cache()
    refuse_output(output, "profile", cache, sources.local(recipe.model))
    source = sources.resolve(recipe.model, cache, trust_remote_code=recipe.trust_remote_code)
    refuse_smaller(source, "profile")
    job = open_job(recipe, source, cache, progress or (lambda done, total, what: None))
    job.budget = dataclasses.replace(job.budget, of="linear")  # sizes are in numbers
    tokens = read(job, asked)
    options = recipe.factorize or Factorize()
    if options.split_fused:
        job.split_fused()
    walked = Sensitivity(job, options, tokens, asked.metric == "divergence")
    dense = walked.dense  # before the long work, as there is none without it
    decompose(job, options)
    bought = bought_units(job, options)
    chosen = _chosen(bought, asked)
    rows = [
        _row(one, asked.metric, dense, found)
        for one, found in zip(chosen, walked(chosen), strict=True)
    ]
    found = _about(job, recipe, asked, walked) | {
        "dense": dense | {"perplexity": exp(min(dense["loss"], _LARGEST))},
        "agreement": [_agreement(rows, size) for size in asked.sizes],
        "left_dense": _left_dense(job, chosen, asked.sizes),
        "rows": rows,
    }
    _write(found, output)
    return found


def read(job: Job, asked: Asked) -> Tokens:
    """Return the sequences of the search split that are measured on."""
    found = job.splits.search
    wanted = min(SEQUENCES, len(found)) if asked.sequences is None else asked.sequences
    if not 0 < wanted <= len(found):
        raise SpectrimError(
            f"cannot measure on {wanted} sequences; expected 1 to {len(found)}, which are what "
            "the search split has (a twelfth of the calibration text)"
        )
    return Tokens(found.ids[:wanted], found.mask[:wanted])


def _chosen(bought: list[Unit], asked: Asked) -> list[PartialCut]:
    found = []
    for size in asked.sizes:
        alone = parts(bought, asked.by, size)
        if not alone:
            raise SpectrimError(
                f"no map can be cut to {size:.4g} of its numbers; ask for larger --sizes"
            )
        found += alone + (cumulative(bought, size) if asked.cumulative else [])
    return found


def _row(
    part: PartialCut, metric: str, dense: dict[str, float], found: dict[str, float]
) -> dict[str, Any]:
    """Return a line of the table; predicted and measured are increases over the dense model.

    error: the standard error of measured, on this text; that of a perplexity to first order. What
    is not finite is None.
    """
    predicted, measured, error = part.predicted, found["loss"] - dense["loss"], found["error"]
    if metric == "perplexity":
        base = exp(min(dense["loss"], _LARGEST))
        predicted = exp(min(dense["loss"] + predicted, _LARGEST)) - base
        measured = exp(min(found["loss"], _LARGEST)) - base
        error *= base + measured
    if metric == "divergence":  # which the same second-order estimate stands for
        measured = found["divergence"]
    return {
        "cut": part.how,
        "block": part.block,
        "role": part.role,
        "site": part.site,
        "size": part.size,
        "rank": part.rank,
        "predicted": _finite(predicted),
        "measured": _finite(measured),
        "error": _finite(error),
        "metric": metric,
    }


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None


def _agreement(rows: list[dict[str, Any]], size: float) -> dict[str, Any]:
    """Return how predicted and measured go together over the parts that were cut alone.

    "pearson" is of the logarithms, as increases span orders of magnitude, and so of the "above" of
    all "parts" where both are above zero; None where these are fewer than half. "spearman" is of
    all. None where fewer than three parts are known, or one of the two does not vary.
    """
    pairs = [
        (one["predicted"], one["measured"])
        for one in rows
        if one["size"] == size and one["cut"] == ALONE
        and one["predicted"] is not None and one["measured"] is not None
    ]  # fmt: skip
    above = [(log(x), log(y)) for x, y in pairs if min(x, y) > 0]
    return {
        "size": size,
        "parts": len(pairs),
        "above": len(above),
        "pearson": _correlation(pearsonr, above) if 2 * len(above) >= len(pairs) else None,
        "spearman": _correlation(spearmanr, pairs),
    }


def _correlation(function: Any, pairs: list[Any]) -> float | None:
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return float(function(*zip(*pairs, strict=True)).statistic)


def _left_dense(
    job: Job, chosen: list[PartialCut], sizes: tuple[float, ...]
) -> list[dict[str, Any]]:
    """Return what no cut of that size is offered for, such as experts that read no token."""
    cut = {
        (one.size, decision.site)
        for one in chosen
        if one.how == ALONE
        for decision in one.decisions
    }
    return [
        {"site": site.name, "size": size}
        for size in sizes
        for site in inner_sites(job)
        if (size, site.name) not in cut
    ]


def _about(job: Job, recipe: Recipe, asked: Asked, walked: Sensitivity) -> dict[str, Any]:
    options = recipe.factorize or Factorize()
    tokens = walked.walk.tokens
    return {
        "model": job.source.name,
        "fingerprint": job.source.fingerprint,
        **dataclasses.asdict(asked),
        "sequences": len(tokens),
        "sizes": list(asked.sizes),
        "unit": UNITS[asked.metric],
        "method": options.method,
        "format": options.format,
        "text": job.text,
        "calibration": recipe.calibration.tokens,
        "split": "search",
        "length": tokens.ids.shape[1],
        "predicted_tokens": walked.walk.predicted(),
        "compared_tokens": walked.compared if walked.divergence else None,
        "seed": recipe.seed,
        "threads": torch.get_num_threads(),
        "versions": versions("spectrim", "torch", "transformers"),
    }


def _write(found: dict[str, Any], output: Path) -> None:
    with output_folder(output, "profile") as folder:
        with (folder / "profile.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(found["rows"])
        said = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "profile.json").write_text(said + "\n", encoding="utf-8")
        write_profile(found, folder / "profile.html")
