"""What llama.cpp's types cost, in nats: rows of every map quantised in each, block by block."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float, Int
from torch import Tensor, nn

from spectrim.files import atomic_file, key_of, locked
from spectrim.job.job import Job
from spectrim.model.architectures import Place
from spectrim.model.sites import Site, weight
from spectrim.rounding.few_bits import DAMPING, InverseRoots
from spectrim.rounding.ggml import TYPES, bits, dequantize, fits, quantize, row_bytes
from spectrim.rounding.ggml_codes import LAYOUTS
from spectrim.rounding.ggml_feedback import quantize_with_feedback
from spectrim.walk.moments import Damping, damped, of_all_text
from spectrim.walk.statistics import Statistics, block_statistics

Kind = GGMLQuantizationType
Price = Callable[[np.ndarray, GGMLQuantizationType], float]
"""Rows of a map in a type's blocks, and the type → what they cost, nats per token."""
FED = " fed"  # behind a type's name: with codes whose errors make up for each other
LEAST = 5.0  # bits: types from here on are always offered
BELOW = 1.7  # bits that a map may get less than the mean: types of very few are slow to make
SAMPLE = 3  # one in so many rows, those that matter most, tells what types lose beside each other
REFERENCE = (Kind.Q4_0, Kind.Q8_0)  # soon made: what they lose in all rows says how much others do
SMALL_BLOCKS = (Kind.MXFP4, Kind.IQ4_NL, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)
"""Of 32 numbers: for rows that are no multiple of 256; elsewhere others are better."""


@dataclass(frozen=True)
class Offer:
    """What a matrix may be stored as: types, smallest first, and what each of them costs."""

    name: str
    """Of the parameter."""
    shape: tuple[int, int]
    kinds: tuple[GGMLQuantizationType, ...]
    losses: tuple[float, ...]
    """Predicted increase of the model's loss, nats per token."""

    def bytes(self, kind: GGMLQuantizationType) -> int:
        """Return how many bytes the matrix takes in a type."""
        return self.shape[0] * row_bytes(kind, self.shape[1])


def offered(columns: int, mean: float) -> list[GGMLQuantizationType]:
    """Return the types that rows of so many columns may get, smallest first.

    mean: bits that a number gets on average; types far below are left out.
    """
    least = min(mean - BELOW, LEAST)
    fitting = [kind for kind in TYPES if fits(kind, columns) and bits(kind) >= least]
    whole = columns % 256 == 0
    found = [kind for kind in fitting if not (whole and kind in SMALL_BLOCKS)]
    return sorted(found, key=bits)


def map_offers(job: Job, mean: float) -> list[Offer]:
    """Return what the maps inside the blocks may be stored as, and what each type costs.

    It depends on what is asked for alone, not on what else the cache holds.
    mean: bits that a number gets on average.
    """
    known, offers = measured(job, mean), []
    for place in job.each_block():
        for site in job.block_sites(place):
            kinds = offered(site.in_features, mean)
            offers.append(_offer(site, kinds, expected(kinds, known.get(site.name, {}))))
    return offers


def measured(job: Job, mean: float) -> dict[str, dict[str, float]]:
    """Return by sites what the maps inside the blocks lose in types, by the names of ``wanted``.

    Kept in the cache, block by block.
    mean: bits that a number gets on average.
    """
    folder = job.cache / "types" / key_of("types", 5, job.statistics_key)
    found: dict[str, dict[str, float]] = {}
    places = job.each_block()
    for done, place in enumerate(places, start=1):
        file = job.block_file(folder, place).with_suffix(".json")
        with locked(file):
            found |= _block_losses(job, place, mean, file)
        job.progress(done, len(places), "trying types")
    return found


def _offer(site: Site, kinds: Sequence[GGMLQuantizationType], losses: Sequence[float]) -> Offer:
    shape = (site.out_features, site.in_features)
    return Offer(f"{site.name}.weight", shape, tuple(kinds), tuple(losses))


def expected(kinds: Sequence[GGMLQuantizationType], losses: Mapping[str, float]) -> list[float]:
    """Return what each of some types costs where errors make up for each other, nats per token.

    losses: by the names of ``wanted``. How much less is lost than by ggml's own codes is measured
        for one type of either sort, and is much the same for its others.
    """
    parts = {}
    for tried in _tried(kinds):
        plain = losses[tried.name]
        parts[tried in LAYOUTS] = losses[tried.name + FED] / plain if plain else 1.0
    return [losses[kind.name] * parts[kind in LAYOUTS] for kind in kinds]


def wanted(kinds: Sequence[GGMLQuantizationType]) -> list[str]:
    """Return what ``expected`` has to know: the types' names, and with FED those tried."""
    return [*(kind.name for kind in kinds), *(kind.name + FED for kind in _tried(kinds))]


def _tried(kinds: Sequence[GGMLQuantizationType]) -> list[GGMLQuantizationType]:
    """Return the middle one of those with codes of single numbers, and of those with codebooks."""
    sorts = ([kind for kind in kinds if (kind in LAYOUTS) == sort] for sort in (True, False))
    return [alike[len(alike) // 2] for alike in sorts if alike]


def _block_losses(job: Job, place: Place, mean: float, file: Path) -> dict[str, dict[str, float]]:
    """Return the losses of all sites of a block; those that the file has not are added to it."""
    known: dict[str, dict[str, float]] = {}
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
    missing = {
        site.name: [
            one
            for one in wanted(offered(site.in_features, mean))
            if one not in known.get(site.name, {})
        ]
        for site in job.block_sites(place)
    }
    if any(missing.values()):
        maker = BlockMaker(job, place)
        for name, some in missing.items():
            if some:
                known[name] = known.get(name, {}) | maker.losses(name, some)
        with atomic_file(file) as partial:
            partial.write_text(json.dumps(known), encoding="utf-8")
    return known


class BlockMaker:
    """A dense block whose maps are quantised one by one."""

    def __init__(self, job: Job, place: Place) -> None:
        self.statistics = block_statistics(job.statistics(), place)
        self.block, self.place = job.dense_block(place).float(), place
        self.roots = InverseRoots()

    def matrix(self, site: str) -> Tensor:
        """Return the weights of a site, float32 [out, in]."""
        return weight(self.block.get_submodule(site.removeprefix(self.place.prefix))).detach()

    def losses(self, site: str, some: Sequence[str]) -> dict[str, float]:
        """Return ½ tr(Δᵀ G Δ A) of a map, nats per token, by the names of ``wanted``.

        Each is measured in some of the rows, which know nothing of each other. Codes are chosen for
        the even sequences and priced on the odd ones too, as all else is that is bought.
        """
        matrix, known = self.matrix(site), self.statistics[site]
        chosen = known if known.even is None else known.even
        moment = _inputs(chosen)
        rows = self._telling(site)
        price, sample = self._held_out_price(site, rows), matrix[rows]
        losses = {}
        for one in some:
            kind = GGMLQuantizationType[one.removesuffix(FED)]
            if one.endswith(FED):
                root = self.roots.of(moment, DAMPING)
                packed = quantize_with_feedback(sample, root, kind)
            else:
                packed = quantize(sample, kind, moment.diagonal())
            losses[one] = price(packed, kind)
        part = self._part(site, rows)
        return {one: loss / part for one, loss in losses.items()}

    def _part(self, site: str, rows: Int[Tensor, " some"]) -> float:
        """Return which part of a map's loss some of its rows have."""
        matrix, known = self.matrix(site), self.statistics[site]
        diagonal, every = _inputs(known).diagonal(), torch.arange(len(matrix))
        told, whole = (
            sum(price(quantize(matrix[at], kind, diagonal), kind) for kind in REFERENCE)
            for at, price in ((at, self._price(site, at, known)) for at in (rows, every))
        )
        return told / whole if told else 1.0

    def _telling(self, site: str) -> Int[Tensor, " some"]:
        """Return the rows whose errors will matter most: large ones that the loss is steep in."""
        matrix, known = self.matrix(site), self.statistics[site]
        if known.gradient_moment is None or known.loss_inputs is None:
            return torch.arange(len(matrix))
        sizes = matrix.square() @ known.loss_inputs.diagonal()
        matter = known.gradient_moment.diagonal() * sizes
        return matter.topk(-(-len(matrix) // SAMPLE)).indices.sort().values

    def _held_out_price(self, site: str, rows: Int[Tensor, " some"]) -> Price:
        """Return the price of codes that were chosen for the even sequences, where these are known.

        With fewer sequences it is that of all text.
        """
        known = self.statistics[site]
        odd = known.odd()
        if known.even is None or odd is None:
            return self._price(site, rows, known)
        own, other = (self._price(site, rows, one) for one in (known.even, odd))
        return lambda packed, kind: of_all_text(own(packed, kind), other(packed, kind))

    def _price(self, site: str, rows: Int[Tensor, " some"], known: Statistics) -> Price:
        """Return what gives ½ tr(Δᵀ G Δ A) of rows of the map, in float32 as there are many."""
        matrix = self.matrix(site)[rows]
        if known.gradient_moment is None or not known.gradient_moment.any():
            return lambda packed, kind: 0.0  # nothing reaches the loss
        assert known.loss_inputs is not None
        inputs = damped(known.loss_inputs, Damping().input).float()
        gradients = damped(known.gradient_moment, Damping().gradient)[rows][:, rows].float()

        def price(packed: np.ndarray, kind: GGMLQuantizationType) -> float:
            error = dequantize(packed, kind) - matrix
            return float(0.5 * ((gradients @ error) * (error @ inputs)).sum())

        return price

    def packed(self, site: str, kind: GGMLQuantizationType, *, best: bool = False) -> np.ndarray:
        """Return a map in a type's blocks, uint8 [out, row_bytes]; best: take time for it."""
        moment = _inputs(self.statistics[site])
        inputs = damped(moment, DAMPING).float() if best else None
        root = self.roots.of(moment, DAMPING)
        return quantize_with_feedback(self.matrix(site), root, kind, inputs)


def _inputs(known: Statistics) -> Float[Tensor, "in in"]:
    assert known.input_moment is not None
    return known.input_moment


def replaced(block: nn.Module, site: str, values: Tensor) -> None:
    """Give a map of a block other weights."""
    with torch.no_grad():
        weight(block.get_submodule(site)).copy_(values)
