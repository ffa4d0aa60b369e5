"""Factors of signs against ranks in few bits: all maps of a block at equal bytes, priced, measured.

    python benchmarks/binary_factors.py -o run/ [--model rescaled/] [--blocks 14] [--bits 1.6,0.8]

The maps of one block at a time are replaced, at so many bits a weight: by the best that low rank in
2, 3 or 4 bits or whole codes of 2 bits offer, map by map; by factors of signs fitted with diagonal
moments (NanoQuant); by those fitted with whole ones. All are fitted to the even sequences of the
calibration text and priced on all of it. Then the loss of other texts is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import (
    arguments,
    commits_of,
    excess_of,
    keep_row,
    known_rows,
    publish,
    read_arguments,
    texts_of,
    two_halves,
)
from one_line_errors import told
from rescaled import write_rescaled
from torch import Tensor, nn

from spectrim.formats import make_format
from spectrim.formats.binary_low_rank import SIGNS, BinaryLowRank
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.scales import Grid
from spectrim.formats.quantized_low_rank import QuantizedLowRank
from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.methods.loss_aware_svd import loss_aware_svd
from spectrim.model import sources
from spectrim.model.architectures import Place
from spectrim.model.sites import weight
from spectrim.recipe.recipe import Recipe
from spectrim.report.progress import shown
from spectrim.rounding.binary_factors import Metric, binary_factors
from spectrim.rounding.few_bits import Rounding, quantized_pieces
from spectrim.walk.moments import Damping, expected_loss, of_all_text
from spectrim.walk.statistics import Statistics, block_statistics
from spectrim.walk.stream import Stream

GROUP = 64
CODES, DIAGONAL, WHOLE = "ranks in few bits", "signs, diagonal moments", "signs, whole moments"
STEPS = 60  # of the diagonal fit, which has no flips behind it


def main() -> None:
    """Replace, price and measure block by block, resuming, and write binary_factors.json."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the dense model; by default output/rescaled")
    parser.add_argument("--tokens", default="16x1024", help="of the calibration text")
    parser.add_argument("--blocks", default="14", help="numbers, joined by commas")
    parser.add_argument("--bits", default="1.6,0.8", help="a weight, scales included")
    parser.add_argument("--windows", type=int, default=2, help="of 512 tokens, of each text")
    asked = read_arguments(parser)
    job = opened(asked)
    _, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    name = job.source.folder.name
    texts = texts_of(job.source, second, asked.data, asked.windows, 512)
    walks = {text: job.walk(windows) for text, windows in texts.items()}
    keep_row(asked.output, name, "dense", 1.0, lambda: losses(walks, None, {}))
    for place in job.each_block():
        if str(place.index) not in asked.blocks.split(","):
            continue
        for bits in map(float, asked.bits.split(",")):
            for way in (CODES, DIAGONAL, WHOLE):
                keep_row(asked.output, f"{name} {place.index} {bits}", way, 1.0,
                         lambda place=place, bits=bits, way=way:  # type: ignore[misc]
                         row_of(job, walks, place, bits, way))  # fmt: skip
    _write(asked.output, name, asked.windows)


def opened(asked: argparse.Namespace) -> Job:
    """Return a job calibrated on the text that ships with the package."""
    folder = asked.model
    if folder is None:
        folder = asked.output / "rescaled"
        write_rescaled(folder, asked.cache, asked.data)
    recipe = Recipe.build(None, {"model": str(folder), "calibration.tokens": asked.tokens})
    with shown() as progress:
        job = open_job(recipe, sources.resolve(str(folder), asked.cache), asked.cache, progress)
        job.statistics()
    job.progress = lambda done, total, what: None
    return job


def row_of(job: Job, walks: dict[str, Any], place: Place, bits: float, way: str) -> dict[str, Any]:
    """Return what all maps of a block lose at so many bits a weight, predicted and measured."""
    known = block_statistics(job.statistics(), place)
    block = job.dense_block(place).float()
    made, predicted, size, count = {}, 0.0, 0, 0
    for site in job.block_sites(place):
        path = site.name.removeprefix(place.prefix)
        matrix = weight(block.get_submodule(path)).detach()
        offered = list(offers(matrix, known[site.name], int(bits * matrix.numel() / 8), way))
        loss, made[path], held = min(offered, key=lambda one: one[0])
        predicted, size, count = predicted + loss, size + held, count + matrix.numel()
    about = {"block": place.index, "asked": bits, "bits": 8 * size / count, "predicted": predicted}
    return {**about, **losses(walks, place, made)}


def offers(
    matrix: Tensor, known: Statistics, size: int, way: str
) -> Iterator[tuple[float, Tensor, int]]:
    """Yield price, matrix and bytes of what a way offers of at most so many bytes."""
    chosen = known.even
    assert chosen is not None and chosen.loss_inputs is not None
    shape = (len(matrix), matrix.shape[1])
    if way == CODES:
        found = coded(matrix, chosen, size)
    else:
        metric = Metric.of(chosen.gradient_moment, chosen.loss_inputs, shape[0])
        steps: dict[str, int] = {}
        if way == DIAGONAL:
            metric = Metric(*(torch.diag(one.diagonal()) for one in vars(metric).values()))
            steps = {"steps": STEPS, "cycles": 0}
        rank = largest(shape, size)
        held = BinaryLowRank.stored_bytes((*shape, rank), SIGNS, torch.bfloat16)
        found = iter([(binary_factors(matrix, metric, rank, **steps).dense(), held)])
    for made, held in found:
        yield price(matrix, made, known), made, held


def coded(matrix: Tensor, chosen: Statistics, size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield whole codes of 2 bits, where they fit, and low rank in 2, 3 and 4 bits."""
    assert chosen.loss_inputs is not None
    shape = (len(matrix), matrix.shape[1])
    whole = PackedMatrix.stored_bytes(shape, Grid(2, GROUP, symmetric=False), torch.bfloat16)
    if whole <= size:
        rounding = Rounding(Grid(2, GROUP, symmetric=False), torch.bfloat16)
        yield rounding(matrix, chosen.loss_inputs).dequantize(GROUP), whole
    cut = loss_aware_svd(matrix, chosen)
    for bits in (2, 3, 4):
        grid = Grid(bits, GROUP, symmetric=False)

        def held(rank: int, grid: Grid = grid) -> int:
            return QuantizedLowRank.stored_bytes((*shape, rank), grid, torch.bfloat16)

        rank = max((one for one in range(1, min(shape) + 1) if held(one) <= size), default=0)
        if not rank:
            continue
        module = make_format("low_rank", (*shape, rank), cut.pieces, None, torch.float32)
        made = QuantizedLowRank(shape[1], shape[0], rank, bias=False, grid=grid)
        with torch.no_grad():
            rounding = Rounding(grid, torch.bfloat16)
            made.take(quantized_pieces(module, chosen.loss_inputs, rounding))
        yield made.dense().detach(), held(rank)


def largest(shape: tuple[int, int], size: int) -> int:
    """Return the largest rank of factors of signs of at most so many bytes."""
    rank = BinaryLowRank.largest(*shape)
    while BinaryLowRank.stored_bytes((*shape, rank), SIGNS, torch.bfloat16) > size:
        rank -= 1
    return rank


def price(matrix: Tensor, made: Tensor, known: Statistics) -> float:
    """Return what a matrix fitted to the even sequences is predicted to cost, nats per token."""
    odd, even = known.odd(), known.even
    assert odd is not None and even is not None
    own, other = (expected_loss(matrix, made, one, Damping()) for one in (even, odd))
    return of_all_text(own, other)


def losses(walks: dict[str, Any], place: Place | None, made: dict[str, Tensor]) -> dict[str, Any]:
    """Return mean loss of every text and that of each window, some maps of a block replaced."""
    found = {}
    for name, walk in walks.items():

        def block(at: Place, walk: Any = walk) -> nn.Module:
            held: nn.Module = walk.block(at)
            if at == place:
                with torch.no_grad():
                    for path, matrix in made.items():
                        weight(held.get_submodule(path)).copy_(matrix)
            return held

        each = Stream(walk).through(block).losses().double().view(len(walk.tokens), -1).mean(1)
        found[name] = {"loss": float(each.mean()), "windows": each.tolist()}
    return found


def _write(output: Any, name: str, windows: int) -> None:
    known = known_rows(output)
    dense = known[f"{name} | dense | 1"]
    texts = [text for text, one in dense.items() if isinstance(one, dict)]
    rows = []
    for row in known.values():
        if "predicted" not in row:
            continue
        excess = {text: excess_of(row[text], dense[text]) for text in texts}
        mean = sum(one[0] for one in excess.values()) / len(excess)
        own = {key: row[key] for key in ("label", "block", "asked", "bits", "predicted")}
        rows.append({"table": "binary_factors", **own, "excess": excess, "mean": mean})
    print(
        publish(
            output, "binary_factors", rows, commit=commits_of(known.values()),
            model="demo off its 4-bit grid (benchmarks/rescaled.py), bf16",
            windows=f"512 tokens: {windows} of each text",
            note="Calibrated on the text that ships with the package. The maps of one block are "
            "replaced, all else is dense.",
        )
    )  # fmt: skip


if __name__ == "__main__":
    told(main)
