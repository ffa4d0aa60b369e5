"""Make the columns of every map alike in size before it is rounded; the model computes the same.

What gives a map its inputs, a norm, or the map before it, takes a factor for each of them, and the
map is divided by it: cross-layer equalization (Nagel et al., 1906.04721), as AWQ (2306.00978) does
it by activations. The weights of a group share one scale, so that a column of large ones makes the
grid of its neighbours coarse; alike, none does. It costs no bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spectrim.errors import SpectrimError
from spectrim.job.job import Job
from spectrim.job.remake import remake
from spectrim.model.architectures import Place
from spectrim.model.experts import load_block
from spectrim.recipe.options import Part
from spectrim.text.tokens import Tokens
from spectrim.walk.equalization import evened, links_of, missed
from spectrim.walk.stream import Stream

REFUSES = {
    "changed maps": "equalize takes a model with whole maps; put equalize first",
    "damage": "equalize takes a model with whole maps; put equalize first",
}
TOKENS = 64  # of the calibration text, on which a block has to compute what it did
VERSION = 2  # of what is done, for the model that is kept


class Options(Part):
    """The stage that makes the columns of maps alike in size, by factors that cancel out."""


def equalize(job: Job, options: Options) -> None:
    """Go on with a model that computes the same from columns of one size.

    Raises:
        SpectrimError: an earlier stage has changed the maps.
    """
    if job.blocks is not None or job.sparsified:
        raise SpectrimError(REFUSES["changed maps"])
    remake(job, ("equalize", VERSION, _tokens(job).digest()), {}, _blocks(job))


def _tokens(job: Job) -> Tokens:
    """Return what blocks are run on."""
    text = job.splits.calibration
    return Tokens(text.ids[:1, :TOKENS], text.mask[:1, :TOKENS])


def _blocks(job: Job) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of one block after the other, by their names in the model."""
    stream, places = Stream(job.walk(_tokens(job))), job.each_block()
    for done, place in enumerate(places, start=1):
        stream = stream.reach(place)
        tensors, behind = _evened(job, stream, place)
        yield {place.prefix + name: tensor for name, tensor in tensors.items()}
        stream = stream.with_hidden({0: behind})
        job.progress(done, len(places), "making columns alike")


def _evened(job: Job, stream: Stream, place: Place) -> tuple[dict[str, Tensor], Tensor]:
    """Return the tensors of a block with columns alike, and the states behind it."""
    walk, hidden = stream.walk, stream.hidden[0]
    tensors = dict(walk.weights.read_prefix(place.prefix))
    empty = walk.blocks(place.stack)[place.index]

    def run(block: nn.Module) -> Tensor:
        return stream.run(block, place, 0)

    def miss(changed: dict[str, Tensor]) -> float:
        block = load_block(empty, changed, walk.dtype, job.architecture.experts)
        with torch.no_grad():
            return missed(hidden, behind, run(block))

    behind, links = links_of(walk.block(place), run, job.block_sites(place), place)
    for link in links:
        tensors = evened(tensors, link, miss)
    return tensors, behind
