"""Make the columns of every map alike in size before it is rounded; the model computes the same.

What gives a map its inputs, a norm, or the map before it, takes a factor for each of them, and the
map is divided by it: cross-layer equalization (Nagel et al., 1906.04721), as AWQ (2306.00978) does
it by activations. The weights of a group share one scale, so that a column of large ones makes the
grid of its neighbours coarse; alike, none does. It costs no bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.job.job import Job
from spectrim.job.remake import remake
from spectrim.model.equalization import evened, links_of, unchanged
from spectrim.model.experts import load_block
from spectrim.recipe.options import Part
from spectrim.text.tokens import Tokens
from spectrim.walk.stream import Stream

REFUSES = {
    "changed maps": "equalize takes a model with whole maps; put equalize first",
    "damage": "equalize takes a model with whole maps; put equalize first",
}
TOKENS = 64  # of the calibration text, on which a block has to compute what it did
VERSION = 1  # of what is done, for the model that is kept


class Options(Part):
    """The stage that makes the columns of maps alike in size, by factors that cancel out."""


def equalize(job: Job, options: Options) -> None:
    """Go on with a model that computes the same from columns of one size.

    Raises:
        SpectrimError: an earlier stage has changed the maps.
    """
    if job.blocks is not None or job.sparsified:
        raise SpectrimError(REFUSES["changed maps"])
    remake(job, ("equalize", VERSION), {}, _blocks(job))


def _blocks(job: Job) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of one block after the other, by their names in the model."""
    text = job.splits.calibration
    walk = job.walk(Tokens(text.ids[:1, :TOKENS], text.mask[:1, :TOKENS]))
    stream, places = Stream(walk), job.each_block()
    for done, place in enumerate(places, start=1):
        stream = stream.reach(place)
        dense = walk.block(place)
        sites = job.block_sites(place)
        behind, links = links_of(dense, lambda block: stream.run(block, place, 0), sites, place)  # noqa: B023
        tensors = dict(walk.weights.read_prefix(place.prefix))
        empty = walk.blocks(place.stack)[place.index]

        def computes(changed: dict[str, Tensor]) -> bool:
            block = load_block(empty, changed, walk.dtype, job.architecture.experts)  # noqa: B023
            with torch.no_grad():
                found = stream.run(block, place, 0)  # noqa: B023
            return unchanged(stream.hidden[0], behind, found)  # noqa: B023

        for link in links:
            tensors = evened(tensors, link, computes)
        yield {place.prefix + name: tensor for name, tensor in tensors.items()}
        stream = stream.with_hidden({0: behind})
        job.progress(done, len(places), "making columns alike")
