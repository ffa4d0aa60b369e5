"""Moments that the loss feels: GPTQ by A and by A weighted by gradients, predicted and measured.

    python benchmarks/moments.py --model rescaled/ -o run/ [--tokens 16x1024] [--first 0]

Every map of the blocks from --first on is rounded with one moment of its inputs or the other, and
the loss on four texts is compared to what was predicted: by the moments that the codes were fitted
to, and by those of sequences that they were not fitted to. Calibrated on mixed_text.py's text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from front_bench import losses_on
from measuring import arguments, excess_of, publish, read_arguments, texts_of, two_halves
from mixed_text import mixed
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.formats.packed.scales import Grid
from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.recipe.recipe import Recipe
from spectrim.report.progress import shown
from spectrim.rounding.gptq import gptq
from spectrim.walk.moments import Damping, damped, expected_loss, of_all_text
from spectrim.walk.statistics import Statistics, block_statistics

GROUP, DAMPING = 64, 1e-2
KINDS = {"A": False, "A weighted by gradients": True}


def main() -> None:
    """Round, measure, compare."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="as of benchmarks/rescaled.py")
    parser.add_argument("--tokens", default="16x1024", help="of the calibration text")
    parser.add_argument("--first", type=int, default=0, help="block from which on maps are rounded")
    parser.add_argument("--bits", default="3,2")
    parser.add_argument("--windows", type=int, default=5, help="of a text at most, of 512 tokens")
    asked = read_arguments(parser)
    first, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    text, _ = mixed(asked.data, first, asked.output)
    source = sources.resolve(str(asked.model), asked.cache)
    changes = {"model": str(asked.model), "calibration.text": str(text)}
    recipe = Recipe.build(None, {**changes, "calibration.tokens": asked.tokens})
    with shown() as progress:
        job = open_job(recipe, source, asked.cache, progress)
        job.statistics()
    texts = texts_of(source, second, asked.data, asked.windows, 512)
    model = sources.model(source)
    dense = {name: losses_on(model, windows) for name, windows in texts.items()}
    rows = []
    for bits in map(int, asked.bits.split(",")):
        for kind, weighted in KINDS.items():
            found = _rounded(job, model, asked.first, bits, weighted)
            losses = {name: losses_on(model, windows) for name, windows in texts.items()}
            excess = {name: excess_of(losses[name], dense[name]) for name in texts}
            rows.append({"table": "moments", "bits": bits, "kind": kind, "excess": excess, **found})
            print(rows[-1], flush=True)
    note = f"Calibrated on {asked.tokens} tokens of mixed text; blocks from {asked.first} on."
    print(publish(
        asked.output, "moments", rows, model=f"{asked.model.name}, bf16", note=note,
        windows="512 tokens: " + ", ".join(f"{len(one)} of {name}" for name, one in texts.items()),
    ))  # fmt: skip


@torch.no_grad()
def _rounded(
    job: Job, model: PreTrainedModel, first: int, bits: int, weighted: bool
) -> dict[str, Any]:
    """Round the maps of a model in place; return what is predicted, as fitted and held out."""
    fitted, held_out = 0.0, 0.0
    for matrix, name, known in _maps(job, first):
        made = _by(matrix, known, bits, weighted)
        seen = known if weighted else replace(known, weighted_moment=None)
        fitted += expected_loss(matrix, made, seen, Damping())
        if weighted and known.even is not None and (odd := known.odd()) is not None:
            half = _by(matrix, known.even, bits, weighted)
            held_out += of_all_text(
                *(expected_loss(matrix, half, one, Damping()) for one in (known.even, odd))
            )
        model.get_parameter(name).copy_(made)
    return {"fitted": fitted, "held_out": held_out or None}


def _by(matrix: Tensor, known: Statistics, bits: int, weighted: bool) -> Tensor:
    moment = known.loss_inputs if weighted else known.input_moment
    assert moment is not None
    grid = Grid(bits, GROUP, symmetric=False)
    return gptq(matrix, damped(moment, DAMPING), grid, torch.bfloat16).dequantize(GROUP).float()


def _maps(job: Job, first: int) -> Iterator[tuple[Tensor, str, Statistics]]:
    """Yield the dense matrix, the parameter and the statistics of every map."""
    for place in job.each_block()[first:]:
        block, known = job.dense_block(place), block_statistics(job.statistics(), place)
        for site in job.block_sites(place):
            path = f"{site.name.removeprefix(place.prefix)}.weight"
            yield block.get_parameter(path).float(), f"{site.name}.weight", known[site.name]


if __name__ == "__main__":
    main()
